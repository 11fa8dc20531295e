//! The disks' part of VM snapshots: internal snapshots with one name, date and VM clock, which together tell which
//! snapshots of several disks belong to each other. The first disk has the VM state, and its header decides what
//! there is: each operation has one step on it that counts, and everything else is harmless before or after it.
//!
//! ```text
//!   save     others: create beside the old one │ first: replace, in one switch │ others: delete the old one
//!   delete                                       first: delete                 │ others: delete
//!   load     all: create an undo snapshot;                                     │
//!            others, then first: apply         │ first: delete its undo        │ others: delete theirs
//!                                              └─ what counts
//! ```
//! * An error before that step undoes what was done. A process that dies there leaves snapshots of the other disks
//!   that belong to none of the first one's: they cost space until the name is saved or deleted again.
//! * A load that dies before its step is undone when the disks are opened next (module `recovery`): the first disk
//!   has an undo snapshot still. A machine with one disk needs none, as the disk changes in one switch.
//! * An error after the step is not reported: the snapshot is there, or gone.
//! * All disks are held from before the first change to after the last: what the guest asks of them waits, also where it
//!   runs on already, so that all of them show the same moment.
//! * An error of the step itself that leaves open whether it was done ([`Kind::Undecided`]) undoes nothing: whichever
//!   it was, what belongs to it is there.

use crate::block::drive::{Drained, Drive, Local};
use crate::block::graph::Node;
use crate::block::graph::driver::SnapshotInfo;
use crate::block::graph::snapshots::{NewSnapshot, Selector, Snapshots};
use crate::block::{self, Kind};
use crate::vm::snapshots::SnapshotList;
use crate::vm::snapshots::recovery::{UNDO_OTHER, is_undo, undo_of_first};
use crate::vm::{Error, Result};
use std::rc::Rc;
use std::sync::Arc;

/// The writable disks of a machine, media of removable drives among them.
pub(super) struct Disks {
    /// The one with the VM state.
    pub(super) first: Arc<Drive>,
    others: Vec<Arc<Drive>>,
}

/// Held while no disk has a request in flight, and new ones wait.
#[must_use]
pub(super) struct Held {
    _drained: Vec<Drained>,
}

/// A load that failed.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The disks could not be put back: they are of different moments.
    pub(super) torn: bool,
}

impl Disks {
    /// The disks that VM snapshots are made of.
    ///
    /// # Errors
    /// When a writable one cannot have snapshots, or there is none to store VM state in.
    pub(super) fn of(drives: &[Arc<Drive>]) -> Result<Disks> {
        let mut able = Vec::new();
        let is_part =
            |drive: &&Arc<Drive>| !drive.read_only() && drive.tray().is_none_or(|tray| tray.inserted);
        for drive in drives.iter().filter(is_part) {
            let can = drive.call(|local| async move {
                let root = local.root();
                let driver = root.driver();
                driver.snapshots().is_some() && driver.vm_state().is_some()
            })?;
            if !can {
                let id = drive.id();
                return Err(Error::new(format!("Device '{id}' is writable but does not support snapshots"))
                    .remedy("make it qcow2 with: cowvm imgtool convert -O qcow2, or add readonly=on"));
            }
            able.push(drive.clone());
        }
        // A medium that can be taken out is no place for the machine's state.
        match able.iter().position(|drive| drive.tray().is_none()) {
            Some(first) => Ok(Disks { first: able.remove(first), others: able }),
            None => Err(Error::new("no block device can store vmstate for snapshot")
                .remedy("add a writable qcow2 disk")),
        }
    }

    /// The names of the disks, the first one first.
    fn names(&self) -> Vec<String> {
        self.all().map(|drive| drive.id().to_owned()).collect()
    }

