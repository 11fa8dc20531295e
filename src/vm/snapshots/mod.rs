//! VM snapshots: the state of the whole machine, and an internal snapshot of every writable disk, under one tag.

use crate::block::graph::driver::SnapshotInfo;
use crate::vm::machine::Machine;
use crate::vm::{Error, Result};

/// The snapshots of a machine's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotList {
    /// The disks that snapshots are made of, by name; the first one has the VM state.
    pub devices: Vec<String>,
    /// Snapshots that every disk has, as the first disk lists them. Those without VM state are of the disks alone.
    pub complete: Vec<SnapshotInfo>,
    /// Snapshots that some disk lacks: the disk that has one, and what it says of it.
    pub partial: Vec<(String, SnapshotInfo)>,
}

impl Machine {
    /// Takes a VM snapshot, in place of any that has this tag; without one, it is named by the date.
    ///
    /// # Errors
    /// When a disk cannot have snapshots, or what the host says. The old snapshot of that tag is there still, and
    /// the guest goes on.
    pub fn save_snapshot(&mut self, _tag: Option<&str>) -> Result<SnapshotInfo> {
        Err(unfinished())
    }

    /// Makes machine and disks what they were. `which` is a tag or an ID.
    ///
    /// # Errors
    /// When there is no such snapshot, it does not fit this machine or is damaged, or what the host says. The guest
    /// goes on as if nothing had been asked.
    pub fn load_snapshot(&mut self, _which: &str) -> Result<()> {
        Err(unfinished())
    }

    /// Removes a VM snapshot. `which` is a tag or an ID.
    ///
    /// # Errors
    /// When there is no such snapshot, or what the host says.
    pub fn delete_snapshot(&mut self, _which: &str) -> Result<()> {
        Err(unfinished())
    }

    /// What snapshots there are.
    ///
    /// # Errors
    /// When no disk can have VM state, or what the host says.
    pub fn list_snapshots(&self) -> Result<SnapshotList> {
        Err(unfinished())
    }

    /// The guest does not boot at [`Machine::start`] but goes on from this snapshot, a tag or an ID.
    pub fn start_from(&mut self, which: &str) {
        self.start_from = Some(which.to_owned());
    }
}

fn unfinished() -> Error {
    Error::new("VM snapshots are being built")
}
