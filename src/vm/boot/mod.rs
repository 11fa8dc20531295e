//! What runs in the guest before its operating system: firmware, the demo guest, or the kernel itself.

pub mod bios;
pub mod demo;
pub mod linux;

#[cfg(test)]
mod harness;

use crate::vm::Result;
use crate::vm::run_state::Request;
use kvm_ioctls::VcpuFd;

/// How a machine boots, at power-on and after every reset.
pub enum Boot {
    /// A kernel without firmware below it.
    Linux(linux::LinuxBoot),
    /// The BIOS, which boots from the first disk.
    Bios(bios::Bios),
}

impl Boot {
    /// The port that the guest calls the firmware by, where there is any.
    pub fn port(&self) -> Option<u16> {
        match self {
            Boot::Linux(_) => None,
            Boot::Bios(_) => Some(bios::PORT),
        }
    }

    /// Puts the boot image into the guest's memory and `boot_vcpu`, freshly reset, at its entry.
    ///
    /// # Errors
    /// When a file cannot be read or does not fit, and what KVM says.
    pub fn prepare(&mut self, boot_vcpu: &VcpuFd) -> Result<()> {
        match self {
            Boot::Linux(kernel) => kernel.load()?.apply(boot_vcpu),
            Boot::Bios(bios) => {
                bios.load()?;
                bios::reset_registers(boot_vcpu)
            }
        }
    }

    /// What of it is state, where it is a firmware.
    pub fn save(&self) -> Option<bios::BiosV1> {
        match self {
            Boot::Linux(_) => None,
            Boot::Bios(bios) => Some(bios.save()),
        }
    }

    /// Takes up a state, if it is a firmware.
    pub fn load(&mut self, state: &bios::BiosV1) {
        if let Boot::Bios(bios) = self {
            bios.load_state(state);
        }
    }

    /// Serves a write to the firmware's port by `vcpu`; what the guest asks of the machine, if anything.
    ///
    /// # Errors
    /// What KVM says.
    pub fn call(&mut self, vcpu: &mut VcpuFd) -> Result<Option<Request>> {
        match self {
            Boot::Linux(_) => Ok(None),
            Boot::Bios(bios) => Ok(match bios.call(vcpu)? {
                bios::Action::Continue => None,
                bios::Action::PowerOff => Some(Request::PowerOff),
            }),
        }
    }
}
