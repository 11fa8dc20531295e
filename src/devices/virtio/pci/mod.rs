//! Virtio over PCI, modern devices only (virtio 1.2, 4.1): one BAR with all registers, interrupts by MSI-X.
//!
//! ```text
//!   BAR 0   0000 common configuration     1000 interrupt status     2000 device configuration
//!           3000 notifications, 4 bytes a queue      4000 MSI-X table      5000 MSI-X pending bits
//! ```
//!
//! A notification is an ioeventfd wherever the guest has put the BAR; where KVM cannot have one, the write
//! comes here and is passed on.

mod common;
mod state;

#[cfg(test)]
mod tests;

use super::{DriverLink, StartedQueue, VirtioDevice};
use crate::devices::events::VmEvents;
use crate::devices::interrupts::Interrupts;
use crate::devices::pci::{Bar, ConfigSpace, Identity, Msix, PciDevice};
use crate::devices::{Error, Result};
use crate::vmstate::{self, Section};
use common::Common;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The only BAR.
const BAR: Bar = Bar { index: 0, size: 0x8000 };
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;
const REGION_LEN: u64 = 0x1000;
/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// Identifier of a vendor's capability; virtio's all have it.
const VENDOR_CAPABILITY: u8 = 9;
/// Bytes of a virtio capability, from its identifier on.
const CAPABILITY_LEN: u8 = 16;
/// What a capability points to (virtio 1.2, 4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;

/// A virtio device in a PCI slot.
pub struct VirtioPci {
    config: ConfigSpace,
    /// `config` as at power-on.
    power_on: ConfigSpace,
    msix: Msix,
    /// Offset of the capability by which the configuration space reaches the BAR.
    window: usize,
    common: Common,
    kicks: Vec<Kick>,
    device: Box<dyn VirtioDevice>,
    link: Arc<DriverLink>,
    memory: GuestMemoryMmap,
    vm: Arc<dyn VmEvents>,
    /// Queues that wait for [`PciDevice::resume`].
    parked: Vec<StartedQueue>,
    paused: bool,
}

/// A queue's notification.
struct Kick {
    event: EventFd,
    /// Where KVM watches for it.
    registered: Option<u64>,
}

impl VirtioPci {
    /// Puts `device` behind PCI registers.
    ///
    /// # Errors
    /// When the host has no eventfds left or KVM refuses the irqfds.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupts: &Arc<Interrupts>,
        vm: Arc<dyn VmEvents>,
    ) -> Result<VirtioPci> {
        let sizes = device.queue_sizes().to_vec();
        let mut config = identity(&*device);
        config.add_bar(BAR);
        let tables = [MSIX_TABLE as u32, MSIX_PENDING as u32];
        let msix = Msix::new(&mut config, interrupts, sizes.len() as u16 + 1, BAR.index as u32, tables)?;
        let window = add_capabilities(&mut config);
        let link = Arc::new(DriverLink::new(msix.vectors().clone(), sizes.len()));
        Ok(VirtioPci {
            power_on: config.clone(),
            config,
            msix,
            window,
            common: Common::new(&sizes),
            kicks: sizes.iter().map(|_| Kick::new()).collect::<Result<_>>()?,
            device,
            link,
            memory,
            vm,
            parked: Vec::new(),
            paused: false,
        })
    }

    /// The device's way to its driver.
    pub fn link(&self) -> &Arc<DriverLink> {
        &self.link
    }

    /// Starts the parked queues unless the device is paused.
    fn start(&mut self) {
        if self.paused || self.parked.is_empty() {
            return;
        }
        let queues = std::mem::take(&mut self.parked);
        if let Err(error) = self.device.start(queues, self.common.features(), &self.link) {
            eprintln!("cowvm: a virtio device cannot start: {error}");
            self.link.break_device();
        }
    }

    /// The reset that the driver asks for; the configuration space stays.
    fn reset_device(&mut self) {
        self.device.stop();
        self.parked.clear();
        self.common.reset();
        self.link.reset();
    }

    /// Lets KVM watch for kicks where the BAR is now.
    fn place_kicks(&mut self) {
        let base = self.config.decodes_memory().then(|| self.config.bar_address(BAR));
        for (queue, kick) in (0..).zip(&mut self.kicks) {
            let offset = NOTIFY + u64::from(NOTIFY_MULTIPLIER) * queue;
            kick.place(&*self.vm, base.and_then(|base| base.checked_add(offset)));
        }
    }

    fn notify(&mut self, offset: u64) {
        let queue = offset / u64::from(NOTIFY_MULTIPLIER);
        if let Some(kick) = self.kicks.get(queue as usize) {
            // A full counter is a kick too.
            let _ = kick.event.write(1);
        }
    }

    /// The access to the BAR that the guest asks for by the configuration space (virtio 1.2, 4.1.4.9): offset
    /// and length.
    fn window_target(&self) -> Option<(u64, usize)> {
        let bar = self.config.u32(self.window + 4) & 0xff;
        let offset = u64::from(self.config.u32(self.window + 8));
        let len = self.config.u32(self.window + 12);
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(u64::from(len));
        let inside = bar == BAR.index as u32 && offset + u64::from(len) <= BAR.size;
        (fits && inside).then_some((offset, len as usize))
    }

    /// Whether an access to the configuration space touches the window's data.
    fn touches_window(&self, offset: usize) -> bool {
        let data = self.window + usize::from(CAPABILITY_LEN);
        (data..data + 4).contains(&offset)
    }
}

