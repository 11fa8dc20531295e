//! The part of the BIOS that the guest's processor runs: where it is, and what its slots mean.
//!
//! ```text
//!   F000:F000  slot 0 … 10: INT 10h … 1Ah
//!        F058  slot 11: power on        F060  slot 12: IRQ 0
//!        F068  slot 13: IRQ 1 … 7       F070  slot 14: IRQ 8 … 15     F078  slot 15: IRET
//!        FFE0  table of INT 15h C0h     FFF0  reset vector
//! ```

use super::ram::Ram;
use crate::vm::{Error, Result};
use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;

core::arch::global_asm!(include_str!("../../../../firmware/bios.S"), options(att_syntax));

/// The port whose `OUT` calls the VMM. No device of a PC uses it.
pub const PORT: u16 = 0xb8;

/// The segment of the BIOS.
pub(super) const SEGMENT: u16 = 0xf000;
/// Offset of the table for INT 15h C0h in [`SEGMENT`].
pub(super) const CONFIGURATION: u16 = 0xffe0;
/// Offset of the reset vector in [`SEGMENT`].
const RESET_VECTOR: u64 = 0xfff0;
/// Offset of the image in [`SEGMENT`].
const BASE: u16 = 0xf000;
const SLOT_SIZE: u16 = 8;
const SLOT_POWER_ON: u16 = 11;
const SLOT_TIMER: u16 = 12;
const SLOT_MASTER: u16 = 13;
const SLOT_SLAVE: u16 = 14;
const SLOT_NOTHING: u16 = 15;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// A software interrupt, 10h to 1Ah.
    Interrupt(u8),
    /// The processor has come out of reset.
    PowerOn,
}

impl Slot {
    /// The slot that the linear address `ip` lies in. KVM may show the address of the `OUT` or the next one.
    pub(super) fn at(ip: u64) -> Option<Slot> {
        let first = linear(SEGMENT, BASE);
        let index = u8::try_from(ip.checked_sub(first)? / u64::from(SLOT_SIZE)).ok()?;
        match u16::from(index) {
            0..SLOT_POWER_ON => Some(Slot::Interrupt(0x10 + index)),
            SLOT_POWER_ON => Some(Slot::PowerOn),
            _ => None,
        }
    }
}

/// The bytes of the image, 4 KiB.
fn image() -> &'static [u8] {
    unsafe extern "C" {
        static cowvm_bios_start: u8;
        static cowvm_bios_end: u8;
    }
    let (start, end) = (&raw const cowvm_bios_start, &raw const cowvm_bios_end);
    // SAFETY: firmware/bios.S defines both labels in one section of constant data, the end after the start.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// The linear address of a real-mode address.
pub(super) fn linear(segment: u16, offset: u16) -> u64 {
    (u64::from(segment) << 4) + u64::from(offset)
}

/// Copies the image to the end of the segment F000.
pub(super) fn load(ram: &Ram) -> Result<()> {
    if ram.write(linear(SEGMENT, BASE), image()) {
        Ok(())
    } else {
        Err(Error::new("the BIOS needs 1 MiB of guest memory").remedy("give the guest more with -m"))
    }
}

/// Writes the interrupt vectors 00h to 77h.
pub(super) fn write_vectors(ram: &Ram) {
    for vector in 0..=0x77u16 {
        let slot = match vector {
            0x08 => SLOT_TIMER,
            0x09..=0x0f => SLOT_MASTER,
            0x10..=0x1a => vector - 0x10,
            0x70..=0x77 => SLOT_SLAVE,
            // Not code but pointers to tables: of video modes, floppies, glyphs, hard disks.
            0x1d..=0x1f | 0x41 | 0x46 => {
                ram.set_u32(u64::from(vector) * 4, 0);
                continue;
            }
            _ => SLOT_NOTHING,
        };
        let pointer = (u32::from(SEGMENT) << 16) | u32::from(BASE + slot * SLOT_SIZE);
        ram.set_u32(u64::from(vector) * 4, pointer);
    }
}

/// Puts a vCPU before the first instruction of the BIOS, in real mode, whatever it did before.
///
/// # Errors
/// When KVM does not give or take registers.
pub fn reset_registers(vcpu: &VcpuFd) -> Result<()> {
    let data = kvm_segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..Default::default() };
    let code = kvm_segment { base: linear(SEGMENT, 0), selector: SEGMENT, type_: 11, ..data };
    let mut sregs = vcpu.get_sregs().map_err(|error| Error::kvm("give the segment registers", error))?;
    (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (code, data, data, data, data, data);
    sregs.tr = kvm_segment { type_: 11, s: 0, ..data };
    sregs.ldt = kvm_segment { type_: 2, s: 0, ..data };
    for table in [&mut sregs.gdt, &mut sregs.idt] {
        (table.base, table.limit) = (0, 0xffff);
    }
    // Only the bit that says "there is a numeric unit", which is fixed.
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer) = (0x10, 0, 0, 0, 0);
    vcpu.set_sregs(&sregs).map_err(|error| Error::kvm("take the segment registers", error))?;
    let regs = kvm_bindings::kvm_regs { rip: RESET_VECTOR, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(|error| Error::kvm("take the registers", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_ends_with_a_far_jump_at_the_reset_vector() {
        let image = image();
        assert_eq!(image.len(), 0x1000);
        assert_eq!(image[0xff0], 0xea);
        assert_eq!(&image[0xff3..0xff5], &SEGMENT.to_le_bytes());
    }

    #[test]
    fn each_slot_is_found_from_its_out_and_from_the_next_instruction() {
        let out = [0xe6, u8::try_from(PORT).unwrap()];
        for (vector, at) in (0x10..=0x1a).zip((0..).step_by(8)) {
            assert_eq!(image()[at + 1..at + 3], out);
            for ip in [1, 3] {
                let ip = linear(SEGMENT, BASE) + at as u64 + ip;
                assert_eq!(Slot::at(ip), Some(Slot::Interrupt(vector)));
            }
        }
        assert_eq!(image()[0x59..0x5b], out);
        assert_eq!(Slot::at(0xff059), Some(Slot::PowerOn));
        assert_eq!([0, 0xfefff, 0xff060, 0xff800, 0xfffff, u64::MAX].map(Slot::at), [None; 6]);
    }
}
