//! The virtual machine: memory, vCPUs, run state, boot.

pub mod boot;
pub mod builder;
pub mod console;
pub mod cpuid;
pub mod disk_errors;
pub mod error;
pub mod irqchip;
pub mod kick;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod memory_map;
pub mod run_clock;
pub mod run_state;
pub mod snapshots;
pub mod vcpu;
mod vcpu_section;
pub mod vcpu_state;

pub use error::{Error, Result};
