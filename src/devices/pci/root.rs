//! The root of the bus: which device answers a configuration or register access.
//!
//! The root assigns the BARs once, as firmware would; the guest may move them. Every access holds the root's
//! lock, so a device is only ever used by one vCPU at a time.

use super::PciDevice;
use super::config::{Bar, ConfigSpace, Identity};
use crate::devices::bus::{Bus, BusDevice};
use crate::devices::{Error, Result};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Devices of a bus, the host bridge among them.
const SLOTS: usize = 32;
/// The ports of configuration mechanism 1: address register and data register.
const CONFIG_PORT: u64 = 0xcf8;
/// ECAM of one bus, in bytes.
const ECAM_LEN: u64 = 1 << 20;

/// Where the bus appears in the guest's physical address space.
#[derive(Clone, Debug)]
pub struct PciWindows {
    /// BARs below 4 GiB.
    pub mmio32: Range<u64>,
    /// BARs above 4 GiB.
    pub mmio64: Range<u64>,
    /// The configuration spaces of bus 0, 1 MiB.
    pub ecam: u64,
}

/// The PCI bus.
pub struct PciRoot {
    windows: PciWindows,
    /// What of `windows.mmio32` and `windows.mmio64` is not assigned yet.
    free: [Range<u64>; 2],
    bridge: ConfigSpace,
    /// In slot 1 and up.
    devices: Vec<Slot>,
}

struct Slot {
    device: Box<dyn PciDevice>,
    /// The BARs' addresses at power-on.
    assigned: Vec<(Bar, u64)>,
}

impl PciRoot {
    /// A bus with nothing but its host bridge.
    pub fn new(windows: PciWindows) -> Arc<Mutex<PciRoot>> {
        let free = [windows.mmio32.clone(), windows.mmio64.clone()];
        Arc::new(Mutex::new(PciRoot { windows, free, bridge: host_bridge(), devices: Vec::new() }))
    }

    /// Puts a device into the next slot, whose number it returns, and assigns its BARs.
    ///
    /// # Errors
    /// When there is no slot or no room in the windows.
    pub fn add(&mut self, device: Box<dyn PciDevice>) -> Result<u8> {
        let slot = self.devices.len() + 1;
        if slot == SLOTS {
            return Err(Error::NoSlot);
        }
        let bars = device.config().bars().to_vec();
        let assigned =
            bars.into_iter().map(|bar| Ok((bar, self.assign(bar)?))).collect::<Result<Vec<_>>>()?;
        let mut slot_ = Slot { device, assigned };
        slot_.place();
        self.devices.push(slot_);
        Ok(slot as u8)
    }

    /// Room for a BAR: below 4 GiB, where every guest can use it, while there is some.
    fn assign(&mut self, bar: Bar) -> Result<u64> {
        for free in &mut self.free {
            let Some(address) = free.start.checked_next_multiple_of(bar.size) else { continue };
            if address.checked_add(bar.size).is_some_and(|end| end <= free.end) {
                free.start = address + bar.size;
                return Ok(address);
            }
        }
        Err(Error::NoWindow(bar.size))
    }

    /// Makes the bus visible: its configuration ports, ECAM and the windows of the BARs.
    ///
    /// # Errors
    /// When other devices have some of the addresses.
    pub fn attach(root: &Arc<Mutex<PciRoot>>, pio: &Bus, mmio: &Bus) -> Result<()> {
        let windows = lock(root).windows.clone();
        let ports = ConfigPorts { root: root.clone(), address: 0 };
        pio.insert(CONFIG_PORT, 8, Arc::new(Mutex::new(ports)))?;
        mmio.insert(windows.ecam, ECAM_LEN, Arc::new(Mutex::new(Ecam(root.clone()))))?;
        for Range { start, end } in [windows.mmio32, windows.mmio64] {
            if start < end {
                mmio.insert(start, end - start, Arc::new(Mutex::new(Window { root: root.clone(), start })))?;
            }
        }
        Ok(())
    }

    /// System reset: every device as at power-on, its BARs where they were first.
    pub fn reset(&mut self) {
        self.bridge = host_bridge();
        for slot in &mut self.devices {
            slot.device.reset();
            slot.place();
        }
    }

    /// Stops all devices: on return no request is in flight.
    pub fn pause(&mut self) {
        self.devices.iter_mut().for_each(|slot| slot.device.pause());
    }

    /// Goes on after [`PciRoot::pause`].
    pub fn resume(&mut self) {
        self.devices.iter_mut().for_each(|slot| slot.device.resume());
    }

