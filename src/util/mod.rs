//! What every layer may use: on-disk integers, sizes with suffixes, key=value options, JSON, names as text, command
//! lines, the NBD protocol.

pub(crate) mod getopt;
pub mod json;
pub mod keyval;
pub mod nbd;
pub mod size;
pub mod text;
pub mod time;

/// A little-endian number of at most 8 bytes.
pub fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
