//! The VM state of a snapshot: a versioned, checksummed stream of device sections, and the guest's RAM at fixed
//! places behind it. It knows bytes and no machine; nothing here reads or writes a disk.
//!
//! ```text
//!         0  head: magic, version, how long everything is, a directory of the sections
//!    64 KiB  sections, one after the other: a device each, as JSON
//!    32 MiB  table of RAM: 16 bytes for each block of 1 MiB
//!    64 MiB  RAM: byte n of it stands at 64 MiB + n, whatever the sections are
//! ```
//!
//! RAM goes in grains of 64 KiB. One that is all zeros is not stored: its place is left out of the image, and the
//! table says so. What the fixed places are for: a grain can be written before or after any other, twice, or
//! while the guest runs, and the length of a device's section moves nothing.
//!
//! Every part has a checksum (XXH3): the head over itself, each section, the table, and in it each block of RAM. A
//! reader takes nothing for true before its checksum has been compared, allocates nothing by a number that has not
//! been held against a limit, and refuses what it does not know: other versions, flags, sections, fields.

mod error;
mod head;
mod ram;
mod raw;
mod section;

pub use error::{Error, Result};
pub use head::{HEAD_LEN, Head, SECTIONS_AT};
pub use ram::{BLOCK, Block, GRAIN, Hasher, MAX_RAM, RAM_AT, TABLE_AT, Table};
pub use raw::{Bytes, Raw};
pub use section::{Section, Sections};

use xxhash_rust::xxh3::xxh3_64;

/// The checksum of some bytes.
fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The little-endian number of `N` bytes at `at`, which lies inside.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    crate::util::le(&bytes[at..at + N])
}

#[cfg(test)]
mod tests;
