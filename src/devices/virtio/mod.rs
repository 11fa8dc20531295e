//! Virtio 1.2 devices: what they have in common.
//!
//! ```text
//!   pci: registers, feature bits, status ──▶ VirtioDevice::start(queues) ──▶ drive's thread
//!            ▲                                VirtioDevice::stop() ◀── the queues come back
//!            └── link: status, interrupts ◀── (any thread)
//! ```
//!
//! A queue is always owned by one side: by the transport while the device is stopped (so its state can be read,
//! changed and saved), by the device's thread while it runs. Reset, pause and resume are stops and starts.

pub mod blk;
pub mod chain;
pub mod link;
pub mod pci;
pub mod ring;

pub use link::DriverLink;
pub use ring::Ring;

use crate::devices::Result;
use chain::Held;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Feature bits that all our devices offer (virtio 1.2, chapter 6).
pub const COMMON_FEATURES: u64 = VERSION_1 | EVENT_IDX | INDIRECT_DESC;
/// The device follows virtio 1.0 or later; without it nothing works.
pub const VERSION_1: u64 = 1 << 32;
/// The rings say from which entry on a side wants to be told.
pub const EVENT_IDX: u64 = 1 << 29;
/// A descriptor may point to a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;

/// A device behind a transport.
pub trait VirtioDevice: Send {
    /// Its type: 2 is a block device (virtio 1.2, chapter 5).
    fn device_type(&self) -> u16;

    /// Class, subclass and programming interface on a PCI bus.
    fn pci_class(&self) -> u32;

    /// The feature bits of its type.
    fn features(&self) -> u64;

    /// The greatest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration space; zeros past the end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes up the queues. `features` are those that the driver accepted.
    ///
    /// # Errors
    /// When the device's thread is gone; the queues are lost then.
    fn start(&mut self, queues: Vec<StartedQueue>, features: u64, link: &Arc<DriverLink>) -> Result<()>;

    /// Takes no more requests, waits for those in flight and gives the queues back: on return no byte of guest
    /// memory is written any more. Does nothing to a device that is stopped.
    fn stop(&mut self) -> Vec<StartedQueue>;
}

/// A queue that the driver has enabled.
pub struct StartedQueue {
    /// Its number.
    pub index: u16,
    /// The rings.
    pub ring: Ring,
    /// Written when the driver has added something.
    pub kick: EventFd,
    /// Chains that were taken from the ring and are to be served again: where the guest is stopped because their
    /// requests failed.
    pub held: Vec<Held>,
}
