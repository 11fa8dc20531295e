//! What CPUID tells the guest: all that KVM supports, with each vCPU's place in the topology.
//!
//! The topology is flat: one package, one thread a core, APIC ids counted from 0. Nested virtualization is
//! not offered.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Highest number of vCPUs: APIC ids of 8 bits, 255 is the broadcast.
pub const MAX_VCPUS: u8 = 254;

/// Bits of guest-physical addresses that `supported` announces (CPUID 8000_0008).
pub fn address_bits(supported: &CpuId) -> u32 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map(|entry| entry.eax & 0xff).filter(|bits| (32..=52).contains(bits)).unwrap_or(36)
}

/// The table for vCPU `index` of `count`.
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let has_topology = cpuid.as_slice().iter().any(|entry| entry.function == 0xb);
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    for entry in cpuid.as_mut_slice() {
        adjust(entry, u32::from(index), u32::from(count), tsc_deadline);
    }
    if has_topology {
        // The table has room: what was removed had at least as many lines.
        for subleaf in 0..2 {
            let _ = cpuid.push(extended_topology(subleaf, u32::from(index), u32::from(count)));
        }
    }
    cpuid
}

fn adjust(entry: &mut kvm_cpuid_entry2, index: u32, count: u32, tsc_deadline: bool) {
    match entry.function {
        0x1 => {
            entry.ebx = index << 24 | count << 16 | entry.ebx & 0xffff;
            set(&mut entry.ecx, 5, false); // VMX
            set(&mut entry.ecx, 24, tsc_deadline);
            set(&mut entry.ecx, 31, true); // a hypervisor is present
            set(&mut entry.edx, 28, count > 1); // EBX counts processors
        }
        // Intel's caches: the first two levels belong to a core, the others to all.
        0x4 if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 < 3 { 1 } else { count };
            entry.eax = (count - 1).min(63) << 26 | (sharing - 1) << 14 | entry.eax & 0x3fff;
        }
        0x6 => set(&mut entry.ecx, 3, false), // no energy bias register
        0x8000_0001 => set(&mut entry.ecx, 2, false), // SVM
        0x8000_0008 => entry.ecx = id_bits(count) << 12 | (count - 1),
        // AMD's caches, as above.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 < 3 { 1 } else { count };
            entry.eax = (sharing - 1) << 14 | entry.eax & 0x3fff;
        }
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (index, index & 0xff, 0),
        _ => {}
    }
}

/// Leaf 0Bh: how the APIC id divides into thread, core and package.
fn extended_topology(subleaf: u32, index: u32, count: u32) -> kvm_cpuid_entry2 {
    const SIGNIFICANT_INDEX: u32 = 1;
    let (shift, processors, level) = if subleaf == 0 { (0, 1, 1) } else { (id_bits(count), count, 2) };
    kvm_cpuid_entry2 {
        function: 0xb,
        index: subleaf,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: level << 8 | subleaf,
        edx: index,
        ..Default::default()
    }
}

/// Bits that number `count` processors.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bit: u32, value: bool) {
    *register = *register & !(1 << bit) | u32::from(value) << bit;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: 0x121, ebx: 0x0100_0800, ecx: !0, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let same = |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (function, index);
        *cpuid.as_slice().iter().find(same).unwrap()
    }

    fn supported() -> CpuId {
        let leaves = [(1, 0), (4, 0), (0xb, 0), (0xb, 1), (0x1f, 0), (0x8000_0001, 0), (0x8000_0008, 0)];
        CpuId::from_entries(&leaves.map(|(function, index)| leaf(function, index))).unwrap()
    }

    #[test]
    fn every_vcpu_finds_its_own_apic_id_in_all_leaves() {
        for (index, count) in [(0, 1), (0, 4), (3, 4), (4, 5), (253, 254)] {
            let cpuid = for_vcpu(&supported(), index, count, true);
            assert_eq!(find(&cpuid, 1, 0).ebx >> 24, u32::from(index));
            assert_eq!(find(&cpuid, 1, 0).ebx >> 16 & 0xff, u32::from(count));
            assert_eq!(find(&cpuid, 1, 0).ebx & 0xffff, 0x0800);
            for subleaf in 0..2 {
                assert_eq!(find(&cpuid, 0xb, subleaf).edx, u32::from(index));
            }
            let package = find(&cpuid, 0xb, 1);
            assert!(1u32 << package.eax >= u32::from(count) && package.ebx == u32::from(count));
            assert!(!cpuid.as_slice().iter().any(|entry| entry.function == 0x1f));
        }
    }

    #[test]
    fn nested_virtualization_is_not_offered() {
        let cpuid = for_vcpu(&supported(), 0, 1, false);
        assert_eq!(find(&cpuid, 1, 0).ecx & 1 << 5, 0);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & 1 << 2, 0);
    }

    #[test]
    fn an_absurd_address_width_is_not_believed() {
        let table = |eax| {
            let entry = kvm_cpuid_entry2 { function: 0x8000_0008, eax, ..Default::default() };
            CpuId::from_entries(&[entry]).unwrap()
        };
        assert_eq!(address_bits(&table(0x3028)), 40);
        assert_eq!(address_bits(&table(0xff)), 36);
        assert_eq!(address_bits(&CpuId::from_entries(&[]).unwrap()), 36);
    }
}
