//! `cowvm imgtool` against the real qemu-img: the same command lines in equal folders must give the same exit
//! status, the same bytes on both outputs, and images with the same content.
//!
//! Deliberate differences, which the tests leave out or pin down on their own:
//!
//! * help and version texts, and the words in `-o help`, are our own;
//! * formats, options and commands that are not there yet are refused by name;
//! * the steps of `convert -p` follow the extents of the source, which qemu-img sees cut at the borders of L2
//!   slices (32 MiB at the default cluster size);
//! * a refused `create` leaves what was there untouched, where qemu-img empties or deletes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod check;
mod convert;
mod create;
mod encryption;
mod harness;
mod info;
mod locks;
mod map;
mod resize;
mod snapshot;
mod words;
