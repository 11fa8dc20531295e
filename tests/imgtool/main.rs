//! `cowvm imgtool` against the real qemu-img: the same command lines in equal folders must give the same exit
//! status, the same bytes on both outputs, and images with the same content.
//!
//! [`differential`] does so with tables of command lines; the other modules with images and histories of their own.
//! Where ours differs on purpose stands in `differential/deliberate.rs` and in docs/imgtool.md.
//!
//! What those modules leave out, or pin down on their own, and has no row there:
//!
//! * the steps of `convert -p` follow the extents of the source, which qemu-img sees cut at the borders of L2
//!   slices (32 MiB at the default cluster size); those of `commit -p` cannot be foretold, in either tool;
//! * `compare -p` goes from extent to extent too, and so do the places of its read errors; it takes a run of
//!   compressed clusters as one extent, and a run longer than 1 GiB as several;
//! * `dd count=` counts the blocks that are copied, as the manual says, not the skipped ones too; an output that is
//!   its own input is refused, where qemu-img empties it;
//! * `measure -l` takes the snapshot's size, and room for the refcounts of a LUKS header is counted;
//! * LUKS volumes are resized in whole sectors alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod amend;
mod bench;
mod check;
mod checksum;
mod commit;
mod compare;
mod convert;
mod convert_killed;
mod convert_options;
mod convert_streams;
mod create;
mod dd;
mod devices;
mod differential;
mod encryption;
mod harness;
#[path = "../common/holder.rs"]
mod holder;
mod info;
mod json;
mod locks;
#[path = "../common/loop_device.rs"]
mod loop_device;
mod manual;
mod map;
mod measure;
mod names;
mod outputs;
mod progress;
mod rebase;
mod resize;
#[path = "../common/seed.rs"]
mod seed;
mod snapshot;
mod third_party;
mod trace;
mod words;