impl PciDevice for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if self.touches_window(offset)
            && let Some((target, len)) = self.window_target()
        {
            let mut value = [0; 4];
            self.read_bar(BAR.index, target, &mut value[..len]);
            self.config.set(self.window + usize::from(CAPABILITY_LEN), &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        if self.touches_window(offset) {
            if let Some((target, len)) = self.window_target() {
                let value = self.config.u32(self.window + usize::from(CAPABILITY_LEN)).to_le_bytes();
                self.write_bar(BAR.index, target, &value[..len]);
            }
            return;
        }
        self.msix.config_written(&self.config, offset);
        self.place_kicks();
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        let within = offset % REGION_LEN;
        data.fill(0);
        match offset - within {
            COMMON => self.read_common(within, data),
            ISR if within == 0 => data[0] = self.link.take_isr(),
            DEVICE => self.device.read_config(within, data),
            MSIX_TABLE => self.msix.read_table(within, data),
            MSIX_PENDING => self.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        let within = offset % REGION_LEN;
        match offset - within {
            COMMON => self.write_common(within, data),
            NOTIFY => self.notify(within),
            MSIX_TABLE => self.msix.write_table(&self.config, within, data),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.reset_device();
        self.config = self.power_on.clone();
        self.msix.reset();
        self.place_kicks();
    }

    fn pause(&mut self) {
        self.paused = true;
        let stopped = self.device.stop();
        self.parked.extend(stopped);
    }

    fn resume(&mut self) {
        self.paused = false;
        self.start();
    }

    fn save(&self, name: &str) -> vmstate::Result<Section> {
        Section::new(name, 1, &self.save_state())
    }

    fn check(&self, state: &Section) -> vmstate::Result<()> {
        self.check_state(&state.read()?)
    }

    fn load(&mut self, state: &Section) -> vmstate::Result<()> {
        self.load_state(&state.read()?);
        Ok(())
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.device.stop();
        self.kicks.iter_mut().for_each(|kick| kick.place(&*self.vm, None));
    }
}

impl Kick {
    fn new() -> Result<Kick> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::host("eventfd"))?;
        Ok(Kick { event, registered: None })
    }

    /// Moves the place where KVM watches. A refusal (another device is there) leaves it nowhere.
    fn place(&mut self, vm: &dyn VmEvents, addr: Option<u64>) {
        if self.registered == addr {
            return;
        }
        if let Some(old) = self.registered.take() {
            // It was registered, so it can be removed.
            let _ = vm.remove_ioeventfd(&self.event, old);
        }
        self.registered = addr.filter(|&addr| vm.add_ioeventfd(&self.event, addr).is_ok());
    }
}

/// The header of a device's configuration space (virtio 1.2, 4.1.2).
fn identity(device: &dyn VirtioDevice) -> ConfigSpace {
    ConfigSpace::new(&Identity {
        vendor: 0x1af4,
        device: 0x1040 + device.device_type(),
        revision: 1,
        class: device.pci_class(),
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    })
}

/// Adds the capabilities that point into the BAR; returns the offset of the one that is a window on it.
fn add_capabilities(config: &mut ConfigSpace) -> usize {
    for (kind, offset) in [(CAP_COMMON, COMMON), (CAP_ISR, ISR), (CAP_DEVICE, DEVICE)] {
        config.add_capability(VENDOR_CAPABILITY, &capability(kind, offset, REGION_LEN, &[]));
    }
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    config.add_capability(VENDOR_CAPABILITY, &capability(CAP_NOTIFY, NOTIFY, REGION_LEN, &multiplier));
    let window = config.add_capability(VENDOR_CAPABILITY, &capability(CAP_PCI, 0, 0, &[0; 4]));
    config.allow(window + 4, &[0xff]);
    config.allow(window + 8, &[0xff; 12]);
    window
}

/// A capability without its first two bytes: length, kind, BAR, identifier, padding, offset, length, more.
fn capability(kind: u8, offset: u64, len: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![CAPABILITY_LEN + more.len() as u8, kind, BAR.index as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    body
}
