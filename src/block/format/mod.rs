//! Format drivers: what stands inside an image file.

pub mod luks;
pub mod raw;

pub mod qcow2;
