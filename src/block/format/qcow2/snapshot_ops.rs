//! Creating, applying and deleting internal snapshots: what each does to the trees of the image. How they
//! change as one is in [`super::trees`].
//!
//! | verb | references that go | that come | live tree |
//! | --- | --- | --- | --- |
//! | create | – | of the live disk | as it is |
//! | replace | of the old snapshots | of the live disk | as it is |
//! | apply | of the live disk | of the snapshot's disk | the snapshot's |
//! | delete | of the snapshot | – | as it is |
//!
//! The live disk and a new snapshot share all L2 tables: a write copies the one that it changes. VM state moves
//! into the snapshot that is made; no verb leaves any behind the live disk.

use super::driver::Qcow2;
use super::geometry::ENTRY;
use super::header::{MAX_L1_BYTES, MAX_SNAPSHOTS};
use super::mapping::View;
use super::overlap::ClusterSet;
use super::snapshot::{Snapshot, next_id};
use super::snapshot_view::{OpenView, SnapshotView};
use super::trees::Plan;
use crate::block::graph::Node;
use crate::block::graph::driver::SnapshotInfo;
use crate::block::graph::snapshots::{NewSnapshot, Selector, Snapshots};
use crate::block::{Error, Kind, Result};
use async_trait::async_trait;
use std::rc::Rc;

#[async_trait(?Send)]
impl Snapshots for Rc<Qcow2> {
    fn list(&self) -> Vec<SnapshotInfo> {
        Qcow2::infos(&self.snapshots.borrow())
    }

    async fn create(&self, new: &NewSnapshot) -> Result<SnapshotInfo> {
        let kept = self.snapshots.borrow().clone();
        self.add_snapshot(new, kept, Vec::new()).await
    }

    async fn replace(&self, new: &NewSnapshot) -> Result<SnapshotInfo> {
        let all = self.snapshots.borrow().clone();
        let (dropped, kept) = all.into_iter().partition(|snapshot| snapshot.info.name == new.name);
        self.add_snapshot(new, kept, dropped).await
    }

    async fn apply(&self, which: &Selector) -> Result<()> {
        self.check_bitmaps()?;
        self.check_data_file()?;
        let snapshot = self.find_snapshot(which)?;
        let mut live = self.snapshot_l1(&snapshot).await?;
        live.resize(self.geometry.l1_entries_for(snapshot.disk_size) as usize, 0);
        let plan = Plan {
            removed: self.active.l1.borrow().clone(),
            added: live.clone(),
            live,
            size: snapshot.disk_size,
            kept: self.snapshots.borrow().clone(),
            dropped: Vec::new(),
            new: None,
            punch: self.discards.snapshot,
        };
        self.switch_trees(plan).await?;
        self.return_space_later();
        Ok(())
    }

    async fn delete(&self, which: &Selector) -> Result<()> {
        let at = which.require(&self.list())?;
        self.check_data_file()?;
        let mut kept = self.snapshots.borrow().clone();
        let snapshot = kept.remove(at);
        let dropped = vec![snapshot.clone()];
        self.check_unused(&dropped)?;
        let plan = Plan {
            removed: self.snapshot_l1(&snapshot).await?,
            added: Vec::new(),
            live: self.active.l1.borrow().clone(),
            size: self.size.get(),
            kept,
            dropped,
            new: None,
            punch: self.discards.snapshot,
        };
        self.switch_trees(plan).await?;
        self.return_space_later();
        Ok(())
    }

    async fn view(&self, which: &Selector) -> Result<Rc<Node>> {
        let snapshot = self.find_snapshot(which)?;
        let kept = OpenView::new(self.clone(), snapshot.l1_offset);
        let view =
            View::read(&self.file, snapshot.l1_offset, snapshot.l1_entries, snapshot.disk_size).await?;
        Ok(Node::new(snapshot.info.name, Box::new(SnapshotView::new(kept, view))))
    }
}

impl Qcow2 {
    /// Gives the entries of all snapshots the extra data that version 3 demands.
    pub(super) async fn complete_snapshots(&self) -> Result<()> {
        let snapshots = self.snapshots.borrow().clone();
        if snapshots.iter().all(Snapshot::is_complete) {
            return Ok(());
        }
        let plan = Plan {
            removed: Vec::new(),
            added: Vec::new(),
            live: self.active.l1.borrow().clone(),
            size: self.size.get(),
            kept: snapshots.iter().map(Snapshot::completed).collect(),
            dropped: Vec::new(),
            new: None,
            punch: self.discards.snapshot,
        };
        self.switch_trees(plan).await
    }

