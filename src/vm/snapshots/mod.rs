//! VM snapshots: the state of the whole machine, and an internal snapshot of every writable disk, under one tag.
//!
//! ```text
//!   save   pause ─▶ sections, RAM ─▶ behind the first disk ─▶ disks held, go on ─▶ snapshots of all disks ─▶ disks go on
//!   load   pause ─▶ read and check everything ─▶ vCPUs, devices ─▶ disks ─▶ RAM, vCPUs, devices ─▶ go on
//!                                                  └── undone if one refuses ──┘
//! ```
//! Invariant: whatever fails, the guest goes on as if nothing had been asked, and what snapshots there were load. So
//! new VM state goes where no snapshot is, and the disks' part has one step that counts (module `disks`).
//!
//! A load has no second set of RAM: all of it is read and compared with its checksums first, and read again into
//! the guest's when nothing else can fail any more. A guest that has not begun has no RAM to lose: its is
//! read once.
//!
//! Two failures end the machine: disks that cannot be put back (they are of different moments then, and become what
//! they were before the load at the next start), and RAM that was read a moment ago and now cannot be (the disks are
//! as in the snapshot).

mod disks;
mod media;
mod ram;
mod recovery;
mod state;
#[cfg(test)]
mod tests;

use crate::block::drive::Drive;
use crate::block::graph::driver::SnapshotInfo;
use crate::block::graph::snapshots::NewSnapshot;
use crate::util::time::local_date;
use crate::vm::machine::{Event, Machine, Status};
use crate::vm::memory::{self, GuestMemory};
use crate::vm::run_state::Request;
use crate::vm::{Error, Result};
use crate::vmstate::{HEAD_LEN, Head, SECTIONS_AT, Section, TABLE_AT, Table};
use disks::{Disks, Failed, Held};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
    pub fn save_snapshot(&mut self, tag: Option<&str>) -> Result<SnapshotInfo> {
        let disks = self.snapshot_disks()?;
        let tag = tag.filter(|tag| !tag.is_empty()).map_or_else(name_by_date, str::to_owned);
        disks.check_new(&tag)?;
        let saved = self.save(&disks, &tag);
        if saved.is_err() {
            // If not, the next snapshot does it.
            let _ = ram::discard(&disks.first);
        }
        saved.map_err(|error| error.context(&format!("cannot take the snapshot '{tag}'")))
    }

    /// Makes machine and disks what they were. `which` is a tag or an ID.
    ///
    /// # Errors
    /// When there is no such snapshot, it does not fit this machine or is damaged, or what the host says. The guest
    /// goes on as if nothing had been asked.
    pub fn load_snapshot(&mut self, which: &str) -> Result<()> {
        let disks = self.snapshot_disks()?;
        let snapshot = disks.require(which)?;
        self.while_paused(|machine| machine.load_paused(&disks, &snapshot))
            .map_err(|error| error.context(&format!("cannot load the snapshot '{which}'")))?;
        self.note(Event::Loaded);
        if self.status == Status::IoError {
            // What failed was forgotten with everything else.
            self.status = Status::Paused;
        }
        Ok(())
    }

    /// Removes a VM snapshot. `which` is a tag or an ID.
    ///
    /// # Errors
    /// When there is no such snapshot, or what the host says.
    pub fn delete_snapshot(&mut self, which: &str) -> Result<()> {
        self.snapshot_disks()?.delete(which)
    }

    /// What snapshots there are.
    ///
    /// # Errors
    /// When no disk can have VM state, or what the host says.
    pub fn list_snapshots(&self) -> Result<SnapshotList> {
        self.snapshot_disks()?.list()
    }

    /// The guest does not boot at [`Machine::start`] but goes on from this snapshot, a tag or an ID.
    pub fn start_from(&mut self, which: &str) {
        self.start_from = Some(which.to_owned());
    }

    /// Undoes a load that an earlier process did not come to the end of.
    pub(super) fn recover_disks(&self) -> Result<()> {
        recovery::recover(&self.drives())
    }

    fn snapshot_disks(&self) -> Result<Disks> {
        Disks::of(&self.drives())
    }

    fn drives(&self) -> Vec<Arc<Drive>> {
        self.disks.iter().map(|disk| disk.drive.clone()).collect()
    }

    fn while_paused<T>(&mut self, work: impl FnOnce(&mut Machine) -> Result<T>) -> Result<T> {
        let running = self.status == Status::Running;
        self.pause();
        if running {
            self.note(Event::Stop);
        }
        let done = work(self);
        if self.status == Status::Running {
            self.resume();
            self.note(Event::Resume);
        }
        done
    }

    /// The guest stands still while its state is read, and not while that becomes durable.
    fn save(&mut self, disks: &Disks, tag: &str) -> Result<SnapshotInfo> {
        prepare(disks, memory::size(&self.memory))?;
        let (new, held) = self.while_paused(|machine| machine.save_paused(disks, tag))?;
        disks.store(&new, held)
    }

    fn save_paused(&self, disks: &Disks, tag: &str) -> Result<(NewSnapshot, Held)> {
        let new = NewSnapshot {
            name: tag.to_owned(),
            date: now(),
            vm_clock_nsec: u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX),
            icount: None,
            vm_state_size: 0,
        };
        let new = write_state(disks, new, &self.capture()?, &self.memory)?;
        Ok((new, disks.hold()?))
    }

    fn load_paused(&mut self, disks: &Disks, snapshot: &SnapshotInfo) -> Result<()> {
        let (sections, table) = read_head(disks, snapshot, memory::size(&self.memory))?;
        let state = self.check_state(sections)?;
        let ram = |machine: &Machine| ram::load(&disks.first, &snapshot.id, &machine.memory, &table);
        match self.begun {
            true => ram::check(&disks.first, &snapshot.id, memory::size(&self.memory), &table)?,
            false => ram(self)?,
        }
        let undo = self.check_state(self.capture()?)?;
        let applied = self.apply_state(&state).map_err(|error| Failed { error, torn: false });
        if let Err(Failed { error, torn }) = applied.and_then(|()| disks.apply(snapshot)) {
            let undone = self.apply_state(&undo);
            return Err(if torn || undone.is_err() { self.give_up(&error) } else { error });
        }
        if self.begun {
            // Once more, as KVM reads page tables of 32-bit guests when it takes registers up.
            let loaded = ram(self).and_then(|()| self.apply_state(&state));
            loaded.map_err(|error| self.give_up(&error))?;
        }
        self.run_state().replace_request(state.request());
        Ok(())
    }

    /// Ends the machine: nothing of it may reach the disks any more.
    fn give_up(&mut self, error: &Error) -> Error {
        (self.status, self.broken) = (Status::Paused, true);
        let what = "a snapshot was loaded in part, and what was before cannot be put back";
        let error = Error::new(format!("{what}: {error}"));
        self.run_state().request(Request::Failure(error.to_string()));
        error
    }
}