    /// The snapshots that all disks have, and those that some lack, with the disk that has them.
    pub(super) fn list(&self) -> Result<SnapshotList> {
        let first = self.first_list()?;
        let others = self.others.iter().map(list).collect::<Result<Vec<_>>>()?;
        let everywhere =
            |one: &SnapshotInfo| others.iter().all(|list| list.iter().any(|other| same(one, other)));
        let (complete, lacking): (Vec<_>, Vec<_>) = first.into_iter().partition(everywhere);
        let mut partial: Vec<_> =
            lacking.into_iter().map(|snapshot| (self.first.id().to_owned(), snapshot)).collect();
        for (drive, list) in self.others.iter().zip(others) {
            let loose = |one: &SnapshotInfo| !complete.iter().any(|other| same(one, other));
            let loose = list.into_iter().filter(|one| !is_undo(&one.name) && loose(one));
            partial.extend(loose.map(|snapshot| (drive.id().to_owned(), snapshot)));
        }
        Ok(SnapshotList { devices: self.names(), complete, partial })
    }

    /// The VM snapshot that a tag or an ID names, which all disks have.
    pub(super) fn require(&self, which: &str) -> Result<SnapshotInfo> {
        let missing = || Error::new(format!("Snapshot '{which}' does not exist in one or more devices"));
        let snapshot = find(&self.first_list()?, which)?.ok_or_else(missing)?;
        for drive in &self.others {
            if !list(drive)?.iter().any(|other| same(&snapshot, other)) {
                return Err(missing().remedy(format!("the disk '{}' lacks it", drive.id())));
            }
        }
        match snapshot.vm_state_size {
            0 => Err(Error::new("This is a disk-only snapshot. Revert to it offline using qemu-img")),
            _ => Ok(snapshot),
        }
    }

    /// Whether a snapshot could have that name, and be there as long as its parts are.
    ///
    /// # Errors
    /// When it could not.
    pub(super) fn check_new(&self, name: &str) -> Result<()> {
        if is_undo(name) {
            return Err(Error::new(format!("the name '{name}' is cowvm's own")).remedy("take another one"));
        }
        let mode = |drive: &Arc<Drive>| drive.options().snapshot;
        match self.others.iter().find(|drive| mode(drive) != mode(&self.first)) {
            Some(other) => {
                let (one, other) = (self.first.id(), other.id());
                let what = format!("of the disks '{one}' and '{other}' only one is in snapshot mode");
                Err(Error::new(format!("{what}, and its part would be gone at the end"))
                    .remedy("start with all disks in snapshot mode, or none"))
            }
            None => Ok(()),
        }
    }

    /// Waits until no disk has a request in flight, and holds back new ones.
    pub(super) fn hold(&self) -> Result<Held> {
        hold(self.all())
    }

    /// Makes all completed writes to the disks durable.
    pub(super) fn flush(&self) -> Result<()> {
        self.all().try_for_each(|drive| on(drive, |local| async move { local.flush().await }))
    }

    /// Makes a snapshot of all disks, which are held since the moment that it is of, in place of any that has its name.
    /// The first disk has the VM state already.
    pub(super) fn store(&self, new: &NewSnapshot, _held: Held) -> Result<SnapshotInfo> {
        let mut made = Vec::new();
        for drive in &self.others {
            match create(drive, new) {
                Ok(snapshot) => made.push((drive, snapshot)),
                Err(error) => return Err(undone(error, &made)),
            }
        }
        let stored = match replace(&self.first, new) {
            Ok(stored) => stored,
            Err(error) if error.is_undecided() => return Err(error),
            Err(error) => return Err(undone(error, &made)),
        };
        for (drive, snapshot) in made {
            let old = |other: &SnapshotInfo| other.name == new.name && other.id != snapshot.id;
            // It belongs to nothing any more; another time will do.
            let _ = delete_all(drive, old);
        }
        Ok(stored)
    }

