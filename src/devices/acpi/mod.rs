//! ACPI: the tables that describe the machine, and the fixed hardware that they promise.

pub mod pm;
pub mod tables;
