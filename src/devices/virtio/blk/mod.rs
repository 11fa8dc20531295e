//! The virtio block device (virtio 1.2, section 5.2).

use crate::block::drive::Drive;
use crate::devices::events::VmEvents;
use crate::devices::interrupts::Interrupts;
use crate::devices::pci::PciDevice;
use crate::devices::{Error, Result};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// What a disk shows of itself.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// Bytes of a logical block: a power of two from 512 to 32768.
    pub logical_block_size: u32,
    /// Bytes of a physical block: a power of two, at least the logical block.
    pub physical_block_size: u32,
}

impl Default for BlkOptions {
    fn default() -> BlkOptions {
        BlkOptions { serial: String::new(), logical_block_size: 512, physical_block_size: 512 }
    }
}

/// The control path's hold on a disk that is plugged in.
#[derive(Clone)]
pub struct BlkHandle {}

impl BlkHandle {
    /// Tells the guest that the size of the drive has changed.
    pub fn config_changed(&self) {}
}

/// A disk on the PCI bus, for [`crate::devices::pci::PciRoot::add`].
///
/// # Errors
/// When an option makes no sense, or the host has no eventfds left.
pub fn pci_disk(
    _drive: Arc<Drive>,
    _memory: GuestMemoryMmap,
    _interrupts: &Arc<Interrupts>,
    _vm: Arc<dyn VmEvents>,
    _options: &BlkOptions,
) -> Result<(Box<dyn PciDevice>, BlkHandle)> {
    Err(Error::Option("under construction".into()))
}
