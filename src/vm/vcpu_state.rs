//! A vCPU's architectural state at power-on: read once when it is new, put back at every reset.

use crate::vm::{Error, Result};
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use std::ops::RangeInclusive;

/// Left to run on: written one vCPU after the other, the counters would drift apart.
const IA32_TSC: u32 = 0x10;
/// Where the guest wants the time of day written. KVM does that when the register is written, and so guests write it
/// whenever they want to know: it is no state, and a load must not write to RAM that it may have to leave alone.
const WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];
/// Registers that KVM takes at once.
const BATCH: usize = 256;
/// Memory types (Intel SDM volume 3, 12.11), which KVM does not list: of ranges of any size, of fixed ones.
const MTRRS: [RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, MTRR_DEF_TYPE..=MTRR_DEF_TYPE];
const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, all memory write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// Offsets in the local APIC's page (Intel SDM volume 3, 11.4.1).
const APIC_LINT0: usize = 0x350;
const APIC_LINT1: usize = 0x360;
/// Delivery modes of the two pins: the PIC's interrupts, and NMIs.
const DELIVER_EXTINT: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;

/// The state. Parts that this KVM cannot read are absent and left alone.
pub struct PowerOnState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// One of the two, `xsave` where KVM has it.
    fpu: Option<kvm_fpu>,
    xsave: Option<kvm_xsave>,
    xcrs: Option<kvm_xcrs>,
    msrs: Vec<kvm_msr_entry>,
    mp_state: Option<kvm_mp_state>,
    lapic: Option<kvm_lapic_state>,
    events: Option<kvm_vcpu_events>,
    debug: Option<kvm_debugregs>,
}

impl PowerOnState {
    /// Reads the state of a fresh vCPU, with what firmware would have set on top.
    ///
    /// # Errors
    /// When KVM does not even give the general registers.
    pub fn read(kvm: &Kvm, vcpu: &VcpuFd) -> Result<PowerOnState> {
        let xsave = vcpu.get_xsave().ok();
        Ok(PowerOnState {
            regs: vcpu.get_regs().map_err(|error| Error::kvm("read registers", error))?,
            sregs: vcpu.get_sregs().map_err(|error| Error::kvm("read registers", error))?,
            fpu: if xsave.is_none() { vcpu.get_fpu().ok() } else { None },
            xsave,
            xcrs: vcpu.get_xcrs().ok(),
            msrs: read_msrs(kvm, vcpu),
            mp_state: vcpu.get_mp_state().ok(),
            lapic: vcpu.get_lapic().ok().map(with_pins),
            events: vcpu.get_vcpu_events().ok(),
            debug: vcpu.get_debug_regs().ok(),
        })
    }

