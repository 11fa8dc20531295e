//! What runs in the guest before its operating system: firmware, and the demo guest.

pub mod bios;
pub mod demo;

#[cfg(test)]
mod harness;
