//! `cowvm imgtool` against the real qemu-img: the same command lines in equal folders must give the same exit
//! status, the same bytes on both outputs, and images with the same content.
//!
//! Deliberate differences, which the tests leave out or pin down on their own:
//!
//! * help and version texts, and the words in `-o help`, are our own;
//! * formats, options and commands that are not there yet are refused by name;
//! * the steps of `convert -p` follow the extents of the source, which qemu-img sees cut at the borders of L2
//!   slices (32 MiB at the default cluster size);
//! * the steps of `commit -p` are none that can be foretold, in either tool;
//! * `rebase` refuses a missing or wrong format of a backing file before it writes anything;
//! * long forms of `snapshot` take the name that qemu-img's help promises and its parser refuses;
//! * LUKS volumes are resized in whole sectors alone;
//! * a refused `create` leaves what was there untouched, where qemu-img empties or deletes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod amend;
mod check;
mod commit;
mod convert;
mod create;
mod encryption;
mod harness;
mod info;
mod locks;
mod map;
mod rebase;
mod resize;
mod snapshot;
mod words;
