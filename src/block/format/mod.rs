//! Format drivers: what stands inside an image file.

pub mod raw;

pub mod qcow2;