    /// Puts the state back.
    ///
    /// # Errors
    /// What KVM says.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<()> {
        self.restore_parts(vcpu).map_err(|error| Error::kvm("reset a vCPU", error))?;
        // Some registers are readable only, which at power-on values does not matter.
        write_msrs(vcpu, &self.msrs);
        Ok(())
    }

    /// The model-specific registers that are state, and that KVM lets be read and, on `vcpu` as it is at power-on,
    /// written.
    pub fn settable_msrs(&self, vcpu: &VcpuFd) -> Vec<u32> {
        let left_out = [write_msrs(vcpu, &self.msrs), WALL_CLOCKS.to_vec()].concat();
        self.msrs.iter().map(|entry| entry.index).filter(|index| !left_out.contains(index)).collect()
    }

    /// Which of the parts there are that this KVM may lack: FPU, XCRs, MP state, APIC, events, debug registers.
    pub(super) fn parts(&self) -> [bool; 6] {
        [
            self.fpu.is_some() || self.xsave.is_some(),
            self.xcrs.is_some(),
            self.mp_state.is_some(),
            self.lapic.is_some(),
            self.events.is_some(),
            self.debug.is_some(),
        ]
    }

    /// Puts those model-specific registers back that are not in `indices`.
    pub(super) fn restore_msrs_but(&self, vcpu: &VcpuFd, indices: &[u32]) {
        let others = self.msrs.iter().filter(|entry| !indices.contains(&entry.index)).copied();
        // As at a reset.
        write_msrs(vcpu, &others.collect::<Vec<_>>());
    }

    /// The order matters to KVM: the APIC base (in the special registers) before the APIC.
    fn restore_parts(&self, vcpu: &VcpuFd) -> std::result::Result<(), kvm_ioctls::Error> {
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        self.fpu.iter().try_for_each(|state| vcpu.set_fpu(state))?;
        if let Some(state) = &self.xsave {
            // SAFETY: no feature that needs more than the 4096 bytes of the structure was ever asked for.
            unsafe { vcpu.set_xsave(state) }?;
        }
        self.xcrs.iter().try_for_each(|state| vcpu.set_xcrs(state))?;
        self.mp_state.iter().try_for_each(|state| vcpu.set_mp_state(*state))?;
        self.lapic.iter().try_for_each(|state| vcpu.set_lapic(state))?;
        self.events.iter().try_for_each(|state| vcpu.set_vcpu_events(state))?;
        self.debug.iter().try_for_each(|state| vcpu.set_debug_regs(state))
    }
}

fn with_pins(mut apic: kvm_lapic_state) -> kvm_lapic_state {
    for (offset, mode) in [(APIC_LINT0, DELIVER_EXTINT), (APIC_LINT1, DELIVER_NMI)] {
        for (register, byte) in apic.regs[offset..].iter_mut().zip(mode.to_le_bytes()) {
            *register = byte as _;
        }
    }
    apic
}

/// All registers that KVM would save, and the memory types.
fn read_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Vec<kvm_msr_entry> {
    let indices = kvm.get_msr_index_list().map(|list| list.as_slice().to_vec()).unwrap_or_default();
    let mut indices: Vec<u32> = indices.into_iter().filter(|index| *index != IA32_TSC).collect();
    let missing = MTRRS.into_iter().flatten().filter(|index| !indices.contains(index)).collect::<Vec<_>>();
    indices.extend(missing);
    read_listed_msrs(vcpu, &indices).iter().map(firmware_value).collect()
}

/// The registers of the list that KVM lets be read.
pub(super) fn read_listed_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Vec<kvm_msr_entry> {
    let (mut entries, mut rest) = (Vec::with_capacity(indices.len()), indices);
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let wanted: Vec<_> =
            batch.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut list = Msrs::from_entries(&wanted).ok();
        let read = list.as_mut().and_then(|list| vcpu.get_msrs(list).ok()).unwrap_or(0).min(batch.len());
        entries.extend(list.iter().flat_map(|list| &list.as_slice()[..read]));
        // KVM stops at the first that it refuses: that one is skipped.
        rest = &rest[(read + 1).min(batch.len())..];
    }
    entries
}

fn firmware_value(entry: &kvm_msr_entry) -> kvm_msr_entry {
    let data = match entry.index {
        IA32_MISC_ENABLE => entry.data | FAST_STRINGS,
        MTRR_DEF_TYPE => MTRR_WRITE_BACK,
        _ => entry.data,
    };
    kvm_msr_entry { data, ..*entry }
}

/// Writes what can be written; the others' indices.
pub(super) fn write_msrs(vcpu: &VcpuFd, mut entries: &[kvm_msr_entry]) -> Vec<u32> {
    let mut refused = Vec::new();
    while !entries.is_empty() {
        let batch = &entries[..entries.len().min(BATCH)];
        let written = Msrs::from_entries(batch).ok().and_then(|list| vcpu.set_msrs(&list).ok()).unwrap_or(0);
        // KVM stops at the first that it refuses: that one is skipped.
        refused.extend(batch.get(written).map(|entry| entry.index));
        entries = &entries[(written + 1).min(batch.len())..];
    }
    refused
}