/// Does all that a save of so much RAM can do while the guest still runs: makes room, and leaves little for the flushes.
fn prepare(disks: &Disks, ram: u64) -> Result<()> {
    // What an earlier save left that did not come to its end.
    ram::discard(&disks.first)?;
    ram::reserve(&disks.first, ram)?;
    disks.flush()
}

/// Writes VM state behind the first disk: nothing refers to that place yet. Returns the snapshot that it is for.
fn write_state(
    disks: &Disks,
    new: NewSnapshot,
    sections: &[Section],
    memory: &Arc<GuestMemory>,
) -> Result<NewSnapshot> {
    let table = ram::store(&disks.first, memory)?;
    let (bytes, sum) = table.encode();
    let size = memory::size(memory);
    let (head, bodies) = Head::new(sections, size, table.stored().min(size), sum)?;
    let stored = head.stored + (HEAD_LEN + bodies.len() + bytes.len()) as u64;
    ram::write(&disks.first, vec![(TABLE_AT, bytes), (SECTIONS_AT, bodies), (0, head.encode())])?;
    Ok(NewSnapshot { vm_state_size: stored, ..new })
}

/// Reads and checks all VM state but RAM: the sections, and what is stored of so much RAM.
fn read_head(disks: &Disks, snapshot: &SnapshotInfo, ram: u64) -> Result<(Vec<Section>, Arc<Table>)> {
    let read = |at, len| ram::read(&disks.first, &snapshot.id, at, len);
    let head = Head::decode(&read(0, HEAD_LEN)?)?;
    let sections = head.sections(&read(SECTIONS_AT, head.bodies_len())?)?;
    if head.ram != ram {
        let remedy = format!("start with -m {}k", head.ram >> 10);
        return Err(Error::new("the snapshot is of a machine with other memory").remedy(remedy));
    }
    let table = Table::decode(&read(TABLE_AT, Table::len_of(head.ram))?, head.ram, head.table)?;
    Ok((sections, Arc::new(table)))
}

/// Seconds and nanoseconds since the epoch, the latter in whole microseconds as QEMU has them.
fn now() -> (u32, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_micros() * 1000)
}

/// `vm-20261122113258`, in local time.
fn name_by_date() -> String {
    let digits: String = local_date(i64::from(now().0)).chars().filter(char::is_ascii_digit).collect();
    format!("vm-{digits}")
}
