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