    /// A snapshot whose disk can be shown.
    fn find_snapshot(&self, which: &Selector) -> Result<Snapshot> {
        let at = which.require(&Qcow2::infos(&self.snapshots.borrow()))?;
        let snapshot = self.snapshots.borrow()[at].clone();
        let entries = self.geometry.l1_entries_for(snapshot.disk_size);
        if entries > MAX_L1_BYTES / ENTRY || snapshot.disk_size > i64::MAX as u64 {
            return Err(Error::new(Kind::InvalidFormat, "Snapshot disk size is too large"));
        }
        Ok(snapshot)
    }

    fn infos(snapshots: &[Snapshot]) -> Vec<SnapshotInfo> {
        snapshots.iter().map(|snapshot| snapshot.info.clone()).collect()
    }

    async fn add_snapshot(
        self: &Rc<Qcow2>,
        new: &NewSnapshot,
        kept: Vec<Snapshot>,
        dropped: Vec<Snapshot>,
    ) -> Result<SnapshotInfo> {
        if kept.len() >= MAX_SNAPSHOTS as usize {
            return Err(Error::new(Kind::Unsupported, "Too many snapshots").remedy("delete some of them"));
        }
        self.check_data_file()?;
        self.check_unused(&dropped)?;
        let info = new.info(next_id(&kept));
        let (disk, behind) = self.live_l1();
        let mut removed = Vec::new();
        for snapshot in &dropped {
            removed.extend(self.snapshot_l1(snapshot).await?);
        }
        // VM state of a snapshot that has none is left from elsewhere.
        let vm_state = if new.vm_state_size > 0 { behind.clone() } else { Vec::new() };
        if new.vm_state_size == 0 {
            removed.extend(behind);
        }
        let mut live = disk.clone();
        live.resize(self.active.l1.borrow().len(), 0);
        let plan = Plan {
            removed,
            added: disk,
            live,
            size: self.size.get(),
            kept,
            dropped,
            new: Some((info.clone(), vm_state)),
            punch: self.discards.snapshot,
        };
        self.switch_trees(plan).await?;
        self.return_space_later();
        Ok(info)
    }

    /// The live L1 entries: of the disk, and those in use behind it.
    pub(super) fn live_l1(&self) -> (Vec<u64>, Vec<u64>) {
        let mut disk = self.active.l1.borrow().clone();
        let mut behind = disk.split_off(self.geometry.l1_entries_for(self.size.get()) as usize);
        let used = behind.iter().rposition(|&raw| raw != 0).map_or(0, |last| last + 1);
        behind.truncate(used);
        (disk, behind)
    }

    /// The L1 table of a snapshot.
    async fn snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        let view =
            View::read(&self.file, snapshot.l1_offset, snapshot.l1_entries, snapshot.disk_size).await?;
        Ok(view.l1.into_inner())
    }

    /// Tells the overlap checks where the L2 tables of all snapshots are.
    pub(super) async fn note_inactive_l2(&self) -> Result<()> {
        let (snapshots, mut tables) = (self.snapshots.borrow().clone(), ClusterSet::default());
        for snapshot in &snapshots {
            let view =
                View::read(&self.file, snapshot.l1_offset, snapshot.l1_entries, snapshot.disk_size).await?;
            view.each_table(self.geometry, |offset| {
                tables.insert(self.geometry.cluster_of(offset).0);
            });
        }
        self.overlap.set_inactive_l2(tables);
        Ok(())
    }

    /// Refuses to take a snapshot away from its readers.
    fn check_unused(&self, snapshots: &[Snapshot]) -> Result<()> {
        let open = self.open_views.borrow();
        match snapshots.iter().find(|snapshot| open.contains(&snapshot.l1_offset)) {
            Some(snapshot) => {
                Err(Error::new(Kind::Locked, format!("snapshot '{}' is being read", snapshot.info.name)))
            }
            None => Ok(()),
        }
    }

    /// Clusters of a data file are not counted: nobody could tell whether one is shared.
    pub(super) fn check_data_file(&self) -> Result<()> {
        match self.data_file {
            Some(_) => Err(Error::new(Kind::Unsupported, "Operation not supported")
                .remedy("convert the image to one without a data file")),
            None => Ok(()),
        }
    }

    /// Bitmaps tell what changed on the live disk since they were made: another disk in its place makes them
    /// wrong.
    fn check_bitmaps(&self) -> Result<()> {
        if self.bitmaps.is_empty() {
            return Ok(());
        }
        Err(Error::new(Kind::InvalidArgument, "Device has active dirty bitmaps")
            .remedy("remove them with: qemu-img bitmap --remove"))
    }
}

impl NewSnapshot {
    /// As it will be listed.
    fn info(&self, id: String) -> SnapshotInfo {
        SnapshotInfo {
            id,
            name: self.name.clone(),
            vm_state_size: self.vm_state_size,
            date: self.date,
            vm_clock_nsec: self.vm_clock_nsec,
            icount: self.icount,
        }
    }
}
