//! The block layer from outside: every driver and stack against a plain array of bytes, and the real qemu-img.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod data_file;
mod discards;
mod fixture;
mod hostile;
mod judge;
mod locks;
mod matrix;
mod model;
mod open;
mod zeroes;
