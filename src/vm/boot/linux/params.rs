//! What a kernel is told at its entry: the boot parameters page of the Linux boot protocol, or the start info
//! of PVH. Both name the memory map, the command line, the initrd and the ACPI tables.

use super::write;
use crate::vm::Result;
use crate::vm::layout::Region;
use crate::vm::memory::GuestMemory;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

/// Where the boot parameters are.
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// Where PVH's start info is; the module list and the memory map follow.
pub(super) const PVH_START_INFO: u64 = 0x6000;
const PVH_MODULES: u64 = 0x6040;
const PVH_MEMORY_MAP: u64 = 0x6080;

/// "We have no id": any other boot loader (boot protocol, type_of_loader).
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;
/// include/xen/interface/hvm/start_info.h
const PVH_MAGIC: u32 = 0x336e_c578;

/// An initrd in the guest's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Initrd {
    pub(super) start: u64,
    pub(super) size: u64,
}

/// Everything that has an address.
pub(super) struct Parameters {
    pub(super) command_line: u64,
    pub(super) initrd: Option<Initrd>,
    pub(super) rsdp: u64,
    pub(super) map: Vec<Region>,
}

impl Parameters {
    /// Writes the boot parameters page. `header` is the kernel's own, or zeros for an ELF file.
    pub(super) fn write_zero_page(&self, memory: &GuestMemory, mut header: setup_header) -> Result<()> {
        if header.header != HEADER_MAGIC {
            (header.boot_flag, header.header) = (BOOT_FLAG, HEADER_MAGIC);
            header.kernel_alignment = KERNEL_ALIGNMENT;
        }
        header.type_of_loader = LOADER_UNDEFINED;
        header.cmd_line_ptr = self.command_line as u32;
        if let Some(initrd) = self.initrd {
            (header.ramdisk_image, header.ramdisk_size) = (initrd.start as u32, initrd.size as u32);
        }
        let mut page = boot_params { hdr: header, acpi_rsdp_addr: self.rsdp, ..Default::default() };
        let mut table = page.e820_table;
        for (entry, region) in table.iter_mut().zip(&self.map) {
            *entry = boot_e820_entry { addr: region.start, size: region.len, r#type: region.kind as u32 };
        }
        page.e820_table = table;
        page.e820_entries = self.map.len().min(table.len()) as u8;
        write(memory, page.as_slice(), ZERO_PAGE)
    }

    /// Writes PVH's start info.
    pub(super) fn write_pvh(&self, memory: &GuestMemory) -> Result<()> {
        let start_info = hvm_start_info {
            magic: PVH_MAGIC,
            version: 1,
            nr_modules: self.initrd.iter().count() as u32,
            modlist_paddr: PVH_MODULES,
            cmdline_paddr: self.command_line,
            rsdp_paddr: self.rsdp,
            memmap_paddr: PVH_MEMORY_MAP,
            memmap_entries: self.map.len() as u32,
            ..Default::default()
        };
        write(memory, start_info.as_slice(), PVH_START_INFO)?;
        if let Some(Initrd { start: paddr, size }) = self.initrd {
            let module = hvm_modlist_entry { paddr, size, ..Default::default() };
            write(memory, module.as_slice(), PVH_MODULES)?;
        }
        for (address, region) in (PVH_MEMORY_MAP..).step_by(24).zip(&self.map) {
            let (addr, size, type_) = (region.start, region.len, region.kind as u32);
            let entry = hvm_memmap_table_entry { addr, size, type_, ..Default::default() };
            write(memory, entry.as_slice(), address)?;
        }
        Ok(())
    }
}
