//! The virtio block device (virtio 1.2, section 5.2).
//!
//! ```text
//!   vCPU threads                        drive's thread
//!   VirtioBlk ── start(queue) ────────▶ worker: kick ─▶ pop ─▶ request ─▶ drive ─▶ status ─▶ used ─▶ interrupt
//!             ◀── stop(): the queue ──     many requests in flight, in any order
//! ```

mod config;
mod request;
mod worker;

#[cfg(test)]
mod tests;

use crate::block::drive::Drive;
use crate::devices::events::VmEvents;
use crate::devices::interrupts::Interrupts;
use crate::devices::pci::PciDevice;
use crate::devices::virtio::pci::VirtioPci;
use crate::devices::virtio::{DriverLink, StartedQueue, VirtioDevice};
use crate::devices::{Error, Result};
use request::Limits;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;
use worker::WorkerHandle;

/// Type of block devices (virtio 1.2, chapter 5).
const DEVICE_TYPE: u16 = 2;
/// Mass storage, SCSI: what drivers expect of a virtio disk.
const PCI_CLASS: u32 = 0x01_00_00;
/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// Most bytes of a logical block, and of a physical one.
const MAX_LOGICAL: u32 = 32768;
const MAX_PHYSICAL: u32 = 2 << 20;
/// Bytes of a serial number.
const SERIAL_LEN: usize = 20;

/// What a disk shows of itself.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// Bytes of a logical block: a power of two from 512 to 32768.
    pub logical_block_size: u32,
    /// Bytes of a physical block: a power of two from the logical block to 2 MiB.
    pub physical_block_size: u32,
}

impl Default for BlkOptions {
    fn default() -> BlkOptions {
        BlkOptions { serial: String::new(), logical_block_size: 512, physical_block_size: 512 }
    }
}

impl BlkOptions {
    /// The same with the blocks of a device of the host, as far as a guest can have such.
    #[must_use]
    pub fn with_blocks(self, logical: u32, physical: u32) -> BlkOptions {
        let logical_block_size = logical.clamp(512, MAX_LOGICAL);
        let physical_block_size = physical.clamp(logical_block_size, MAX_PHYSICAL);
        BlkOptions { logical_block_size, physical_block_size, ..self }
    }

    fn check(&self) -> Result<()> {
        let (logical, physical) = (self.logical_block_size, self.physical_block_size);
        if self.serial.len() > SERIAL_LEN {
            return Err(Error::Option(format!(
                "the serial number '{}' is longer than {SERIAL_LEN} bytes",
                self.serial
            )));
        }
        if !logical.is_power_of_two() || !(512..=MAX_LOGICAL).contains(&logical) {
            let message =
                format!("the logical block size must be a power of two from 512 to 32768, not {logical}");
            return Err(Error::Option(message));
        }
        if !physical.is_power_of_two() || !(logical..=MAX_PHYSICAL).contains(&physical) {
            return Err(Error::Option(format!(
                "the physical block size must be a power of two from {logical} to 2097152, not {physical}"
            )));
        }
        Ok(())
    }
}

/// The control path's hold on a disk that is plugged in.
#[derive(Clone)]
pub struct BlkHandle {
    link: Arc<DriverLink>,
}

impl BlkHandle {
    /// Tells the guest that the drive has another size, or another medium.
    pub fn config_changed(&self) {
        self.link.config_changed();
    }
}

/// A disk on the PCI bus, for [`crate::devices::pci::PciRoot::add`]. Before its drive is closed it must be
/// paused or dropped.
///
/// # Errors
/// When an option makes no sense, or the host has no eventfds left.
pub fn pci_disk(
    drive: Arc<Drive>,
    memory: GuestMemoryMmap,
    interrupts: &Arc<Interrupts>,
    vm: Arc<dyn VmEvents>,
    options: &BlkOptions,
) -> Result<(Box<dyn PciDevice>, BlkHandle)> {
    let device = VirtioBlk::new(drive, memory.clone(), options)?;
    let device = VirtioPci::new(Box::new(device), memory, interrupts, vm)?;
    let handle = BlkHandle { link: device.link().clone() };
    Ok((Box::new(device), handle))
}

/// The device.
pub struct VirtioBlk {
    drive: Arc<Drive>,
    memory: GuestMemoryMmap,
    options: BlkOptions,
    workers: Vec<WorkerHandle>,
}

impl VirtioBlk {
    /// A device that shows `drive`.
    ///
    /// # Errors
    /// When an option makes no sense.
    pub fn new(drive: Arc<Drive>, memory: GuestMemoryMmap, options: &BlkOptions) -> Result<VirtioBlk> {
        options.check()?;
        Ok(VirtioBlk { drive, memory, options: options.clone(), workers: Vec::new() })
    }

    fn limits(&self, features: u64) -> Limits {
        let mut serial = [0; SERIAL_LEN];
        serial[..self.options.serial.len()].copy_from_slice(self.options.serial.as_bytes());
        Limits { features, serial, read_only: self.drive.read_only(), may_unmap: self.drive.options().unmap }
    }
}

impl VirtioDevice for VirtioBlk {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn pci_class(&self) -> u32 {
        PCI_CLASS
    }

    fn features(&self) -> u64 {
        config::features(self.drive.read_only())
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = config::bytes(self.drive.size(), &self.options);
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn start(&mut self, queues: Vec<StartedQueue>, features: u64, link: &Arc<DriverLink>) -> Result<()> {
        for queue in queues {
            let handle =
                WorkerHandle::start(&self.drive, self.memory.clone(), queue, self.limits(features), link)?;
            self.workers.push(handle);
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<StartedQueue> {
        self.workers.iter().for_each(WorkerHandle::ask_to_stop);
        self.workers.drain(..).filter_map(|worker| worker.join(&self.drive)).collect()
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        self.stop();
    }
}
