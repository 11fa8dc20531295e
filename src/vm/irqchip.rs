//! The interrupt controllers and the timer that KVM runs in the kernel, and their state at power-on.

use crate::vm::{Error, Result};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What the chips of one machine were when it was new.
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

impl PowerOnState {
    /// Reads the state of fresh chips. What this KVM cannot read is left alone at a reset.
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
