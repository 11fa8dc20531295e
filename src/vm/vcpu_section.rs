//! A vCPU in a VM state: all that KVM keeps of it.
//!
//! What this KVM cannot read is absent; model-specific registers that a state does not have become what they are at
//! power-on. Of these registers those are saved that KVM lists and lets be read and written: what it refused to write at power-on it
//! would refuse later. A refusal when a state is loaded is an error.
//!
//! The order is KVM's. Reading: the MP state first, as that may deliver an INIT. Writing: the local APIC before the
//! registers that set its timer, the TSC before its deadline, pending events last, as general registers clear them.

use crate::vm::vcpu_state::{PowerOnState, read_listed_msrs, write_msrs};
use crate::vm::{Error, Result};
use crate::vmstate::{self, Bytes, Raw};
use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// A TSC that runs at a frequency closer than this, in millionths, is the same to a guest.
const TSC_TOLERANCE_PPM: u64 = 250;

/// The vCPU.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VcpuV1 {
    cpuid: Vec<Raw<kvm_cpuid_entry2>>,
    tsc_khz: Option<u32>,
    mp_state: Option<Raw<kvm_mp_state>>,
    regs: Raw<kvm_regs>,
    sregs: Raw<kvm_sregs>,
    /// One of the two, `xsave` where KVM has it.
    fpu: Option<FpuV1>,
    xsave: Option<Raw<kvm_xsave>>,
    xcrs: Option<Raw<kvm_xcrs>>,
    debug: Option<Raw<kvm_debugregs>>,
    lapic: Option<Raw<kvm_lapic_state>>,
    /// Index and value, in the order in which they are written.
    msrs: Vec<(u32, u64)>,
    events: Option<Raw<kvm_vcpu_events>>,
}

/// The FPU, as KVM has it without XSAVE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FpuV1 {
    st: Bytes,
    control: u16,
    status: u16,
    tags: u8,
    opcode: u16,
    ip: u64,
    dp: u64,
    xmm: Bytes,
    mxcsr: u32,
}

impl FpuV1 {
    fn new(fpu: &kvm_fpu) -> FpuV1 {
        FpuV1 {
            st: Bytes(fpu.fpr.concat()),
            control: fpu.fcw,
            status: fpu.fsw,
            tags: fpu.ftwx,
            opcode: fpu.last_opcode,
            ip: fpu.last_ip,
            dp: fpu.last_dp,
            xmm: Bytes(fpu.xmm.concat()),
            mxcsr: fpu.mxcsr,
        }
    }

    fn registers(&self) -> kvm_fpu {
        let mut fpu = kvm_fpu {
            fcw: self.control,
            fsw: self.status,
            ftwx: self.tags,
            last_opcode: self.opcode,
            last_ip: self.ip,
            last_dp: self.dp,
            mxcsr: self.mxcsr,
            ..Default::default()
        };
        fpu.fpr.iter_mut().flatten().zip(&self.st.0).for_each(|(to, from)| *to = *from);
        fpu.xmm.iter_mut().flatten().zip(&self.xmm.0).for_each(|(to, from)| *to = *from);
        fpu
    }
}

