//! The registers of a call: loaded when the guest calls, changed by the service, stored when it returns.
//!
//! ```text
//!   SS:SP ─▶ IP, CS, FLAGS      pushed by the INT instruction; IRET pops them
//!                    └ CF and ZF here are what the caller sees
//! ```
//!
//! RIP is never changed: KVM may yet have to step over the `OUT`.

use super::PAUSE;
use super::image::Slot;
use super::ram::Ram;
use crate::vm::{Error, Result};
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

const CARRY: u16 = 1 << 0;
const ZERO: u16 = 1 << 6;
const INTERRUPTS: u64 = 1 << 9;

/// The registers of one call.
#[derive(Clone, Default)]
pub(super) struct Frame {
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    /// The FLAGS that the caller gets back.
    flags: u16,
    stored_flags: u16,
    repeated: bool,
    segments_changed: bool,
}

impl Frame {
    /// Takes the registers of a vCPU that is in the middle of a call.
    pub(super) fn load(vcpu: &VcpuFd, ram: &Ram) -> Result<Frame> {
        let regs = vcpu.get_regs().map_err(|error| Error::kvm("give the registers", error))?;
        let sregs = vcpu.get_sregs().map_err(|error| Error::kvm("give the segment registers", error))?;
        let mut frame = Frame { regs, sregs, ..Frame::default() };
        frame.flags = ram.u16(frame.flags_address());
        frame.stored_flags = frame.flags;
        // Until a service says otherwise the call is done.
        frame.regs.rflags &= !u64::from(CARRY);
        frame.repeated = regs.rflags & u64::from(CARRY) != 0;
        Ok(frame)
    }

    /// Gives the registers back.
    pub(super) fn store(&self, vcpu: &VcpuFd, ram: &Ram) -> Result<()> {
        if self.flags != self.stored_flags {
            ram.set_u16(self.flags_address(), self.flags);
        }
        if self.segments_changed {
            vcpu.set_sregs(&self.sregs).map_err(|error| Error::kvm("take the segment registers", error))?;
        }
        vcpu.set_regs(&self.regs).map_err(|error| Error::kvm("take the registers", error))
    }

    /// What is called; `None` when the `OUT` is not one of ours.
    pub(super) fn slot(&self) -> Option<Slot> {
        Slot::at(self.sregs.cs.base.wrapping_add(self.regs.rip))
    }

    /// Where INT has pushed FLAGS; the stack's offset wraps at 64 KiB.
    fn flags_address(&self) -> u64 {
        self.sregs.ss.base.wrapping_add(u64::from((self.regs.rsp as u16).wrapping_add(4)))
    }

    /// The caller's CF: an error, for most services.
    pub(super) fn set_carry(&mut self, carry: bool) {
        self.flags = if carry { self.flags | CARRY } else { self.flags & !CARRY };
    }

    /// The caller's ZF.
    pub(super) fn set_zero(&mut self, zero: bool) {
        self.flags = if zero { self.flags | ZERO } else { self.flags & !ZERO };
    }

    /// Waits a moment and has the guest call again, with interrupts enabled in between.
    pub(super) fn call_again(&mut self, wait: impl FnOnce(std::time::Duration)) {
        wait(PAUSE);
        self.regs.rflags |= u64::from(CARRY) | INTERRUPTS;
    }

    /// This is the repetition of a call that was not done.
    pub(super) fn repeated(&self) -> bool {
        self.repeated
    }

    /// The linear address of ES:`offset`.
    pub(super) fn es(&self, offset: u16) -> u64 {
        self.sregs.es.base.wrapping_add(u64::from(offset))
    }

    /// The linear address of DS:`offset`.
    pub(super) fn ds(&self, offset: u16) -> u64 {
        self.sregs.ds.base.wrapping_add(u64::from(offset))
    }

    /// Returns a pointer in ES:BX.
    pub(super) fn set_es_bx(&mut self, segment: u16, offset: u16) {
        self.set_es(segment);
        self.set_bx(offset);
    }

    /// Sets ES, as real mode does.
    pub(super) fn set_es(&mut self, segment: u16) {
        (self.sregs.es.selector, self.sregs.es.base) = (segment, u64::from(segment) << 4);
        self.segments_changed = true;
    }

