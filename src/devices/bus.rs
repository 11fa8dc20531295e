//! An address space of the guest (ports, or memory without RAM behind it) and the devices in it.
//!
//! Ranges never overlap. Looking one up takes a shared lock, held only for the lookup: a device may insert
//! others. An access that no device claims in full reads as all ones and writes nowhere, as on a real bus.

use crate::devices::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A device that answers accesses to its registers.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the base at which the device was inserted.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` (1, 2, 4 or 8 bytes) at `offset` from the base.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// One address space.
#[derive(Default)]
pub struct Bus {
    /// By first address.
    ranges: RwLock<BTreeMap<u64, Range>>,
}

#[derive(Clone)]
struct Range {
    name: &'static str,
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Gives `device` the `len` addresses from `base` on. A device may have several ranges. `name` is for users.
    ///
    /// # Errors
    /// When the range is empty, passes 2^64, or overlaps another.
    pub fn insert(
        &self,
        name: &'static str,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<()> {
        let last = len.checked_sub(1).and_then(|len| base.checked_add(len));
        let last = last.ok_or(Error::BadRange { base, len })?;
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&start, range)) = ranges.range(..=last).next_back()
            && start + (range.len - 1) >= base
        {
            return Err(Error::Overlap { base, end: last });
        }
        ranges.insert(base, Range { name, len, device });
        Ok(())
    }

    /// All ranges in the order of their addresses: first, last, name.
    pub fn ranges(&self) -> Vec<(u64, u64, &'static str)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().map(|(&base, range)| (base, base + (range.len - 1), range.name)).collect()
    }

    /// Reads `data.len()` bytes at `addr`; all ones where no device claims them.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                // What a device does not answer reads as ones too.
                data.fill(0xff);
                device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `addr`; ignored where no device claims it.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(addr, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    /// The device that claims all of an access, and the access's offset in its range.
    fn find(&self, addr: u64, len: usize) -> Option<(u64, Arc<Mutex<dyn BusDevice>>)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, range) = ranges.range(..=addr).next_back()?;
        let offset = addr - base;
        let room = range.len.checked_sub(offset)?;
        (len as u64 <= room && room > 0).then(|| (offset, range.device.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the offset; keeps the last write.
    #[derive(Default)]
    struct Probe {
        written: Option<(u64, Vec<u8>)>,
    }

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written = Some((offset, data.to_vec()));
        }
    }

    fn read(bus: &Bus, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        bus.read(addr, &mut data);
        data
    }

    #[test]
    fn accesses_reach_the_device_with_offsets_from_its_base() {
        let (bus, probe) = (Bus::new(), Arc::new(Mutex::new(Probe::default())));
        bus.insert("probe", 0x70, 2, probe.clone()).unwrap();
        assert_eq!(read(&bus, 0x71, 1), [1]);
        bus.write(0x70, &[1, 2]);
        assert_eq!(probe.lock().unwrap().written.take(), Some((0, vec![1, 2])));
    }

    #[test]
    fn what_nobody_claims_in_full_reads_as_ones_and_writes_nowhere() {
        let (bus, probe) = (Bus::new(), Arc::new(Mutex::new(Probe::default())));
        bus.insert("probe", 0x70, 2, probe.clone()).unwrap();
        for (addr, len) in [(0x6f, 1), (0x6f, 2), (0x71, 2), (0x72, 1), (0, 8), (u64::MAX, 1)] {
            assert_eq!(read(&bus, addr, len), vec![0xff; len]);
            bus.write(addr, &vec![0; len]);
        }
        assert_eq!(probe.lock().unwrap().written, None);
    }

    #[test]
    fn overlapping_and_impossible_ranges_are_refused() {
        let (bus, probe) = (Bus::new(), Arc::new(Mutex::new(Probe::default())));
        bus.insert("probe", 0x100, 0x10, probe.clone()).unwrap();
        for (base, len) in [(0x100, 0x10), (0xff, 2), (0x10f, 1), (0x104, 4), (0, u64::MAX)] {
            assert!(
                matches!(bus.insert("probe", base, len, probe.clone()), Err(Error::Overlap { .. })),
                "{base:#x}"
            );
        }
        for (base, len) in [(0, 0), (u64::MAX, 2)] {
            assert!(matches!(bus.insert("probe", base, len, probe.clone()), Err(Error::BadRange { .. })));
        }
        bus.insert("probe", 0xff, 1, probe.clone()).unwrap();
        bus.insert("probe", 0x110, 1, probe.clone()).unwrap();
        bus.insert("probe", u64::MAX, 1, probe).unwrap();
        assert_eq!(read(&bus, u64::MAX, 1), [0]);
    }
}
