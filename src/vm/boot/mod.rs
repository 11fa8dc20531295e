//! What runs in the guest before its operating system.

pub mod linux;

use crate::vm::Result;
use crate::vm::run_state::Request;
use kvm_ioctls::VcpuFd;

/// How a machine boots, at power-on and after every reset.
pub enum Boot {
    /// A kernel without firmware below it.
    Linux(linux::LinuxBoot),
}

impl Boot {
    /// Puts the boot image into the guest's memory and `boot_vcpu`, freshly reset, at its entry.
    ///
    /// # Errors
    /// When a file cannot be read or does not fit, and what KVM says.
    pub fn prepare(&mut self, boot_vcpu: &VcpuFd) -> Result<()> {
        match self {
            Boot::Linux(kernel) => kernel.load()?.apply(boot_vcpu),
        }
    }

    /// Serves a write to the BIOS port by `vcpu`; what the guest asks of the machine, if anything.
    ///
    /// # Errors
    /// What KVM says.
    pub fn call(&mut self, _vcpu: &mut VcpuFd) -> Result<Option<Request>> {
        match self {
            Boot::Linux(_) => Ok(None),
        }
    }
}