    pub(super) fn set_eax(&mut self, value: u32) {
        self.regs.rax = u64::from(value);
    }

    pub(super) fn ebx(&self) -> u32 {
        self.regs.rbx as u32
    }

    pub(super) fn set_ebx(&mut self, value: u32) {
        self.regs.rbx = u64::from(value);
    }

    pub(super) fn ecx(&self) -> u32 {
        self.regs.rcx as u32
    }

    pub(super) fn set_ecx(&mut self, value: u32) {
        self.regs.rcx = u64::from(value);
    }

    pub(super) fn edx(&self) -> u32 {
        self.regs.rdx as u32
    }

    pub(super) fn ax(&self) -> u16 {
        self.regs.rax as u16
    }

    pub(super) fn al(&self) -> u8 {
        self.ax().to_le_bytes()[0]
    }

    pub(super) fn ah(&self) -> u8 {
        self.ax().to_le_bytes()[1]
    }

    pub(super) fn set_ax(&mut self, value: u16) {
        set_low(&mut self.regs.rax, value);
    }

    pub(super) fn set_al(&mut self, value: u8) {
        self.set_ax(u16::from_le_bytes([value, self.ah()]));
    }

    pub(super) fn set_ah(&mut self, value: u8) {
        self.set_ax(u16::from_le_bytes([self.al(), value]));
    }

    pub(super) fn bx(&self) -> u16 {
        self.regs.rbx as u16
    }

    pub(super) fn set_bx(&mut self, value: u16) {
        set_low(&mut self.regs.rbx, value);
    }

    pub(super) fn set_bh(&mut self, value: u8) {
        self.set_bx(u16::from_le_bytes([self.bx().to_le_bytes()[0], value]));
    }

    pub(super) fn cx(&self) -> u16 {
        self.regs.rcx as u16
    }

    pub(super) fn cl(&self) -> u8 {
        self.cx().to_le_bytes()[0]
    }

    pub(super) fn ch(&self) -> u8 {
        self.cx().to_le_bytes()[1]
    }

    pub(super) fn set_cx(&mut self, value: u16) {
        set_low(&mut self.regs.rcx, value);
    }

    pub(super) fn set_cl(&mut self, value: u8) {
        self.set_cx(u16::from_le_bytes([value, self.ch()]));
    }

    pub(super) fn set_ch(&mut self, value: u8) {
        self.set_cx(u16::from_le_bytes([self.cl(), value]));
    }

    pub(super) fn dx(&self) -> u16 {
        self.regs.rdx as u16
    }

    pub(super) fn dl(&self) -> u8 {
        self.dx().to_le_bytes()[0]
    }

    pub(super) fn dh(&self) -> u8 {
        self.dx().to_le_bytes()[1]
    }

    pub(super) fn set_dx(&mut self, value: u16) {
        set_low(&mut self.regs.rdx, value);
    }

    pub(super) fn set_dl(&mut self, value: u8) {
        self.set_dx(u16::from_le_bytes([value, self.dh()]));
    }

    pub(super) fn set_dh(&mut self, value: u8) {
        self.set_dx(u16::from_le_bytes([self.dl(), value]));
    }

    pub(super) fn si(&self) -> u16 {
        self.regs.rsi as u16
    }

    pub(super) fn di(&self) -> u16 {
        self.regs.rdi as u16
    }

    pub(super) fn bp(&self) -> u16 {
        self.regs.rbp as u16
    }
}

/// A write to a 16-bit register leaves the upper bits as they are.
fn set_low(register: &mut u64, value: u16) {
    *register = (*register & !0xffff) | u64::from(value);
}

#[cfg(test)]
impl Frame {
    /// The caller's CF and ZF.
    pub(super) fn carry_and_zero(&self) -> (bool, bool) {
        (self.flags & CARRY != 0, self.flags & ZERO != 0)
    }

    /// Whether the guest is to call again.
    pub(super) fn again(&self) -> bool {
        self.regs.rflags & u64::from(CARRY) != 0
    }
}
