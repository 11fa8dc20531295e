//! The guest's physical address map.
//!
//! ```text
//!   0000_0000  RAM: real-mode area; at boot also GDT, boot parameters, page tables, command line
//!   0009_fc00  EBDA                                                          reserved
//!   000a_0000  nothing (where VGA and option ROMs would be)
//!   000e_0000  ACPI tables                                                   reserved
//!   000f_0000  BIOS                                                          reserved
//!   0010_0000  RAM, up to 3 GiB of it
//!   c000_0000  32-bit PCI window
//!   e000_0000  ECAM of the one PCI bus                                       reserved
//!   fec0_0000  I/O APIC
//!   fee0_0000  local APICs
//!   fffb_c000  page tables and TSS that KVM wants for real mode on old CPUs  reserved
//! 1_0000_0000  RAM beyond 3 GiB
//!              64-bit PCI window, at the next multiple of its size
//! ```
//!
//! Invariant: RAM and windows never overlap, and all ends lie below the CPU's physical address limit.

use std::ops::Range;

/// End of the real-mode area that the guest may use.
pub const EBDA_START: u64 = 0x0009_fc00;
/// End of what real mode can use below the video memory.
pub const EBDA_END: u64 = 0x000a_0000;
/// Where the RSDP and all ACPI tables are.
pub const ACPI_START: u64 = 0x000e_0000;
/// Where the BIOS is; the end of the ACPI tables.
pub const BIOS_START: u64 = 0x000f_0000;
/// Where memory above the real-mode world begins.
pub const HIGH_RAM_START: u64 = 0x0010_0000;
/// The first address below 4 GiB that is never RAM.
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// PCI memory that 32-bit BARs reach.
pub const PCI_MMIO32: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI Express configuration space: 1 MiB for the one bus.
pub const PCI_ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// The I/O APIC's registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs' registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page that KVM uses for real mode without unrestricted guest support.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM uses for the same.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// Where RAM goes on above the hole.
pub const ABOVE_4G: u64 = 1 << 32;

/// Largest size of the 64-bit PCI window.
const MMIO64_SIZE: u64 = 64 << 30;

/// What a range of the map is, in the numbers of INT 15h E820 (ACPI 6.5, 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// Usable memory.
    Ram = 1,
    /// Keep off.
    Reserved = 2,
}

/// A line of the memory map that the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What is there.
    pub kind: RegionKind,
}

/// The address map of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of RAM.
    memory: u64,
    /// PCI memory above all RAM; empty where the CPU's addresses leave no room.
    pub mmio64: Range<u64>,
}

impl Layout {
    /// The map for `memory` bytes of RAM on a CPU with `address_bits` physical address bits; `None` when the
    /// memory does not fit.
    pub fn new(memory: u64, address_bits: u32) -> Option<Layout> {
        let limit = 1u64.checked_shl(address_bits)?;
        let end = memory.saturating_sub(LOW_RAM_LIMIT).checked_add(ABOVE_4G)?;
        if end > limit && memory > LOW_RAM_LIMIT {
            return None;
        }
        let size = MMIO64_SIZE.min(limit / 4);
        let start = end.checked_next_multiple_of(size)?;
        let mmio64 = if start.checked_add(size)? <= limit { start..start + size } else { end..end };
        Some(Layout { memory, mmio64 })
    }

    /// Bytes of RAM below the hole.
    pub fn low_ram(&self) -> u64 {
        self.memory.min(LOW_RAM_LIMIT)
    }

    /// Bytes of RAM from 4 GiB on.
    pub fn high_ram(&self) -> u64 {
        self.memory - self.low_ram()
    }

    /// The ranges that RAM is mapped at, as start and length.
    pub fn ram(&self) -> Vec<(u64, u64)> {
        let high = (ABOVE_4G, self.high_ram());
        [(0, self.low_ram()), high].into_iter().filter(|&(_, len)| len > 0).collect()
    }

    /// The memory map for the guest, in rising order.
    pub fn e820(&self) -> Vec<Region> {
        use RegionKind::{Ram, Reserved};
        let lines = [
            (0, EBDA_START, Ram),
            (EBDA_START, EBDA_END, Reserved),
            (ACPI_START, HIGH_RAM_START, Reserved),
            (HIGH_RAM_START, self.low_ram(), Ram),
            (PCI_ECAM.start, PCI_ECAM.end, Reserved),
            (KVM_IDENTITY_MAP, ABOVE_4G, Reserved),
            (ABOVE_4G, ABOVE_4G + self.high_ram(), Ram),
        ];
        let lines = lines.into_iter().filter(|(start, end, _)| end > start);
        lines.map(|(start, end, kind)| Region { start, len: end - start, kind }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_memory_map_lists_all_ram_in_order_without_overlap() {
        for memory in [2 << 20, 512 << 20, 3 * GIB, 3 * GIB + 4096, 4 * GIB, 100 * GIB] {
            let map = Layout::new(memory, 46).unwrap().e820();
            let unlisted = HIGH_RAM_START - EBDA_START;
            let ram: u64 = map.iter().filter(|line| line.kind == RegionKind::Ram).map(|line| line.len).sum();
            assert_eq!(ram, memory - unlisted, "{memory:#x}");
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].len <= pair[1].start, "{map:x?}");
            }
        }
    }

    #[test]
    fn the_64_bit_window_lies_above_ram_within_the_address_limit() {
        for bits in [36, 39, 40, 46, 52] {
            for memory in [GIB, 3 * GIB, 5 * GIB, 20 * GIB, 30 * GIB] {
                let layout = Layout::new(memory, bits).unwrap();
                let window = &layout.mmio64;
                let ram_end = layout.ram().last().map(|&(start, len)| start + len).unwrap();
                assert!(window.start >= ram_end && window.start >= ABOVE_4G);
                assert!(window.end <= 1 << bits);
                assert!(window.is_empty() || window.start.is_multiple_of(window.end - window.start));
            }
        }
    }

    #[test]
    fn memory_beyond_the_address_limit_is_refused() {
        assert!(Layout::new(64 * GIB, 36).is_none());
        assert!(Layout::new(62 * GIB, 36).is_some());
        assert!(Layout::new(u64::MAX, 52).is_none());
    }
}
