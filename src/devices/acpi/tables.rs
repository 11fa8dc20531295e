//! The ACPI tables (ACPI 6.5, chapter 5): one block of memory that begins with the RSDP.
//!
//! ```text
//!   RSDP ─▶ XSDT ─┬▶ FADT ─┬▶ FACS        fixed hardware of [`pm`]
//!                 │        └▶ DSDT        PCI host bridge, COM1, clock, CPUs, \_S5
//!                 ├▶ MADT                 local APICs, I/O APIC, interrupt overrides
//!                 └▶ MCFG                 ECAM
//! ```
//!
//! There is no \_PRT: PCI devices interrupt by MSI-X alone.

use crate::devices::acpi::pm;
use crate::devices::legacy::{cmos, serial};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use std::ops::Range;

const OEM: [u8; 6] = *b"COWVM ";
const OEM_TABLE: [u8; 8] = *b"COWVMTAB";
const REVISION: u32 = 1;
/// Every table starts on such a boundary, in bytes; the FACS must (ACPI 6.5, 5.2.10).
const ALIGN: usize = 64;
/// Length of a table's header.
const HEADER: u32 = 36;

/// What the tables tell about the machine.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Number of vCPUs; their APIC ids count from 0.
    pub vcpus: u8,
    /// Physical address of the local APICs.
    pub local_apic: u32,
    /// Physical address of the I/O APIC.
    pub io_apic: u32,
    /// PCI configuration space, from bus 0 on, 1 MiB a bus.
    pub ecam: Range<u64>,
    /// PCI memory below 4 GiB.
    pub mmio32: Range<u64>,
    /// PCI memory above 4 GiB; may be empty.
    pub mmio64: Range<u64>,
}

/// All tables as they must lie in memory at `base` (a multiple of 64 below 4 GiB).
pub fn build(platform: &Platform, base: u32) -> Vec<u8> {
    let mut block = Block { base, bytes: vec![0; Rsdp::len()] };
    let dsdt = block.add(&bytes_of(&dsdt(platform)));
    let facs = block.add(&bytes_of(&FACS::new()));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    xsdt.add_entry(block.add(&fadt(dsdt, facs)).into());
    xsdt.add_entry(block.add(madt(platform).as_slice()).into());
    xsdt.add_entry(block.add(&bytes_of(&mcfg(&platform.ecam))).into());
    let xsdt = block.add(&bytes_of(&xsdt));
    block.bytes[..Rsdp::len()].copy_from_slice(&bytes_of(&Rsdp::new(OEM, xsdt.into())));
    block.bytes
}

