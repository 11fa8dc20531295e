//! The root of the bus: which device answers a configuration or register access.
//!
//! The root assigns the BARs once, as firmware would; the guest may move them. Every access holds the root's
//! lock, so a device is only ever used by one vCPU at a time.

use super::PciDevice;
use super::config::{Bar, ConfigSpace, Identity};
use crate::devices::bus::{Bus, BusDevice};
use crate::devices::{Error, Result};
use crate::vmstate::{self, Bytes, Section, Sections};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The name of the bus in a VM state; that of a device follows it with a dot and the slot's number.
const SECTION: &str = "pci";
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
    /// The address register of configuration mechanism 1.
    address: u32,
    /// What of `windows.mmio32` and `windows.mmio64` is not assigned yet.
    free: [Range<u64>; 2],
    bridge: ConfigSpace,
    /// In slot 1 and up.
    devices: Vec<Slot>,
}

/// The bus itself in a VM state; its devices have sections of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PciRootV1 {
    address: u32,
    bridge: Bytes,
    slots: usize,
}

/// A state that the bus and its devices could be in.
pub struct PciState {
    bus: PciRootV1,
    devices: Vec<Section>,
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
        Arc::new(Mutex::new(PciRoot {
            windows,
            address: 0,
            free,
            bridge: host_bridge(),
            devices: Vec::new(),
        }))
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
        pio.insert("pci-config", CONFIG_PORT, 8, Arc::new(Mutex::new(ConfigPorts(root.clone()))))?;
        mmio.insert("pci-ecam", windows.ecam, ECAM_LEN, Arc::new(Mutex::new(Ecam(root.clone()))))?;
        for Range { start, end } in [windows.mmio32, windows.mmio64] {
            if start < end {
                let window = Arc::new(Mutex::new(Window { root: root.clone(), start }));
                mmio.insert("pci-window", start, end - start, window)?;
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

    /// The state of the bus and its devices, which are paused.
    ///
    /// # Errors
    /// When a state is larger than a section may be.
    pub fn save(&self) -> vmstate::Result<Vec<Section>> {
        let bus = PciRootV1 { address: self.address, bridge: self.bridge.save(), slots: self.devices.len() };
        let devices = self.slots().map(|(name, slot)| slot.device.save(&name));
        std::iter::once(Section::new(SECTION, 1, &bus)).chain(devices).collect()
    }

    /// Takes the state of the bus and its devices out of `sections`, if they could be in it.
    ///
    /// # Errors
    /// When they could not.
    pub fn check(&self, sections: &mut Sections) -> vmstate::Result<PciState> {
        let bus: PciRootV1 = sections.read(SECTION)?;
        if bus.slots != self.devices.len() || !self.bridge.accepts(&bus.bridge) {
            let (theirs, ours) = (bus.slots, self.devices.len());
            return Err(vmstate::Error::mismatch(format!(
                "the snapshot has {theirs} PCI devices, and this machine has {ours}"
            )));
        }
        let check = |(name, slot): (String, &Slot)| {
            let section = sections.take(&name)?;
            slot.device.check(&section).map(|()| section)
        };
        let devices = self.slots().map(check).collect::<vmstate::Result<_>>()?;
        Ok(PciState { bus, devices })
    }

    /// Takes up a state that was checked. All devices are paused, and stay so.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn load(&mut self, state: &PciState) -> vmstate::Result<()> {
        self.address = state.bus.address;
        self.bridge.load(&state.bus.bridge);
        // So that no device stands where another one is going to.
        self.devices.iter_mut().for_each(|slot| slot.device.reset());
        self.devices.iter_mut().zip(&state.devices).try_for_each(|(slot, state)| slot.device.load(state))
    }

    fn slots(&self) -> impl Iterator<Item = (String, &Slot)> {
        (1..).zip(&self.devices).map(|(number, slot)| (format!("{SECTION}.{number}"), slot))
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
struct ConfigPorts(Arc<Mutex<PciRoot>>);

impl PciRoot {
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
        let mut root = lock(&self.0);
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&root.address.to_le_bytes()),
            (4.., _) => match root.target(offset) {
                Some(target) => root.read_config(target, data),
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut root = lock(&self.0);
        if let (0, Ok(address)) = (offset, data.try_into()) {
            root.address = u32::from_le_bytes(address);
        } else if offset >= 4
            && let Some(target) = root.target(offset)
        {
            root.write_config(target, data);
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

#[cfg(test)]
mod tests {
    use super::*;

    const ECAM: u64 = 0xe000_0000;
    const BAR: Bar = Bar { index: 2, size: 0x2000 };

    /// Keeps its registers in a vector; notes pauses and resets.
    struct Probe {
        config: ConfigSpace,
        registers: Vec<u8>,
    }

    impl Probe {
        fn boxed() -> Box<Probe> {
            let mut config = ConfigSpace::new(&Identity {
                vendor: 0x1234,
                device: 0x5678,
                class: 0x123456,
                ..Identity::default()
            });
            config.add_bar(BAR);
            Box::new(Probe { config, registers: vec![0; BAR.size as usize] })
        }
    }

    impl PciDevice for Probe {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }
        fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
            assert_eq!(bar, BAR.index);
            data.copy_from_slice(&self.registers[offset as usize..][..data.len()]);
        }
        fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]) {
            assert_eq!(bar, BAR.index);
            self.registers[offset as usize..][..data.len()].copy_from_slice(data);
        }
        fn reset(&mut self) {
            *self = *Probe::boxed();
        }
        fn pause(&mut self) {}
        fn resume(&mut self) {}
        fn save(&self, name: &str) -> vmstate::Result<Section> {
            Section::new(name, 1, &self.config.save())
        }
        fn check(&self, state: &Section) -> vmstate::Result<()> {
            let fits = self.config.accepts(&state.read()?);
            fits.then_some(()).ok_or_else(|| vmstate::Error::mismatch("another device"))
        }
        fn load(&mut self, state: &Section) -> vmstate::Result<()> {
            self.config.load(&state.read()?);
            Ok(())
        }
    }

    struct Machine {
        root: Arc<Mutex<PciRoot>>,
        pio: Bus,
        mmio: Bus,
    }

    impl Machine {
        fn new(devices: usize) -> Machine {
            let windows = PciWindows {
                mmio32: 0xc000_0800..0xc001_0000,
                mmio64: 1 << 40..(1 << 40) + 0x10_0000,
                ecam: ECAM,
            };
            let root = PciRoot::new(windows);
            for slot in 1..=devices {
                assert_eq!(usize::from(root.lock().unwrap().add(Probe::boxed()).unwrap()), slot);
            }
            let machine = Machine { root, pio: Bus::new(), mmio: Bus::new() };
            PciRoot::attach(&machine.root, &machine.pio, &machine.mmio).unwrap();
            machine
        }

        fn select(&self, address: u32) {
            self.pio.write(0xcf8, &address.to_le_bytes());
        }

        /// Reads the configuration by the ports, `len` bytes at any offset.
        fn inp(&self, slot: u32, offset: u32, len: usize) -> Vec<u8> {
            self.select(1 << 31 | slot << 11 | offset & 0xfc);
            let mut data = vec![0xaa; len];
            self.pio.read(u64::from(0xcfc + offset % 4), &mut data);
            data
        }

        fn in32(&self, slot: u32, offset: u32) -> u32 {
            u32::from_le_bytes(self.inp(slot, offset, 4).try_into().unwrap())
        }

        fn out(&self, slot: u32, offset: u32, data: &[u8]) {
            self.select(1 << 31 | slot << 11 | offset & 0xfc);
            self.pio.write(u64::from(0xcfc + offset % 4), data);
        }

        fn ecam(&self, slot: u64, offset: u64, len: usize) -> Vec<u8> {
            let mut data = vec![0xaa; len];
            self.mmio.read(ECAM + (slot << 15) + offset, &mut data);
            data
        }

        fn load(&self, addr: u64, len: usize) -> Vec<u8> {
            let mut data = vec![0xaa; len];
            self.mmio.read(addr, &mut data);
            data
        }

        fn bar(&self, slot: u32) -> u64 {
            u64::from(self.in32(slot, 0x18) & !0xf) | u64::from(self.in32(slot, 0x1c)) << 32
        }
    }

    #[test]
    fn a_scan_of_the_bus_finds_the_bridge_and_the_devices_and_nothing_else() {
        let machine = Machine::new(2);
        let found: Vec<_> = (0..32).map(|slot| machine.in32(slot, 0)).filter(|&id| id != u32::MAX).collect();
        assert_eq!(found, [0x0d57_8086, 0x5678_1234, 0x5678_1234]);
        assert_eq!(machine.in32(0, 8) >> 8, 0x06_00_00);
        assert_eq!(machine.in32(1, 8) >> 8, 0x12_34_56);
        for address in [0x8001_0800, 0x8000_0900, 0x0000_0800] {
            machine.select(address);
            let mut data = [0; 4];
            machine.pio.read(0xcfc, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}: another bus, another function, or not enabled");
        }
    }

    #[test]
    fn bytes_and_words_of_the_configuration_are_parts_of_its_dwords() {
        let machine = Machine::new(1);
        machine.out(1, 4, &[6, 0]);
        for offset in (0..64).step_by(4) {
            let dword = machine.inp(1, offset, 4);
            assert_eq!(machine.ecam(1, offset.into(), 4), dword);
            for at in 0..4 {
                assert_eq!(machine.inp(1, offset + at, 1), dword[at as usize..][..1]);
                assert_eq!(machine.ecam(1, (offset + at).into(), 1), dword[at as usize..][..1]);
            }
            for at in [0, 2] {
                assert_eq!(machine.inp(1, offset + at, 2), dword[at as usize..][..2]);
                assert_eq!(machine.ecam(1, (offset + at).into(), 2), dword[at as usize..][..2]);
            }
        }
        assert_eq!(machine.ecam(1, 0x100, 4), [0; 4], "no extended capabilities");
        assert_eq!(machine.ecam(5, 0, 4), [0xff; 4]);
    }

    #[test]
    fn byte_writes_change_only_their_byte_and_read_only_bits_stay() {
        let machine = Machine::new(1);
        machine.out(1, 0x3c, &[0x0b]);
        assert_eq!(machine.in32(1, 0x3c), 0x0b, "the interrupt pin stays 0");
        machine.out(1, 0, &[0xff; 4]);
        assert_eq!(machine.in32(1, 0), 0x5678_1234);
        machine.out(1, 4, &[0xff; 4]);
        assert_eq!(machine.in32(1, 4), 0x0406, "memory, master, INTx disable; the status is read-only");
        machine.out(1, 5, &[0]);
        assert_eq!(machine.in32(1, 4), 0x0006);
        machine.select(0x8000_0800);
        machine.pio.write(0xcf9, &[6]);
        assert_eq!(machine.pio_address(), 0x8000_0800, "the reset port is not the address register");
    }

    impl Machine {
        fn pio_address(&self) -> u32 {
            let mut data = [0; 4];
            self.pio.read(0xcf8, &mut data);
            u32::from_le_bytes(data)
        }
    }

    #[test]
    fn writing_ones_to_a_bar_shows_its_size_and_type() {
        let machine = Machine::new(1);
        let before = machine.bar(1);
        machine.out(1, 0x18, &[0xff; 4]);
        machine.out(1, 0x1c, &[0xff; 4]);
        assert_eq!(machine.in32(1, 0x18), 0xffff_e004, "8 KiB, 64 bits, memory, not prefetchable");
        assert_eq!(machine.in32(1, 0x1c), 0xffff_ffff);
        assert_eq!([machine.in32(1, 0x10), machine.in32(1, 0x20), machine.in32(1, 0x30)], [0; 3]);
        machine.out(1, 0x18, &(before as u32).to_le_bytes());
        machine.out(1, 0x1c, &[0; 4]);
        assert_eq!(machine.bar(1), before);
    }

    #[test]
    fn bars_are_assigned_aligned_and_apart_and_overflow_into_the_upper_window() {
        let machine = Machine::new(10);
        let bars: Vec<u64> = (1..=10).map(|slot| machine.bar(slot)).collect();
        assert_eq!(bars[..7], [2, 4, 6, 8, 10, 12, 14].map(|n| 0xc000_0000 + n * 0x1000));
        assert_eq!(bars[7..], [0, 1, 2].map(|n| (1 << 40) + n * BAR.size));
    }

    #[test]
    fn registers_follow_the_bar_and_vanish_with_memory_decoding() {
        let machine = Machine::new(2);
        let bar = machine.bar(1);
        assert_eq!(machine.load(bar, 4), [0xff; 4], "off at power-on");
        machine.out(1, 4, &[2]);
        machine.mmio.write(bar + 0x1ffc, &[1, 2, 3, 4]);
        assert_eq!(machine.load(bar + 0x1ffc, 4), [1, 2, 3, 4]);
        assert_eq!(machine.load(bar + 0x1ffe, 4), [0xff; 4], "across the end");
        assert_eq!(machine.load(machine.bar(2), 1), [0xff], "the other device is off");

        let moved = (1u64 << 40) + 0x8000;
        machine.out(1, 0x18, &(moved as u32).to_le_bytes());
        machine.out(1, 0x1c, &((moved >> 32) as u32).to_le_bytes());
        assert_eq!(machine.load(bar + 0x1ffc, 4), [0xff; 4]);
        assert_eq!(machine.load(moved + 0x1ffc, 4), [1, 2, 3, 4]);

        machine.out(1, 4, &[0]);
        assert_eq!(machine.load(moved + 0x1ffc, 4), [0xff; 4]);
        machine.root.lock().unwrap().reset();
        assert_eq!((machine.bar(1), machine.in32(1, 4)), (bar, 0));
    }

    #[test]
    fn a_full_bus_or_window_refuses_devices() {
        let root = PciRoot::new(PciWindows { mmio32: 0..0, mmio64: 0x1000..0x5000, ecam: ECAM });
        let mut root = root.lock().unwrap();
        assert_eq!(root.add(Probe::boxed()).unwrap(), 1);
        assert!(matches!(root.add(Probe::boxed()), Err(Error::NoWindow(0x2000))));
        let root = Machine::new(31).root;
        assert!(matches!(root.lock().unwrap().add(Probe::boxed()), Err(Error::NoSlot)));
        assert_eq!(root.lock().unwrap().functions().count(), 32);
    }
}
