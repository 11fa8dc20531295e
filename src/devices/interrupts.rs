//! Message-signalled interrupts by way of KVM: a vector is an eventfd whose GSI is routed to a message.
//!
//! [`Interrupts`] owns KVM's routing table. KVM replaces it as a whole, so the routes of the legacy interrupts
//! (as `KVM_CREATE_IRQCHIP` makes them) are always in it:
//!
//! ```text
//!   GSI 0-7    PIC 1 pin 0-7    and  I/O APIC pin 0-7
//!   GSI 8-15   PIC 2 pin 0-7    and  I/O APIC pin 8-15
//!   GSI 16-23                        I/O APIC pin 16-23
//!   GSI 24-    one message each
//! ```

use crate::devices::events::VmEvents;
use crate::devices::{Error, Result};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Inputs of the I/O APIC; messages get the GSIs above them.
const LEGACY_GSIS: u32 = 24;

/// What a vector writes where: address and data of the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Physical address, 0xfee_____ on x86.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// The routing table of one virtual machine.
pub struct Interrupts {
    vm: Arc<dyn VmEvents>,
    /// The message of each GSI that a vector holds; `None` until the guest has set one.
    messages: Mutex<BTreeMap<u32, Option<Message>>>,
}

impl Interrupts {
    /// The table of `vm`, whose interrupt chips exist already.
    ///
    /// # Errors
    /// When KVM refuses the table.
    pub fn new(vm: Arc<dyn VmEvents>) -> Result<Arc<Interrupts>> {
        let interrupts = Interrupts { vm, messages: Mutex::default() };
        interrupts.install(&interrupts.messages())?;
        Ok(Arc::new(interrupts))
    }

    /// A new vector, masked.
    ///
    /// # Errors
    /// When the host has no eventfds left or KVM refuses the irqfd.
    pub fn msi(self: &Arc<Self>) -> Result<MsiVector> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::host("eventfd"))?;
        let mut messages = self.messages();
        let gsi = (LEGACY_GSIS..).find(|gsi| !messages.contains_key(gsi)).unwrap_or(LEGACY_GSIS);
        self.vm.add_irqfd(&event, gsi).map_err(Error::host("KVM_IRQFD"))?;
        messages.insert(gsi, None);
        Ok(MsiVector { interrupts: self.clone(), gsi, event, state: Mutex::default() })
    }

    /// Routes `gsi` to `message`.
    fn route(&self, gsi: u32, message: Message) -> Result<()> {
        let mut messages = self.messages();
        if messages.get(&gsi) == Some(&Some(message)) {
            return Ok(());
        }
        messages.insert(gsi, Some(message));
        self.install(&messages)
    }

    fn install(&self, messages: &BTreeMap<u32, Option<Message>>) -> Result<()> {
        let mut routes = legacy_routes();
        routes.extend(messages.iter().filter_map(|(&gsi, message)| Some(msi_route(gsi, (*message)?))));
        self.vm.set_routes(&routes).map_err(Error::host("KVM_SET_GSI_ROUTING"))
    }

    fn messages(&self) -> MutexGuard<'_, BTreeMap<u32, Option<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One interrupt that a device can raise from any thread.
pub struct MsiVector {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    event: EventFd,
    state: Mutex<VectorState>,
}

/// A vector's state.
#[derive(Clone, Copy, Debug)]
struct VectorState {
    message: Message,
    masked: bool,
    /// Raised while masked.
    pending: bool,
}

impl Default for VectorState {
    fn default() -> VectorState {
        VectorState { message: Message::default(), masked: true, pending: false }
    }
}

impl MsiVector {
    /// Sets the message and the mask. A vector that became pending while masked fires when it is unmasked.
    ///
    /// # Errors
    /// When KVM refuses the route.
    pub fn update(&self, message: Message, masked: bool) -> Result<()> {
        let mut state = self.state();
        state.message = message;
        state.masked = masked;
        if masked {
            return Ok(());
        }
        self.interrupts.route(self.gsi, message)?;
        if std::mem::take(&mut state.pending) {
            self.fire();
        }
        Ok(())
    }

    /// Raises the interrupt, or makes it pending while masked.
    pub fn trigger(&self) {
        let mut state = self.state();
        if state.masked {
            state.pending = true;
        } else {
            self.fire();
        }
    }

    /// Whether it was raised while masked: its bit of the pending-bit array.
    pub fn pending(&self) -> bool {
        self.state().pending
    }

    /// Masks it and forgets what is pending.
    pub fn reset(&self) {
        *self.state() = VectorState::default();
    }

    fn fire(&self) {
        // It fails only when the counter is full: then the interrupt is on its way already.
        let _ = self.event.write(1);
    }

