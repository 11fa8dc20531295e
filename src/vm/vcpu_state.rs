//! A vCPU's architectural state at power-on: read once when it is new, put back at every reset.

use crate::vm::{Error, Result};
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};

/// Left to run on: written one vCPU after the other, the counters would drift apart.
const IA32_TSC: u32 = 0x10;
/// Registers that KVM takes at once.
const BATCH: usize = 256;
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
    fpu: Option<kvm_fpu>,
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
        Ok(PowerOnState {
            regs: vcpu.get_regs().map_err(|error| Error::kvm("read registers", error))?,
            sregs: vcpu.get_sregs().map_err(|error| Error::kvm("read registers", error))?,
            fpu: vcpu.get_fpu().ok(),
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

    /// The model-specific registers that KVM lets be read and, on `vcpu` as it is at power-on, written.
    pub fn settable_msrs(&self, vcpu: &VcpuFd) -> Vec<u32> {
        let refused = write_msrs(vcpu, &self.msrs);
        self.msrs.iter().map(|entry| entry.index).filter(|index| !refused.contains(index)).collect()
    }

    /// The order matters to KVM: the APIC base (in the special registers) before the APIC.
    fn restore_parts(&self, vcpu: &VcpuFd) -> std::result::Result<(), kvm_ioctls::Error> {
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        self.fpu.iter().try_for_each(|state| vcpu.set_fpu(state))?;
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

/// All registers that KVM would save.
fn read_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Vec<kvm_msr_entry> {
    let indices = kvm.get_msr_index_list().map(|list| list.as_slice().to_vec()).unwrap_or_default();
    let indices: Vec<u32> = indices.into_iter().filter(|index| *index != IA32_TSC).collect();
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