struct Block {
    base: u32,
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table; its physical address.
    fn add(&mut self, table: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = self.base + self.bytes.len() as u32;
        self.bytes.extend(table);
        address
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// AML that is encoded already.
struct Bytes(Vec<u8>);

/// The FADT (5.2.9): ports of [`pm`], no legacy mode to switch from, C1 as the only idle state.
fn fadt(dsdt: u32, facs: u32) -> Vec<u8> {
    /// Latencies that tell that C2 and C3 do not exist.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    /// There are devices on an ISA bus; no VGA; no keyboard controller.
    const LEGACY_DEVICES: u16 = 1;
    const NO_VGA: u16 = 1 << 2;
    let flags = [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::FixRtc];
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, REVISION).dsdt_32(dsdt).firmware_ctrl_32(facs);
    for flag in flags.into_iter().chain([Flags::TmrValExt, Flags::ResetRegSup]) {
        table = table.flag(flag);
    }
    let port = |offset: u16| u32::from(pm::BASE + offset);
    table.sci_int = u16::from(pm::SCI).into();
    table.pm1a_evt_blk = port(pm::EVENT).into();
    table.pm1a_cnt_blk = port(pm::CONTROL).into();
    table.pm_tmr_blk = port(pm::TIMER).into();
    (table.pm1_evt_len, table.pm1_cnt_len, table.pm_tmr_len) = (4, 2, 4);
    (table.p_lvl2_lat, table.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    table.century = cmos::CENTURY;
    table.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    let reset = u64::from(pm::BASE + pm::RESET);
    table.reset_reg = GAS::new(gas::AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, reset);
    table.reset_value = pm::RESET_VALUE;
    bytes_of(&table.finalize())
}

/// The MADT (5.2.12).
fn madt(platform: &Platform) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    /// The PIT reaches the I/O APIC's pin 2, as on every PC.
    const TIMER_OVERRIDE: [u8; 10] = [2, 10, 0, 0, 2, 0, 0, 0, 0, 0];
    /// The SCI is level-triggered and active high.
    const SCI_OVERRIDE: [u8; 10] = [2, 10, 0, pm::SCI, pm::SCI, 0, 0, 0, 0x0d, 0];
    /// NMIs arrive at LINT1 of all processors.
    const NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];
    let mut table = Sdt::new(*b"APIC", HEADER, 5, OEM, OEM_TABLE, REVISION);
    table.append_slice(&platform.local_apic.to_le_bytes());
    table.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..platform.vcpus {
        table.append_slice(&bytes_of(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    table.append_slice(&bytes_of(&IoApic::new(0, platform.io_apic, 0)));
    for entry in [&TIMER_OVERRIDE[..], &SCI_OVERRIDE, &NMI] {
        table.append_slice(entry);
    }
    table.update_checksum();
    table
}

fn mcfg(ecam: &Range<u64>) -> MCFG {
    let mut table = MCFG::new(OEM, OEM_TABLE, REVISION);
    table.add_ecam(ecam.start, 0, 0, last_bus(ecam));
    table
}

fn last_bus(ecam: &Range<u64>) -> u8 {
    (((ecam.end - ecam.start) >> 20).clamp(1, 256) - 1) as u8
}

/// The DSDT (5.2.11.1).
fn dsdt(platform: &Platform) -> Bytes {
    let mut table = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, REVISION);
    table.append_slice(&soft_off());
    let mut devices = host_bridge(platform);
    devices.extend(motherboard(&platform.ecam));
    devices.extend(com1());
    devices.extend(clock());
    devices.extend((0..platform.vcpus).flat_map(processor));
    table.append_slice(&bytes_of(&Scope::new("\\_SB_".into(), vec![&Bytes(devices)])));
    table.update_checksum();
    Bytes(table.as_slice().to_vec())
}

fn soft_off() -> Vec<u8> {
    let sleep_type = Package::new(vec![&pm::SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    bytes_of(&Name::new("\\_S5_".into(), &sleep_type))
}

fn host_bridge(platform: &Platform) -> Vec<u8> {
    let buses = AddressSpace::new_bus_number(0u16, u16::from(last_bus(&platform.ecam)));
    let configuration = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports = [AddressSpace::new_io(0u16, 0xcf7, None), AddressSpace::new_io(0xd00u16, 0xffff, None)];
    let window = |range: &Range<u64>| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, range.start, range.end - 1, None)
    };
    let low = window(&platform.mmio32);
    let mut resources: Vec<&dyn Aml> = vec![&buses, &configuration, &ports[0], &ports[1], &low];
    let high = (!platform.mmio64.is_empty()).then(|| window(&platform.mmio64));
    resources.extend(high.iter().map(|range| range as &dyn Aml));
    bytes_of(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

/// Keeps the guest off the ECAM (PCI Firmware Specification 3.3, 4.1.2).
fn motherboard(ecam: &Range<u64>) -> Vec<u8> {
    let window = Memory32Fixed::new(true, ecam.start as u32, (ecam.end - ecam.start) as u32);
    device("MBRD", &EISAName::new("PNP0C02"), vec![&window])
}

fn com1() -> Vec<u8> {
    let base = serial::COM1 as u16;
    let ports = IO::new(base, base, 1, serial::PORTS as u8);
    device(
        "COM1",
        &EISAName::new("PNP0501"),
        vec![&ports, &Interrupt::new(true, true, false, false, serial::IRQ)],
    )
}

fn clock() -> Vec<u8> {
    let base = cmos::BASE as u16;
    device("RTC_", &EISAName::new("PNP0B00"), vec![&IO::new(base, base, 1, cmos::PORTS as u8)])
}

fn device(name: &str, id: &dyn Aml, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let id = Name::new("_HID".into(), id);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    bytes_of(&Device::new(name.into(), vec![&id, &resources]))
}

fn processor(index: u8) -> Vec<u8> {
    let name = format!("C{index:03}");
    let id = Name::new("_HID".into(), &"ACPI0007");
    bytes_of(&Device::new(name.as_str().into(), vec![&id, &Name::new("_UID".into(), &index)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 0xe_0000;

    fn platform(vcpus: u8) -> Platform {
        Platform {
            vcpus,
            local_apic: 0xfee0_0000,
            io_apic: 0xfec0_0000,
            ecam: 0xe000_0000..0xf000_0000,
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0x10_0000_0000..0x20_0000_0000,
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn word(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    /// The table at physical `address`, which names itself and its length.
    fn table<'a>(block: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let bytes = &block[(address - u64::from(BASE)) as usize..];
        assert_eq!(&bytes[..4], signature);
        &bytes[..word(bytes, 4) as usize]
    }

    /// Follows the pointers from the RSDP as a guest does.
    #[test]
    fn every_table_is_found_from_the_rsdp_with_a_good_checksum() {
        for vcpus in [1, 8, 254] {
            let block = build(&platform(vcpus), BASE);
            assert!(block.len() <= 0x1_0000);
            assert_eq!(&block[..8], b"RSD PTR ");
            assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
            let xsdt = table(&block, u64::from(word(&block, 24)), b"XSDT");
            let entry = |index: usize| u64::from(word(xsdt, 36 + 8 * index));
            let fadt = table(&block, entry(0), b"FACP");
            let madt = table(&block, entry(1), b"APIC");
            let mcfg = table(&block, entry(2), b"MCFG");
            let dsdt = table(&block, u64::from(word(fadt, 40)), b"DSDT");
            for table in [xsdt, fadt, madt, mcfg, dsdt] {
                assert_eq!(sum(table), 0, "{:?}", String::from_utf8_lossy(&table[..4]));
            }
            let facs = u64::from(word(fadt, 36));
            assert_eq!((facs % 64, table(&block, facs, b"FACS").len()), (0, 64));
        }
    }

    #[test]
    fn the_madt_lists_every_processor_and_ends_where_it_says() {
        for vcpus in [1u8, 4, 254] {
            let table = madt(&platform(vcpus));
            let (mut at, mut ids) = (44, Vec::new());
            let bytes = table.as_slice();
            while at < bytes.len() {
                if bytes[at] == 0 {
                    ids.push(bytes[at + 3]);
                }
                at += usize::from(bytes[at + 1]);
            }
            assert_eq!(at, bytes.len());
            assert_eq!(ids, (0..vcpus).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn the_ecam_covers_all_buses() {
        let table = bytes_of(&mcfg(&platform(1).ecam));
        assert_eq!(word(&table, 44), 0xe000_0000);
        assert_eq!(table[54..56], [0, 255]);
    }

    #[test]
    fn an_empty_64_bit_window_is_left_out() {
        let mut small = platform(1);
        small.mmio64 = 0..0;
        assert!(bytes_of(&dsdt(&small)).len() < bytes_of(&dsdt(&platform(1))).len());
    }
}
