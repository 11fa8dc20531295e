//! What is where in the guest's address spaces, for users to look at.

use crate::vm::layout;
use crate::vm::machine::Machine;

/// A range of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRange {
    /// Its first address.
    pub first: u64,
    /// Its last address.
    pub last: u64,
    /// What answers there.
    pub name: &'static str,
    /// It is memory, not registers.
    pub ram: bool,
}

/// Bytes of each interrupt controller's registers.
const PAGE: u64 = 4096;

impl Machine {
    /// Guest physical memory, in the order of addresses.
    pub fn memory_map(&self) -> Vec<MappedRange> {
        let ram = self.layout.ram().into_iter().filter(|(_, len)| *len > 0);
        let ram = ram.map(|(first, len)| range(first, first + (len - 1), "ram", true));
        let chips = [(layout::IOAPIC, "kvm-ioapic"), (layout::LAPIC, "kvm-apic")];
        let chips = chips.map(|(first, name)| range(first, first + (PAGE - 1), name, false));
        let devices = registers(self.shared.mmio.ranges());
        sorted(ram.chain(chips).chain(devices))
    }

    /// I/O ports, in the order of addresses.
    pub fn port_map(&self) -> Vec<MappedRange> {
        let chips = [
            (0x20, 0x21, "kvm-pic"),
            (0x40, 0x43, "kvm-pit"),
            (0xa0, 0xa1, "kvm-pic"),
            (0x4d0, 0x4d1, "kvm-elcr"),
        ];
        let bios = self.shared.bios_port.map(u64::from).map(|port| (port, port, "bios-call"));
        let devices = self.shared.ports.ranges().into_iter();
        sorted(registers(devices.chain(chips).chain(bios)))
    }
}

fn registers<'a>(
    ranges: impl IntoIterator<Item = (u64, u64, &'static str)> + 'a,
) -> impl Iterator<Item = MappedRange> + 'a {
    ranges.into_iter().map(|(first, last, name)| range(first, last, name, false))
}

fn range(first: u64, last: u64, name: &'static str, ram: bool) -> MappedRange {
    MappedRange { first, last, name, ram }
}

fn sorted(ranges: impl Iterator<Item = MappedRange>) -> Vec<MappedRange> {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_by_key(|range| range.first);
    ranges
}
