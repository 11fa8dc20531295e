//! `cowvm run` as a process, with guests of a few bytes that every /dev/kvm can run: resets, power-off, serial
//! port, monitor, signals, terminal; and what it says when it cannot run.
//!
//! Where /dev/kvm cannot be opened, the tests that need it say so and pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod guest;
mod process;
#[path = "../common/running.rs"]
mod running;
mod snapshots;