impl VcpuV1 {
    /// Reads a parked vCPU, and of its model-specific registers those in `msrs`. It was told of `cpuid`.
    ///
    /// # Errors
    /// When KVM does not even give the general registers.
    pub(super) fn read(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2], msrs: &[u32]) -> Result<VcpuV1> {
        let mp_state = vcpu.get_mp_state().ok().map(Raw);
        let read = |error| Error::kvm("read registers", error);
        let xsave = vcpu.get_xsave().ok().map(Raw);
        let fpu = if xsave.is_none() { vcpu.get_fpu().ok() } else { None };
        Ok(VcpuV1 {
            cpuid: cpuid.iter().copied().map(Raw).collect(),
            tsc_khz: vcpu.get_tsc_khz().ok(),
            mp_state,
            regs: Raw(vcpu.get_regs().map_err(read)?),
            sregs: Raw(vcpu.get_sregs().map_err(read)?),
            fpu: fpu.as_ref().map(FpuV1::new),
            xsave,
            xcrs: vcpu.get_xcrs().ok().map(Raw),
            debug: vcpu.get_debug_regs().ok().map(Raw),
            lapic: vcpu.get_lapic().ok().map(Raw),
            msrs: read_ordered(vcpu, msrs),
            events: vcpu.get_vcpu_events().ok().map(Raw),
        })
    }

    /// Whether a vCPU that was told of `cpuid` can go on from this state. It has the model-specific registers in
    /// `msrs`, and the state has all parts that the one at power-on has.
    ///
    /// # Errors
    /// What it lacks.
    pub(super) fn check(
        &self,
        cpuid: &[kvm_cpuid_entry2],
        msrs: &[u32],
        power_on: &PowerOnState,
    ) -> vmstate::Result<()> {
        if self.parts().into_iter().zip(power_on.parts()).any(|(has, wanted)| wanted && !has) {
            return Err(vmstate::Error::damaged("a vCPU's registers are not complete"));
        }
        let mut known: BTreeSet<u32> = msrs.iter().copied().chain([IA32_TSC]).collect();
        if let Some((index, _)) = self.msrs.iter().find(|(index, _)| !known.remove(index)) {
            let what = format!("it has the register {index:#x} twice, or this KVM does not have it");
            return Err(vmstate::Error::mismatch(what));
        }
        if let Some(fpu) = &self.fpu
            && (fpu.st.0.len(), fpu.xmm.0.len()) != (128, 256)
        {
            return Err(vmstate::Error::damaged("the FPU's registers have another size"));
        }
        features::check(&self.cpuid, cpuid)
    }

    /// Which parts there are, as [`PowerOnState::parts`].
    fn parts(&self) -> [bool; 6] {
        [
            self.fpu.is_some() || self.xsave.is_some(),
            self.xcrs.is_some(),
            self.mp_state.is_some(),
            self.lapic.is_some(),
            self.events.is_some(),
            self.debug.is_some(),
        ]
    }

    /// The model-specific registers in it.
    pub(super) fn msr_indices(&self) -> Vec<u32> {
        self.msrs.iter().map(|(index, _)| *index).collect()
    }

    /// Puts a parked vCPU into this state.
    ///
    /// # Errors
    /// What KVM says.
    pub(super) fn write(&self, vcpu: &VcpuFd) -> Result<()> {
        self.set_tsc_frequency(vcpu);
        self.write_parts(vcpu).map_err(|error| Error::kvm("take a vCPU's registers", error))?;
        let entry = |&(index, data): &(u32, u64)| kvm_msr_entry { index, data, ..Default::default() };
        let refused = write_msrs(vcpu, &self.msrs.iter().map(entry).collect::<Vec<_>>());
        if let Some(index) = refused.first() {
            return Err(Error::new(format!("KVM refuses the value of the register {index:#x}")));
        }
        let events = self.events.iter().try_for_each(|state| vcpu.set_vcpu_events(&state.0));
        events.map_err(|error| Error::kvm("take a vCPU's pending events", error))
    }

    fn write_parts(&self, vcpu: &VcpuFd) -> std::result::Result<(), kvm_ioctls::Error> {
        self.mp_state.iter().try_for_each(|state| vcpu.set_mp_state(state.0))?;
        vcpu.set_regs(&self.regs.0)?;
        vcpu.set_sregs(&self.sregs.0)?;
        self.fpu.iter().try_for_each(|state| vcpu.set_fpu(&state.registers()))?;
        if let Some(state) = &self.xsave {
            // SAFETY: no feature that needs more than the 4096 bytes of the structure was ever asked for.
            unsafe { vcpu.set_xsave(&state.0) }?;
        }
        self.xcrs.iter().try_for_each(|state| vcpu.set_xcrs(&state.0))?;
        self.debug.iter().try_for_each(|state| vcpu.set_debug_regs(&state.0))?;
        self.lapic.iter().try_for_each(|state| vcpu.set_lapic(&state.0))
    }

    /// Where the CPU cannot scale its TSC, guests are told the frequency by KVM's clock anyway.
    fn set_tsc_frequency(&self, vcpu: &VcpuFd) {
        if let (Some(then), Ok(now)) = (self.tsc_khz, vcpu.get_tsc_khz())
            && u64::from(then.abs_diff(now)) * 1_000_000 > u64::from(now) * TSC_TOLERANCE_PPM
        {
            let _ = vcpu.set_tsc_khz(then);
        }
    }
}