    fn state(&self) -> MutexGuard<'_, VectorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        // Nothing can be done about a refusal; the GSI is not given out again then.
        if self.interrupts.vm.remove_irqfd(&self.event, self.gsi).is_ok() {
            self.interrupts.messages().remove(&self.gsi);
        }
    }
}

fn legacy_routes() -> Vec<kvm_irq_routing_entry> {
    let pic = (0..16).map(|gsi| match gsi {
        0..8 => pin_route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => pin_route(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
    });
    // The PIT is wired to pin 2 of the I/O APIC, as on every PC and as the MADT says.
    let io_apic = (0..LEGACY_GSIS).filter(|&gsi| gsi != 2).map(|gsi| match gsi {
        0 => pin_route(0, KVM_IRQCHIP_IOAPIC, 2),
        _ => pin_route(gsi, KVM_IRQCHIP_IOAPIC, gsi),
    });
    pic.chain(io_apic).collect()
}

fn pin_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::events::fake::FakeVm;

    const A: Message = Message { address: 0xfee0_1000, data: 0x41 };
    const B: Message = Message { address: 0xfee0_2000, data: 0x42 };

    fn setup() -> (Arc<FakeVm>, Arc<Interrupts>) {
        let vm = FakeVm::new();
        let interrupts = Interrupts::new(vm.clone()).unwrap();
        (vm, interrupts)
    }

    #[test]
    fn the_legacy_routes_stay_in_every_table() {
        let (vm, interrupts) = setup();
        let pins = |vm: &FakeVm| {
            let routes = vm.routes.lock().unwrap();
            let pins = routes.iter().filter(|route| route.type_ == KVM_IRQ_ROUTING_IRQCHIP);
            // SAFETY: the type says which member of the union is set.
            let mut pins: Vec<_> =
                pins.map(|r| unsafe { (r.gsi, r.u.irqchip.irqchip, r.u.irqchip.pin) }).collect();
            pins.sort_unstable();
            pins
        };
        // A PC's wiring (ACPI 6.5, 5.2.12.5): the kernel's default, but for IRQ 0, which is on the I/O APIC's pin 2.
        let mut expected: Vec<_> = (0..16).map(|gsi| (gsi, gsi / 8, gsi % 8)).collect();
        expected.push((0, 2, 2));
        expected.extend((0..24).filter(|gsi| ![0, 2].contains(gsi)).map(|gsi| (gsi, 2, gsi)));
        expected.sort_unstable();
        assert_eq!(pins(&vm), expected);
        interrupts.msi().unwrap().update(A, false).unwrap();
        assert_eq!(pins(&vm), expected);
    }

    #[test]
    fn each_vector_has_its_own_route_until_it_is_dropped() {
        let (vm, interrupts) = setup();
        let (a, b) = (interrupts.msi().unwrap(), interrupts.msi().unwrap());
        assert_eq!(vm.messages(), []);
        a.update(A, false).unwrap();
        b.update(B, false).unwrap();
        assert_eq!(vm.messages(), [(24, A.address, A.data), (25, B.address, B.data)]);
        a.update(B, false).unwrap();
        assert_eq!(vm.messages()[0], (24, B.address, B.data));
        drop(a);
        let c = interrupts.msi().unwrap();
        c.update(A, false).unwrap();
        assert_eq!(vm.messages(), [(24, A.address, A.data), (25, B.address, B.data)]);
        drop((b, c));
        assert!(vm.irqfds.lock().unwrap().is_empty());
    }

    #[test]
    fn a_masked_vector_becomes_pending_and_fires_once_when_unmasked() {
        let (vm, interrupts) = setup();
        let vector = interrupts.msi().unwrap();
        vector.trigger();
        vector.trigger();
        assert_eq!((vm.raised(24), vector.pending()), (0, true));
        vector.update(A, false).unwrap();
        assert_eq!((vm.raised(24), vector.pending()), (1, false));
        vector.trigger();
        assert_eq!(vm.raised(24), 1);
        vector.update(A, true).unwrap();
        vector.trigger();
        vector.reset();
        vector.update(A, false).unwrap();
        assert_eq!(vm.raised(24), 0);
    }

    #[test]
    fn masking_and_unmasking_does_not_rebuild_the_table() {
        let (vm, interrupts) = setup();
        let vector = interrupts.msi().unwrap();
        vector.update(A, false).unwrap();
        vm.routes.lock().unwrap().clear();
        vector.update(A, true).unwrap();
        vector.update(A, false).unwrap();
        assert!(vm.routes.lock().unwrap().is_empty());
    }
}
