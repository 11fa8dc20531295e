//! NBD, client and server: against qemu-nbd, nbdkit, qemu-img and qemu-io, against a plain array of bytes, and against
//! peers that mean harm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod client;
mod forgetful_server;
mod harness;
mod hostile_client;
mod hostile_server;
mod interop;
mod lending;
mod losses;
mod restart;
mod script;
#[path = "../common/seed.rs"]
mod seed;
mod server;
mod tls;
mod words;
