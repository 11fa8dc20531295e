//! The virtual machine: memory, vCPUs, run state, boot.

pub mod console;
