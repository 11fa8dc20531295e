//! The devices that every PC has had since 1984, as far as today's guests still look for them.

pub mod cmos;
pub mod i8042;
pub mod serial;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

/// What a device may do to the whole machine. Both return at once; the machine follows.
pub trait PowerControl: Send + Sync {
    /// Resets the machine.
    fn reset(&self);
    /// Switches the machine off.
    fn power_off(&self);
}

/// An interrupt line behind an irqfd.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}
