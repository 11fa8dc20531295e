//! Protocol drivers: where the bytes of an image are.

pub mod file;
pub mod vvfat;
