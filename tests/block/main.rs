//! The block layer from outside: every driver and stack against a plain array of bytes, and the real qemu-img.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod data_file;
mod devices;
mod discards;
mod fixture;
#[path = "../common/holder.rs"]
mod holder;
mod hostile;
mod judge;
mod loans;
mod locks;
#[path = "../common/loop_device.rs"]
mod loop_device;
mod matrix;
mod model;
mod open;
#[path = "../common/seed.rs"]
mod seed;
mod zeroes;
