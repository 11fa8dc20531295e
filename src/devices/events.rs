//! What the devices ask of the virtual machine: eventfds that a guest's write fires (ioeventfd), eventfds that
//! interrupt the guest (irqfd), and the table that says which interrupt (GSI routing).
//!
//! A trait, so that the devices' tests run without KVM.

use kvm_bindings::{KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::io;
use vmm_sys_util::eventfd::EventFd;

/// The virtual machine, as far as the devices' events go. [`VmFd`] is the real one.
pub trait VmEvents: Send + Sync {
    /// Replaces the whole routing table (`KVM_SET_GSI_ROUTING`).
    fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()>;

    /// From now on a write to `fd` raises `gsi` (`KVM_IRQFD`).
    fn add_irqfd(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;

    /// Undoes [`VmEvents::add_irqfd`].
    fn remove_irqfd(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;

    /// From now on a guest's write of any width and value to the physical address `addr` goes to `fd` and not
    /// to the VMM (`KVM_IOEVENTFD`).
    fn add_ioeventfd(&self, fd: &EventFd, addr: u64) -> io::Result<()>;

    /// Undoes [`VmEvents::add_ioeventfd`].
    fn remove_ioeventfd(&self, fd: &EventFd, addr: u64) -> io::Result<()>;
}

impl VmEvents for VmFd {
    fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()> {
        let table =
            KvmIrqRouting::from_entries(routes).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        Ok(self.set_gsi_routing(&table)?)
    }

    fn add_irqfd(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.register_irqfd(fd, gsi)?)
    }

    fn remove_irqfd(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.unregister_irqfd(fd, gsi)?)
    }

    fn add_ioeventfd(&self, fd: &EventFd, addr: u64) -> io::Result<()> {
        Ok(self.register_ioevent(fd, &IoEventAddress::Mmio(addr), NoDatamatch)?)
    }

    fn remove_ioeventfd(&self, fd: &EventFd, addr: u64) -> io::Result<()> {
        Ok(self.unregister_ioevent(fd, &IoEventAddress::Mmio(addr), NoDatamatch)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::interrupts::{Interrupts, Message};
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn kvm_takes_routes_irqfds_and_ioeventfds() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("skipped: no /dev/kvm");
            return;
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let interrupts = Interrupts::new(vm.clone()).unwrap();
        let vectors: Vec<_> = (0..3).map(|_| interrupts.msi().unwrap()).collect();
        for vector in &vectors {
            vector.trigger();
            vector.update(Message { address: 0xfee0_0000, data: 0x41 }, false).unwrap();
            vector.trigger();
        }
        drop(vectors);
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        vm.add_ioeventfd(&event, 0xc000_3000).unwrap();
        assert!(vm.add_ioeventfd(&event, 0xc000_3000).is_err());
        vm.remove_ioeventfd(&event, 0xc000_3000).unwrap();
        assert!(vm.remove_ioeventfd(&event, 0xc000_3000).is_err());
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A virtual machine that only notes what it is asked for.

    use super::VmEvents;
    use kvm_bindings::{KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry};
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::{Arc, Mutex};
    use vmm_sys_util::eventfd::EventFd;

    #[derive(Default)]
    pub(crate) struct FakeVm {
        pub(crate) routes: Mutex<Vec<kvm_irq_routing_entry>>,
        pub(crate) irqfds: Mutex<BTreeMap<u32, EventFd>>,
        pub(crate) ioeventfds: Mutex<BTreeMap<u64, EventFd>>,
    }

    impl FakeVm {
        pub(crate) fn new() -> Arc<FakeVm> {
            Arc::default()
        }

        /// The messages in the table: (GSI, address, data).
        pub(crate) fn messages(&self) -> Vec<(u32, u64, u32)> {
            let routes = self.routes.lock().unwrap();
            let messages = routes.iter().filter(|route| route.type_ == KVM_IRQ_ROUTING_MSI);
            // SAFETY: the type says which member of the union is set.
            let message = |route: &kvm_irq_routing_entry| unsafe { (route.gsi, route.u.msi) };
            messages
                .map(message)
                .map(|(gsi, msi)| {
                    (gsi, u64::from(msi.address_hi) << 32 | u64::from(msi.address_lo), msi.data)
                })
                .collect()
        }

        /// How often `gsi` was raised since the last call.
        pub(crate) fn raised(&self, gsi: u32) -> u64 {
            self.irqfds.lock().unwrap()[&gsi].read().unwrap_or(0)
        }

        /// A guest's write to `addr`; false if it would go to the VMM.
        pub(crate) fn kick(&self, addr: u64) -> bool {
            self.ioeventfds.lock().unwrap().get(&addr).is_some_and(|event| event.write(1).is_ok())
        }

        pub(crate) fn kick_addresses(&self) -> Vec<u64> {
            self.ioeventfds.lock().unwrap().keys().copied().collect()
        }
    }

    impl VmEvents for FakeVm {
        fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()> {
            *self.routes.lock().unwrap() = routes.to_vec();
            Ok(())
        }

        fn add_irqfd(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
            assert!(self.irqfds.lock().unwrap().insert(gsi, fd.try_clone()?).is_none(), "GSI {gsi} is taken");
            Ok(())
        }

        fn remove_irqfd(&self, _fd: &EventFd, gsi: u32) -> io::Result<()> {
            self.irqfds.lock().unwrap().remove(&gsi).map(drop).ok_or(io::ErrorKind::NotFound.into())
        }

        fn add_ioeventfd(&self, fd: &EventFd, addr: u64) -> io::Result<()> {
            let mut events = self.ioeventfds.lock().unwrap();
            if events.contains_key(&addr) {
                return Err(io::Error::from_raw_os_error(libc::EEXIST));
            }
            events.insert(addr, fd.try_clone()?);
            Ok(())
        }

        fn remove_ioeventfd(&self, _fd: &EventFd, addr: u64) -> io::Result<()> {
            self.ioeventfds.lock().unwrap().remove(&addr).map(drop).ok_or(io::ErrorKind::NotFound.into())
        }
    }
}