    /// The slots in use with their configuration spaces.
    pub fn functions(&self) -> impl Iterator<Item = (u8, &ConfigSpace)> {
        let bridge = std::iter::once(&self.bridge);
        (0..).zip(bridge.chain(self.devices.iter().map(|slot| slot.device.config())))
    }

    fn read_config(&mut self, at: ConfigAddress, data: &mut [u8]) {
        match at.slot {
            0 => self.bridge.read(at.offset, data),
            slot => match self.devices.get_mut(slot - 1) {
                Some(slot) => slot.device.read_config(at.offset, data),
                None => data.fill(0xff),
            },
        }
    }

    fn write_config(&mut self, at: ConfigAddress, data: &[u8]) {
        match at.slot {
            0 => self.bridge.write(at.offset, data),
            slot => {
                if let Some(slot) = self.devices.get_mut(slot - 1) {
                    slot.device.write_config(at.offset, data);
                }
            }
        }
    }

    /// The device that decodes all of an access, the BAR, and the offset in it.
    fn decode(&mut self, addr: u64, len: usize) -> Option<(&mut dyn PciDevice, usize, u64)> {
        self.devices.iter_mut().find_map(|slot| {
            let (bar, offset) = bar_at(slot.device.config(), addr, len as u64)?;
            Some((&mut *slot.device as &mut dyn PciDevice, bar, offset))
        })
    }
}

impl Slot {
    fn place(&mut self) {
        for &(bar, address) in &self.assigned {
            self.device.config_mut().set_bar_address(bar, address);
        }
    }
}

fn bar_at(config: &ConfigSpace, addr: u64, len: u64) -> Option<(usize, u64)> {
    if !config.decodes_memory() {
        return None;
    }
    config.bars().iter().find_map(|&bar| {
        let offset = addr.checked_sub(config.bar_address(bar))?;
        (offset < bar.size && len <= bar.size - offset).then_some((bar.index, offset))
    })
}

/// A host bridge of a kind that operating systems have no special rules for.
fn host_bridge() -> ConfigSpace {
    ConfigSpace::new(&Identity { vendor: 0x8086, device: 0x0d57, class: 0x06_00_00, ..Identity::default() })
}

fn lock(root: &Mutex<PciRoot>) -> MutexGuard<'_, PciRoot> {
    root.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the configuration spaces of the bus.
#[derive(Clone, Copy)]
struct ConfigAddress {
    slot: usize,
    /// In bytes: below 256 by the ports, below 4096 by ECAM.
    offset: usize,
}

/// Configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2).
struct ConfigPorts {
    root: Arc<Mutex<PciRoot>>,
    address: u32,
}

impl ConfigPorts {
    /// What the data register shows at byte `port` (4 to 7); only function 0 of bus 0 exists.
    fn target(&self, port: u64) -> Option<ConfigAddress> {
        let enabled = self.address >> 31 == 1;
        let bus_0_function_0 = self.address >> 16 & 0xff == 0 && self.address >> 8 & 7 == 0;
        (enabled && bus_0_function_0).then_some(ConfigAddress {
            slot: (self.address >> 11 & 31) as usize,
            offset: (self.address & 0xfc) as usize + port as usize - 4,
        })
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (4.., _) => match self.target(offset) {
                Some(target) => lock(&self.root).read_config(target, data),
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(address)) = (offset, data.try_into()) {
            self.address = u32::from_le_bytes(address);
        } else if offset >= 4
            && let Some(target) = self.target(offset)
        {
            lock(&self.root).write_config(target, data);
        }
    }
}

/// The enhanced configuration access mechanism (PCI Express 3.0, 7.2.2), bus 0.
struct Ecam(Arc<Mutex<PciRoot>>);

impl Ecam {
    /// An access inside one aligned dword of function 0 of a slot.
    fn target(offset: u64, len: usize) -> Option<ConfigAddress> {
        let inside = offset as usize % 4 + len <= 4 && offset >> 12 & 7 == 0;
        inside.then_some(ConfigAddress { slot: (offset >> 15) as usize, offset: (offset & 0xfff) as usize })
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match Ecam::target(offset, data.len()) {
            Some(target) => lock(&self.0).read_config(target, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(target) = Ecam::target(offset, data.len()) {
            lock(&self.0).write_config(target, data);
        }
    }
}

/// One of the windows of the BARs.
struct Window {
    root: Arc<Mutex<PciRoot>>,
    start: u64,
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match lock(&self.root).decode(self.start + offset, data.len()) {
            Some((device, bar, offset)) => device.read_bar(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((device, bar, offset)) = lock(&self.root).decode(self.start + offset, data.len()) {
            device.write_bar(bar, offset, data);
        }
    }
}
