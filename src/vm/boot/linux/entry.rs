//! The CPU's state at a kernel's entry: flat segments, and in long mode an identical map of the first 4 GiB.

use super::write;
use crate::vm::memory::GuestMemory;
use crate::vm::{Error, Result};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

const GDT: u64 = 0x500;
const PAGE_TABLES: u64 = 0x9000;
const STACK: u64 = 0x8ff0;

/// Selectors that the boot protocol demands (`__BOOT_CS`, `__BOOT_DS`), and one for the task register.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
/// Access byte and flags of the descriptors (Intel SDM volume 3, 3.4.5), as bits 40 to 55.
const CODE_64: u64 = 0xa09b;
const CODE_32: u64 = 0xc09b;
const DATA_32: u64 = 0xc093;
const TASK_32: u64 = 0x008b;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
const RFLAGS_FIXED: u64 = 2;

/// Where and in which mode a kernel starts.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    address: u64,
    argument: Argument,
    long_mode: bool,
}

/// Which register points to the kernel's parameters.
#[derive(Clone, Copy, Debug)]
pub(super) enum Argument {
    Rsi(u64),
    Rbx(u64),
}

impl Entry {
    /// 64-bit mode, parameters in RSI.
    pub(super) fn long_mode(memory: &GuestMemory, address: u64, parameters: u64) -> Result<Entry> {
        write_gdt(memory, CODE_64)?;
        write_page_tables(memory)?;
        Ok(Entry { address, argument: Argument::Rsi(parameters), long_mode: true })
    }

    /// 32-bit protected mode without paging.
    pub(super) fn protected_mode(memory: &GuestMemory, address: u64, argument: Argument) -> Result<Entry> {
        write_gdt(memory, CODE_32)?;
        Ok(Entry { address, argument, long_mode: false })
    }

    /// Puts a freshly reset vCPU there.
    ///
    /// # Errors
    /// What KVM says.
    pub fn apply(&self, vcpu: &VcpuFd) -> Result<()> {
        let refused = |error| Error::kvm("take the boot registers", error);
        let mut sregs = vcpu.get_sregs().map_err(refused)?;
        self.set_modes(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(refused)?;
        let mut regs = kvm_regs { rip: self.address, rflags: RFLAGS_FIXED, rsp: STACK, ..Default::default() };
        match self.argument {
            Argument::Rsi(address) => regs.rsi = address,
            Argument::Rbx(address) => regs.rbx = address,
        }
        vcpu.set_regs(&regs).map_err(refused)
    }

    fn set_modes(&self, sregs: &mut kvm_sregs) {
        sregs.gdt = kvm_dtable { base: GDT, limit: TASK + 7, ..Default::default() };
        sregs.idt = kvm_dtable::default();
        sregs.cs = segment(CODE, if self.long_mode { CODE_64 } else { CODE_32 });
        let data = segment(DATA, DATA_32);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { limit: 0x67, ..segment(TASK, TASK_32) };
        sregs.cr0 = CR0_PE | CR0_ET;
        if self.long_mode {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 |= CR4_PAE;
            sregs.efer |= EFER_LME_LMA;
        }
    }
}

/// A descriptor from 0 to 4 GiB; `attributes` are its bits 40 to 55, without the limit's nibble.
fn descriptor(attributes: u64) -> u64 {
    attributes << 40 | 0xf << 48 | 0xffff
}

fn write_gdt(memory: &GuestMemory, code: u64) -> Result<()> {
    let table = [0, 0, descriptor(code), descriptor(DATA_32), TASK_32 << 40 | 0x67];
    write(memory, &table.map(u64::to_le_bytes).concat(), GDT)
}

/// What the CPU makes of `descriptor(attributes)` when it is loaded.
fn segment(selector: u16, attributes: u64) -> kvm_segment {
    let bit = |bit: u32| (attributes >> bit & 1) as u8;
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: (attributes & 0xf) as u8,
        s: bit(4),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        ..Default::default()
    }
}

/// One PML4, one page of 1 GiB entries, four of 2 MiB entries.
fn write_page_tables(memory: &GuestMemory) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let pointers = PAGE_TABLES + 0x1000;
    let directories = PAGE_TABLES + 0x2000;
    write(memory, &(pointers | PRESENT_WRITABLE).to_le_bytes(), PAGE_TABLES)?;
    for gib in 0..4u64 {
        let directory = directories + gib * 0x1000;
        write(memory, &(directory | PRESENT_WRITABLE).to_le_bytes(), pointers + gib * 8)?;
        for page in 0..512u64 {
            let entry = (gib << 30 | page << 21) | PRESENT_WRITABLE | LARGE;
            write(memory, &entry.to_le_bytes(), directory + page * 8)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from include/linux/... of a running kernel's boot GDT.
    #[test]
    fn descriptors_have_the_bits_of_the_manual() {
        assert_eq!(descriptor(CODE_64), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(CODE_32), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(DATA_32), 0x00cf_9300_0000_ffff);
        let code = segment(CODE, CODE_64);
        assert_eq!((code.type_, code.s, code.present, code.l, code.db, code.g), (0xb, 1, 1, 1, 0, 1));
        let data = segment(DATA, DATA_32);
        assert_eq!((data.type_, data.s, data.present, data.l, data.db, data.g), (3, 1, 1, 0, 1, 1));
        assert_eq!(segment(TASK, TASK_32).s, 0);
    }
}
