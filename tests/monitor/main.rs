//! The control side of a running machine, from outside: clients on sockets, keys on the console, and small guests of
//! our own that write what they are told to. Disks are looked at with the real qemu-img and qemu-io.
//!
//! Where /dev/kvm cannot be opened, the tests say so and pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod chapter;
mod clients;
mod demo;
mod disk_errors;
mod hmp;
mod machine;
mod media;
mod nbd;
mod qmp;
#[path = "../common/running.rs"]
mod running;
mod snapshot_mode;
mod terminal;
