//! The virtual machine: memory, vCPUs, run state, boot.

pub mod boot;
pub mod console;
pub mod error;
pub mod layout;
pub mod memory;

pub use error::{Error, Result};