    /// Removes a snapshot from all disks, and what is left of one that only some have.
    pub(super) fn delete(&self, which: &str) -> Result<()> {
        let _held = self.hold()?;
        let found = find(&self.first_list()?, which)?;
        if let Some(snapshot) = &found {
            delete(&self.first, &snapshot.id)?;
        }
        let kept = self.first_list()?;
        let mut removed = found.is_some();
        for drive in &self.others {
            let loose = |other: &SnapshotInfo| match &found {
                Some(snapshot) => same(snapshot, other),
                None => other.name == which && !kept.iter().any(|snapshot| same(snapshot, other)),
            };
            match delete_all(drive, loose) {
                Ok(count) => removed |= count > 0,
                // What counts has been done.
                Err(_) if found.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        match removed {
            true => Ok(()),
            false => Err(Error::new(format!("there is no snapshot '{which}'"))
                .remedy("type 'info snapshots' for a list")),
        }
    }

    /// Makes all disks what they were, or none.
    pub(super) fn apply(&self, snapshot: &SnapshotInfo) -> std::result::Result<(), Failed> {
        let _held = self.hold().map_err(|error| Failed { error, torn: false })?;
        if self.others.is_empty() {
            return apply(&self.first, &snapshot.id)
                .map_err(|error| Failed { torn: error.is_undecided(), error });
        }
        let undo = self.undo_of(snapshot);
        let done = self.forget_undo().and_then(|()| self.apply_with_undo(snapshot, &undo));
        match done {
            Ok(()) => {
                // If not, the next load does it, or the next start.
                let _ = self.forget_undo();
                Ok(())
            }
            Err(error) if error.is_undecided() => Err(Failed { error, torn: true }),
            Err(error) => Err(Failed { error, torn: self.roll_back(&undo).is_err() }),
        }
    }

    /// The undo snapshots of a load of `snapshot`, which have its date and clock: of the first disk, and of the others.
    fn undo_of(&self, snapshot: &SnapshotInfo) -> [NewSnapshot; 2] {
        [undo_of_first(1 + self.others.len()), UNDO_OTHER.to_owned()].map(|name| NewSnapshot {
            name,
            date: snapshot.date,
            vm_clock_nsec: snapshot.vm_clock_nsec,
            ..NewSnapshot::default()
        })
    }

    fn apply_with_undo(&self, snapshot: &SnapshotInfo, [first, other]: &[NewSnapshot; 2]) -> Result<()> {
        let undo = create(&self.first, first)?;
        self.others.iter().try_for_each(|drive| create(drive, other).map(drop))?;
        for drive in &self.others {
            let list = list(drive)?;
            let theirs = list.iter().find(|other| same(snapshot, other));
            let theirs = theirs.ok_or_else(|| Error::new("a disk has lost the snapshot"))?;
            apply(drive, &theirs.id)?;
        }
        apply(&self.first, &snapshot.id)?;
        delete(&self.first, &undo.id)
    }

    /// Applies the undo snapshots and removes them.
    fn roll_back(&self, [first, other]: &[NewSnapshot; 2]) -> Result<()> {
        self.others.iter().try_for_each(|drive| apply_one(drive, |undo| undo.name == other.name))?;
        apply_one(&self.first, |undo| undo.name == first.name)?;
        self.forget_undo()
    }

    /// Removes the undo snapshots, the first disk's before the others'.
    fn forget_undo(&self) -> Result<()> {
        self.all().try_for_each(|drive| delete_all(drive, |snapshot| is_undo(&snapshot.name)).map(drop))
    }

    fn first_list(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(list(&self.first)?.into_iter().filter(|snapshot| !is_undo(&snapshot.name)).collect())
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Drive>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// Whether two snapshots of different disks belong to each other.
fn same(one: &SnapshotInfo, other: &SnapshotInfo) -> bool {
    one.name == other.name && one.date == other.date && one.vm_clock_nsec == other.vm_clock_nsec
}

/// The snapshot of this tag, or else of this ID.
///
/// # Errors
/// When several have the tag.
fn find(list: &[SnapshotInfo], which: &str) -> Result<Option<SnapshotInfo>> {
    let mut tagged = list.iter().filter(|snapshot| snapshot.name == which);
    match (tagged.next(), tagged.next()) {
        (Some(_), Some(_)) => Err(Error::new(format!("several snapshots have the tag '{which}'"))
            .remedy("name one by its ID (see 'info snapshots')")),
        (Some(one), None) => Ok(Some(one.clone())),
        _ => Ok(list.iter().find(|snapshot| snapshot.id == which).cloned()),
    }
}

/// Takes away again what was made, as far as that is possible.
fn undone(error: Error, made: &[(&Arc<Drive>, SnapshotInfo)]) -> Error {
    for (drive, snapshot) in made {
        // If not, it stays as a snapshot that belongs to none.
        let _ = delete(drive, &snapshot.id);
    }
    error
}

fn list(drive: &Arc<Drive>) -> Result<Vec<SnapshotInfo>> {
    let list = drive.call(|local| async move { Ok(snapshots(&local.root())?.list()) });
    list.flatten().map_err(|error| named(drive, error))
}

fn create(drive: &Arc<Drive>, new: &NewSnapshot) -> Result<SnapshotInfo> {
    let new = new.clone();
    // VM state is the first disk's alone, and not an undo's.
    let new = NewSnapshot { vm_state_size: 0, ..new };
    on(drive, |local| async move { snapshots(&local.root())?.create(&new).await })
}

fn replace(drive: &Arc<Drive>, new: &NewSnapshot) -> Result<SnapshotInfo> {
    let new = new.clone();
    on(drive, |local| async move { snapshots(&local.root())?.replace(&new).await })
}

fn apply(drive: &Arc<Drive>, id: &str) -> Result<()> {
    let which = Selector::Id(id.to_owned());
    on(drive, |local| async move {
        let done = snapshots(&local.root())?.apply(&which).await;
        local.note_size();
        done
    })
}

/// Applies the snapshot that `of` says yes to, if there is one.
pub(super) fn apply_one(drive: &Arc<Drive>, of: impl Fn(&SnapshotInfo) -> bool) -> Result<()> {
    match list(drive)?.iter().find(|snapshot| of(snapshot)) {
        Some(snapshot) => apply(drive, &snapshot.id),
        None => Ok(()),
    }
}

fn delete(drive: &Arc<Drive>, id: &str) -> Result<()> {
    let which = Selector::Id(id.to_owned());
    on(drive, |local| async move { snapshots(&local.root())?.delete(&which).await })
}

/// Deletes the snapshots that `of` says yes to; says how many.
pub(super) fn delete_all(drive: &Arc<Drive>, of: impl Fn(&SnapshotInfo) -> bool) -> Result<usize> {
    let doomed: Vec<_> = list(drive)?.into_iter().filter(|snapshot| of(snapshot)).collect();
    doomed.iter().try_for_each(|snapshot| delete(drive, &snapshot.id))?;
    Ok(doomed.len())
}

/// Waits until none of `drives` has a request in flight, and holds back new ones.
pub(super) fn hold<'a>(drives: impl IntoIterator<Item = &'a Arc<Drive>>) -> Result<Held> {
    let drained = |drive: &Arc<Drive>| drive.call(|local| async move { local.drained().await });
    Ok(Held { _drained: drives.into_iter().map(drained).collect::<block::Result<_>>()? })
}

/// Does `work` on a disk's thread. Where it changes something, the disk is held.
fn on<T, F>(drive: &Drive, work: impl FnOnce(Rc<Local>) -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = block::Result<T>> + 'static,
{
    drive.call(work).flatten().map_err(|error| named(drive, error))
}

/// An error with the disk that it is of, if it does not say.
pub(super) fn named(drive: &Drive, error: block::Error) -> Error {
    match error.file() {
        Some(_) => error.into(),
        None => Error::from(error).context(drive.id()),
    }
}

fn snapshots(root: &Node) -> block::Result<&dyn Snapshots> {
    let snapshots = root.driver().snapshots();
    snapshots.ok_or_else(|| block::Error::new(Kind::Unsupported, "the disk cannot have snapshots"))
}
