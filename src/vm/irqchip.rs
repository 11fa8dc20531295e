//! The interrupt controllers and the timer that KVM runs in the kernel, and their state at power-on.

use crate::vm::{Error, Result};
use crate::vmstate::{self, Raw};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state of the chips of one machine, most of all when it was new.
pub struct PowerOnState {
    chips: Vec<kvm_irqchip>,
    pit: Option<kvm_pit_state2>,
}

/// Creates PICs, I/O APIC and PIT. Must come before the vCPUs, which get their local APICs by it.
///
/// # Errors
/// What KVM says.
pub fn create(vm: &VmFd) -> Result<()> {
    vm.create_irq_chip().map_err(|error| Error::kvm("create the interrupt controllers", error))?;
    // Port 61h is answered by the kernel too.
    let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(config).map_err(|error| Error::kvm("create the timer", error))
}

/// The chips in a VM state; absent what this KVM could not read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipsV1 {
    chips: Vec<Raw<kvm_irqchip>>,
    pit: Option<Raw<kvm_pit_state2>>,
}

impl PowerOnState {
    /// The chips as they are to be saved.
    pub fn save(&self) -> ChipsV1 {
        ChipsV1 { chips: self.chips.iter().copied().map(Raw).collect(), pit: self.pit.map(Raw) }
    }

    /// Whether these chips could be in this state: it is of the same ones.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, state: &ChipsV1) -> vmstate::Result<()> {
        let own = self.chips.iter().map(|chip| chip.chip_id);
        let theirs = state.chips.iter().map(|chip| chip.0.chip_id);
        match own.eq(theirs) && self.pit.is_some() == state.pit.is_some() {
            true => Ok(()),
            false => Err(vmstate::Error::damaged("there are other interrupt controllers in it")),
        }
    }

    /// The chips as they were saved.
    pub fn of(state: &ChipsV1) -> PowerOnState {
        PowerOnState {
            chips: state.chips.iter().map(|chip| chip.0).collect(),
            pit: state.pit.map(|pit| pit.0),
        }
    }

    /// Reads the state of chips. What this KVM cannot read is left alone at a reset.
    pub fn read(vm: &VmFd) -> PowerOnState {
        let chips = CHIPS.into_iter().filter_map(|chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).ok().map(|()| chip)
        });
        PowerOnState { chips: chips.collect(), pit: vm.get_pit2().ok() }
    }

    /// Puts the chips back.
    ///
    /// # Errors
    /// What KVM says.
    pub fn restore(&self, vm: &VmFd) -> Result<()> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(|error| Error::kvm("reset the interrupt controllers", error))?;
        }
        if let Some(pit) = &self.pit {
            vm.set_pit2(pit).map_err(|error| Error::kvm("reset the timer", error))?;
        }
        Ok(())
    }
}
