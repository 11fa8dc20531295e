//! Guests that boot Linux: the scenarios, and the harness that finds or makes a machine for them.
//!
//! ```text
//!   #[test] ──▶ Session (a folder with disks and a script)
//!                  │ run
//!        ┌─────────┴──────────────┐
//!   /dev/kvm runs Linux      it does not
//!        │                        │
//!   script on this host      outer machine (QEMU, emulated, with SVM)
//!        │                        │ script, on the true /dev/kvm of the outer machine
//!      cowvm                    cowvm
//!        │                        │
//!   inner guest: Debian's kernel, busybox, a script of tests/vm/guest/
//! ```
//!
//! `tests/README.md` tells how to run one of them and how to look at what it did.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod everything;
mod fat;
mod harness;
mod linux;
#[path = "../common/seed.rs"]
mod seed;
mod snapshots;
