//! Loads that an earlier process did not come to the end of: found and undone before a guest sees its disks.
//!
//! ```text
//!   first disk    cowvm-loadvm-undo-N    N disks were to change: put them all back
//!   other disks   cowvm-loadvm-undo-other
//! ```
//! An undo snapshot has the date and VM clock of the VM snapshot that was being loaded. So it tells which disks belong
//! together: those that have this VM snapshot. While the first disk has its undo snapshot the load is not done; when
//! it has none any more, those of the others are left over.
//!
//! Invariant: no guest runs on disks of different moments, and no undo snapshot goes before the first disk says that
//! it may. Where the disks of a load are not all here, or one must not be written, the machine does not start.

use super::disks::{apply_one, delete_all, hold};
use crate::block::drive::{Drive, Local};
use crate::block::graph::ChildRole;
use crate::block::graph::driver::SnapshotInfo;
use crate::vm::{Error, Result};
use std::rc::Rc;
use std::sync::Arc;

const UNDO: &str = "cowvm-loadvm-undo";
pub(super) const UNDO_OTHER: &str = "cowvm-loadvm-undo-other";

/// The name of the first disk's undo snapshot in a load of so many disks.
pub(super) fn undo_of_first(disks: usize) -> String {
    format!("{UNDO}-{disks}")
}

/// Whether a name is kept for undo snapshots.
pub(super) fn is_undo(name: &str) -> bool {
    name.starts_with(UNDO)
}

/// An image's name, and its snapshots.
type Image = (String, Vec<SnapshotInfo>);

/// A disk, and the snapshots in it and in the images below it.
struct Disk<'a> {
    drive: &'a Arc<Drive>,
    /// Of the image at the top, if it can be written.
    own: Vec<SnapshotInfo>,
    /// The images that are only read.
    fixed: Vec<Image>,
}

impl Disk<'_> {
    fn read(drive: &Arc<Drive>) -> Result<Disk<'_>> {
        let mut fixed = drive.call(|local| async move { all_snapshots(&local) })?;
        let own = if drive.read_only() { Vec::new() } else { fixed.remove(0).1 };
        Ok(Disk { drive, own, fixed })
    }

    /// Whether it has, or had, a part in the load that `undo` is of.
    fn belongs_to(&self, undo: &SnapshotInfo) -> bool {
        self.own.iter().any(|snapshot| same_load(snapshot, undo))
    }
}

/// The snapshots of each image of the chain, the top one first.
fn all_snapshots(local: &Rc<Local>) -> Vec<Image> {
    let (mut all, mut node) = (Vec::new(), Some(local.root()));
    while let Some(image) = node {
        let list = image.driver().snapshots().map(|snapshots| snapshots.list());
        all.push((image.filename().to_owned(), list.unwrap_or_default()));
        node = image.child(ChildRole::Backing);
    }
    all
}

fn same_load(one: &SnapshotInfo, other: &SnapshotInfo) -> bool {
    one.date == other.date && one.vm_clock_nsec == other.vm_clock_nsec
}

/// Undoes what is not done, and removes what is left of what is.
///
/// # Errors
/// When the disks of a load are not all here to be written; what the host says.
pub(super) fn recover(drives: &[Arc<Drive>]) -> Result<()> {
    let _held = hold(drives)?;
    let disks = drives.iter().map(Disk::read).collect::<Result<Vec<_>>>()?;
    for disk in &disks {
        for (image, list) in &disk.fixed {
            if let Some(undo) = list.iter().find(|snapshot| is_undo(&snapshot.name)) {
                return Err(refuse(disk, image, undo));
            }
        }
        for undo in disk.own.iter().filter(|snapshot| is_undo(&snapshot.name)) {
            let load: Vec<_> = disks.iter().filter(|disk| disk.belongs_to(undo)).collect();
            let first = load.iter().find_map(|disk| Some((*disk, marked(disk, undo)?)));
            match first {
                Some((first, count)) if load.len() >= count => roll_back(first, &load, undo)?,
                None if load.iter().any(|disk| has_state(disk, undo)) => {
                    delete_all(disk.drive, |snapshot| snapshot.id == undo.id)?;
                }
                _ => return Err(refuse(disk, &disk.drive.filename(), undo)),
            }
        }
    }
    Ok(())
}

/// How many disks the load has that this disk is the first one of, if it is not done.
fn marked(disk: &Disk<'_>, undo: &SnapshotInfo) -> Option<usize> {
    let count = |snapshot: &SnapshotInfo| snapshot.name.strip_prefix(UNDO)?.strip_prefix('-')?.parse().ok();
    disk.own.iter().filter(|snapshot| same_load(snapshot, undo)).find_map(count)
}

/// Whether this is the disk with the VM state that was loaded.
fn has_state(disk: &Disk<'_>, undo: &SnapshotInfo) -> bool {
    disk.own.iter().any(|snapshot| same_load(snapshot, undo) && snapshot.vm_state_size > 0)
}

/// Puts the disks of a load back. Done again, it does nothing.
fn roll_back(first: &Disk<'_>, load: &[&Disk<'_>], undo: &SnapshotInfo) -> Result<()> {
    let others = || load.iter().filter(|disk| !Arc::ptr_eq(disk.drive, first.drive));
    let is_one = |snapshot: &SnapshotInfo| is_undo(&snapshot.name) && same_load(snapshot, undo);
    others().try_for_each(|disk| apply_one(disk.drive, is_one))?;
    apply_one(first.drive, is_one)?;
    delete_all(first.drive, is_one)?;
    others().try_for_each(|disk| delete_all(disk.drive, is_one).map(drop))
}

fn refuse(disk: &Disk<'_>, image: &str, undo: &SnapshotInfo) -> Error {
    let (id, name) = (disk.drive.id(), &undo.name);
    Error::new(format!("the disk '{id}' was being changed by a loadvm that did not come to its end"))
        .remedy(format!(
            "start once with all disks of that machine, writable, and they are put back; or take this one as it is: \
             cowvm imgtool snapshot -d {name} {image}"
        ))
}
