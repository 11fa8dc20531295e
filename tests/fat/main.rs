//! Directories shown as FAT disks, from outside: what mtools and fsck.fat make of them, and what becomes of the
//! directory when mtools, or a hostile guest, changes the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod disk;
mod harness;
mod hostile;
mod meanwhile;
mod open;
mod random;
#[path = "../common/seed.rs"]
mod seed;
mod steps;
