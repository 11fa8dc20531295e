//! The monitor: people and programs inspect and control a running machine.
//!
//! ```text
//!   console keys (mux) ─┐
//!   terminal, socket ───┼─▶ hmp: a line ─▶ table ─┐
//!                       │                         ├─▶ a function of a topic ─▶ vm::machine, drives
//!   socket ─────────────┴─▶ qmp: JSON ──▶ table ──┘         │
//!                                                           └─▶ pending: work on the drives' threads
//!   machine ─▶ events ─▶ every qmp client
//! ```
//!
//! A topic (a file here) has the functions that do something and, for each language, a table of rows that call them:
//! neither language can do what the other does otherwise. The main thread runs all of it, and never waits for a client;
//! for disks it waits only where the guest is stopped, until the requests in flight are done (docs/monitor.md).

mod block_info;
mod control;
mod disks;
mod error;
pub mod events;
mod hardware;
pub mod hmp;
mod info;
mod jobs;
mod media;
pub mod mux;
mod nbd;
mod pending;
pub mod qmp;
mod run_control;
pub mod server;
mod snapshots;
pub mod socket;

pub use control::Control;
pub use disks::commit_all;
pub use error::{Error, Result};
pub use pending::Pending;

/// Somebody who talks to the monitor, byte by byte: a language with what it remembers of one user.
pub trait Dialogue {
    /// What a new user is told first.
    fn greeting(&self) -> Vec<u8>;

    /// Takes what the user has sent; answers go to `out`.
    fn feed(&mut self, bytes: &[u8], control: &mut Control, out: &mut Vec<u8>);

    /// Goes on when work is done that a command of this user began.
    fn poll(&mut self, control: &mut Control, out: &mut Vec<u8>);

    /// A command is not answered yet: nothing more should be fed.
    fn is_busy(&self) -> bool;

    /// Something happened, as a QMP event.
    fn tell(&mut self, event: &serde_json::Value, out: &mut Vec<u8>);
}