/// The TSC first, its deadline last.
fn read_ordered(vcpu: &VcpuFd, indices: &[u32]) -> Vec<(u32, u64)> {
    let others = indices.iter().copied().filter(|index| !matches!(*index, IA32_TSC | IA32_TSC_DEADLINE));
    let last = indices.contains(&IA32_TSC_DEADLINE).then_some(IA32_TSC_DEADLINE);
    let ordered: Vec<u32> = std::iter::once(IA32_TSC).chain(others).chain(last).collect();
    read_listed_msrs(vcpu, &ordered).iter().map(|entry| (entry.index, entry.data)).collect()
}

/// Whether one CPU has all that another one has.
mod features {
    use crate::vmstate::{Error, Raw, Result};
    use kvm_bindings::kvm_cpuid_entry2;

    /// Function, index, and which registers (EAX, EBX, ECX, EDX) are lists of features.
    const LISTS: &[(u32, u32, [bool; 4])] = &[
        (0x1, 0, [false, false, true, true]),
        (0x7, 0, [false, true, true, true]),
        (0x7, 1, [true, false, false, true]),
        (0xd, 0, [true, false, false, true]),
        (0xd, 1, [true, false, false, false]),
        (0x4000_0001, 0, [true, false, false, false]),
        (0x8000_0001, 0, [false, false, true, true]),
        (0x8000_0007, 0, [false, false, false, true]),
        (0x8000_0008, 0, [false, true, false, false]),
    ];

    /// # Errors
    /// The first feature of `then` that `now` has not.
    pub(super) fn check(then: &[Raw<kvm_cpuid_entry2>], now: &[kvm_cpuid_entry2]) -> Result<()> {
        let then: Vec<kvm_cpuid_entry2> = then.iter().map(|entry| entry.0).collect();
        if vendor(&then) != vendor(now) {
            return Err(Error::mismatch("the snapshot was taken on a CPU of another vendor"));
        }
        for &(function, index, lists) in LISTS {
            let (had, has) = (registers(&then, function, index), registers(now, function, index));
            for register in 0..4 {
                let missing = had[register] & !has[register];
                if lists[register] && missing != 0 {
                    return Err(Error::mismatch(format!(
                        "the snapshot was taken on a CPU with features that this one lacks \
                         (CPUID {function:#x}.{index}, {}: {missing:#x})",
                        ["EAX", "EBX", "ECX", "EDX"][register]
                    )));
                }
            }
        }
        Ok(())
    }

    fn vendor(table: &[kvm_cpuid_entry2]) -> [u32; 3] {
        let [_, b, c, d] = registers(table, 0, 0);
        [b, c, d]
    }

    /// Zeros where the table has no such line.
    fn registers(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let line = table.iter().find(|entry| entry.function == function && entry.index == index);
        line.map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]).unwrap_or_default()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn cpu(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
            kvm_cpuid_entry2 { function, ecx, ..Default::default() }
        }

        #[test]
        fn a_cpu_may_have_more_features_but_none_less_and_no_other_vendor() {
            let then = [Raw(cpu(0, 5)), Raw(cpu(1, 0b0110)), Raw(cpu(2, 0b1111))];
            assert!(check(&then, &[cpu(0, 5), cpu(1, 0b1110)]).is_ok());
            let error = check(&then, &[cpu(0, 5), cpu(1, 0b1010)]).unwrap_err().to_string();
            assert!(error.ends_with("(CPUID 0x1.0, ECX: 0x4)"), "{error}");
            assert!(check(&then, &[cpu(0, 6), cpu(1, 0b1110)]).unwrap_err().to_string().contains("vendor"));
        }
    }
}
