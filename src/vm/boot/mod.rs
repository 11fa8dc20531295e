//! What runs in the guest before its operating system: firmware, and the demo guest.

pub mod bios;

#[cfg(test)]
mod harness;
