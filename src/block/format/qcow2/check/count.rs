//! Who uses each cluster: the walk over everything that the header leads to.
//!
//! The time is bounded for images that name one table many times: an L2 table that was seen before is read
//! again only while a budget lasts, and then counted as often as it was named; L1 tables and bitmap tables that
//! are longer than the budget in all overlap, and are not followed any more.

use super::super::encrypt::luks_place;
use super::super::entries::{L2Words, decode_refcount_table, raw_l1};
use super::super::geometry::{ENTRY, HostOffset};
use super::super::header::MAX_L1_BYTES;
use super::super::overlap::{ClusterSet, Metadata};
use super::super::snapshot::Snapshot;
use super::tally::Look;
use super::{Checker, tables};
use crate::block::graph::driver::SnapshotInfo;
use crate::block::{Error, Kind, Result};
use std::collections::BTreeMap;

/// Bytes of L2 tables that are read although they were read before.
const READ_AGAIN: u64 = 64 << 20;
/// Bytes of L1 tables of snapshots and of tables of bitmaps that are read.
const READ_UPPER: u64 = 8 << 30;

/// What was read of tables that several others may name.
pub(super) struct Seen {
    /// Clusters with L2 tables.
    l2: ClusterSet,
    /// L2 tables that were seen before, and how often each is still to be counted: by the live disk, by snapshots.
    later: BTreeMap<u64, [u64; 2]>,
    again: u64,
    upper: u64,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { l2: ClusterSet::default(), later: BTreeMap::new(), again: READ_AGAIN, upper: READ_UPPER }
    }
}

impl Seen {
    /// Whether an L2 table is to be looked at now; else it was noted for later.
    fn enter(&mut self, table: u64, size: u64, active: bool) -> bool {
        if self.l2.insert(table / size) {
            return true;
        }
        match self.again.checked_sub(size) {
            Some(left) => self.again = left,
            None => self.later.entry(table).or_default()[usize::from(!active)] += 1,
        }
        self.later.is_empty()
    }

    /// Takes `len` bytes of the budget for upper tables.
    fn take_upper(&mut self, len: u64) -> Result<()> {
        let what = "the tables of the image overlap too often to be checked";
        self.upper = self.upper.checked_sub(len).ok_or_else(|| Error::new(Kind::Corrupt, what))?;
        Ok(())
    }
}

impl Checker<'_> {
    /// Counts everything that refers to clusters.
    pub(super) async fn count_all(&mut self) -> Result<()> {
        let image = self.image;
        self.seen = Seen::default();
        self.tally.count(0, image.geometry.cluster_size(), 1);
        let l1 = image.active.l1.borrow().clone();
        self.count_view(image.active.offset.get(), &l1, true).await?;
        let count = image.snapshots.borrow().len();
        for index in 0..count {
            // One at a time: their names may take much.
            let snapshot = image.snapshots.borrow()[index].clone();
            self.count_snapshot(&snapshot).await?;
        }
        self.count_later().await?;
        let table = image.snapshot_table.borrow().clone();
        self.snapshots.counted = self.tally.count(table.start, table.end - table.start, 1);
        let table = image.refcounts.table_range();
        self.tally.count(table.start, table.end - table.start, 1);
        self.count_bitmaps().await?;
        if let Some(place) = luks_place(&image.header.borrow())? {
            self.tally.count(place.start, place.end - place.start, 1);
        }
        self.count_refcount_blocks();
        Ok(())
    }

    async fn count_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        let len = u64::from(snapshot.l1_entries) * ENTRY;
        if let Some(what) = self.wrong_l1(snapshot) {
            let SnapshotInfo { id, name, .. } = &snapshot.info;
            let message = || format!("ERROR snapshot {id} ({name}) {what}; snapshot table entry corrupted");
            self.tally.corrupt(1, message);
            return if self.tally.repair.is_some() { self.lost_l1() } else { Ok(()) };
        }
        self.seen.take_upper(len)?;
        let (start, end) = (snapshot.l1_offset.0, snapshot.l1_offset.0.saturating_add(len));
        let readable = match self.tally.repair {
            Some(_) => start > 0 && end <= self.tally.file_len,
            None => end <= i64::MAX as u64,
        };
        if len > 0 && !readable {
            self.tally.count(start, len, 1);
            return self.lost_l1();
        }
        let l1 = self.image.file.read_bytes(start, len as usize).await?;
        let l1: Vec<u64> = tables::entries(&l1).collect();
        self.count_view(snapshot.l1_offset, &l1, false).await
    }

    /// The end of a check that cannot know what a snapshot refers to. A repair must not go on: all that only the
    /// snapshot has would pass for leaked, and be given to the guest to write to.
    fn lost_l1(&mut self) -> Result<()> {
        self.tally.say(|| "ERROR: I/O error in check_refcounts_l1".into());
        Err(Error::new(Kind::Io, "Input/output error"))
    }

    /// Why the L1 table of a snapshot cannot be one.
    fn wrong_l1(&self, snapshot: &Snapshot) -> Option<String> {
        let (offset, entries) = (snapshot.l1_offset.0, snapshot.l1_entries);
        if !self.image.geometry.is_aligned(offset) {
            return Some(format!("l1_offset={offset:#x}: L1 table is not cluster aligned"));
        }
        let too_large = u64::from(entries) * ENTRY > MAX_L1_BYTES;
        too_large.then(|| format!("l1_size={entries:#x}: L1 table is too large"))
    }

    /// An L1 table and all below it. `active`: it is the live disk's.
    async fn count_view(&mut self, offset: HostOffset, l1: &[u64], active: bool) -> Result<()> {
        let (geometry, size) = (self.image.geometry, self.image.geometry.cluster_size());
        self.tally.count(offset.0, l1.len() as u64 * ENTRY, 1);
        for &raw in l1.iter().filter(|&&raw| raw != 0) {
            let entry = raw_l1(raw);
            if entry.reserved {
                self.tally.corrupt(1, || format!("ERROR found L1 entry with reserved bits set: {raw:x}"));
            }
            self.tally.count(entry.offset, size, 1);
            if !geometry.is_aligned(entry.offset) {
                let offset = entry.offset;
                self.tally.corrupt(1, || {
                    format!("ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted")
                });
            }
            if self.seen.enter(entry.offset, size, active) {
                self.count_table(entry.offset, Look { active, times: 1 }).await?;
            }
        }
        Ok(())
    }

    /// L2 tables that were named more often than they were looked at.
    async fn count_later(&mut self) -> Result<()> {
        for (offset, later) in std::mem::take(&mut self.seen.later) {
            for (times, active) in later.into_iter().zip([true, false]).filter(|&(times, _)| times > 0) {
                self.count_table(offset, Look { active, times }).await?;
            }
        }
        Ok(())
    }

    async fn count_table(&mut self, offset: u64, look: Look) -> Result<()> {
        self.count_work();
        let table = match self.tables.read(offset, self.image.geometry.cluster_size()).await {
            Ok(table) => table,
            // What it refers to would pass for unused, and be freed.
            Err(error) if self.tally.repair.is_some() => return Err(error),
            Err(_) => {
                self.tally.report.check_errors += 1;
                return Ok(());
            }
        };
        let dropped = self.tally.count_l2(table, look);
        match dropped.is_empty() {
            true => Ok(()),
            false => self.drop_clusters(offset, &dropped, look).await,
        }
    }

    /// Takes the clusters out of entries of an L2 table; what reads as zeros goes on to do so.
    async fn drop_clusters(&mut self, table: u64, entries: &[(usize, L2Words)], look: Look) -> Result<()> {
        let own = look.active.then_some(Metadata::ActiveL2);
        let geometry = self.image.geometry;
        let mut bytes = vec![0; geometry.l2_entry() as usize];
        for (index, words) in entries {
            words.without_cluster(geometry, self.image.v3.get()).write(&mut bytes);
            let at = HostOffset(table).add(*index as u64 * geometry.l2_entry());
            self.write_metadata(at, &bytes, own).await?;
        }
        self.image.l2.forget(HostOffset(table), self.image.geometry.cluster_size());
        self.tally.report.corruptions_fixed += entries.len() as u64;
        Ok(())
    }

    /// The bitmap directory, the bitmaps' tables and their clusters (specification: "Bitmaps").
    async fn count_bitmaps(&mut self) -> Result<()> {
        let (directory, tables) = (self.image.bitmaps.place(), self.image.bitmaps.tables());
        if !self.tally.count(directory.start, directory.end - directory.start, 1) {
            return Ok(());
        }
        for table in tables {
            self.count_bitmap(table.start, table.end - table.start).await?;
        }
        Ok(())
    }

    async fn count_bitmap(&mut self, table: u64, len: u64) -> Result<()> {
        if !self.tally.count(table, len, 1) {
            return Ok(());
        }
        self.seen.take_upper(len)?;
        let bytes = self.image.file.read_bytes(table, len as usize).await?;
        for raw in tables::entries(&bytes) {
            let offset = raw_l1(raw).offset;
            if offset != 0 {
                self.tally.count(offset, self.image.geometry.cluster_size(), 1);
            }
        }
        Ok(())
    }

    fn count_refcount_blocks(&mut self) {
        let geometry = self.image.geometry;
        for (index, raw) in self.image.refcounts.table().into_iter().enumerate() {
            let wrong = match decode_refcount_table(raw, geometry) {
                Ok(None) => continue,
                Ok(Some(offset)) => {
                    self.count_refcount_block(index, geometry.cluster_of(offset).0);
                    continue;
                }
                Err("reserved bits set") => {
                    format!("ERROR refcount table entry {index} has reserved bits set")
                }
                Err("out of range") => format!("ERROR refcount block {index} is outside image"),
                Err(_) => format!(
                    "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
                ),
            };
            self.tally.rebuild = true;
            self.tally.corrupt(1, || wrong);
        }
    }

    fn count_refcount_block(&mut self, index: usize, cluster: u64) {
        if cluster >= self.tally.references.len() {
            // QEMU makes the file longer, whatever the entry claims. A new structure is the safer repair.
            self.tally.rebuild |= self.tally.repairs_all();
            return self.tally.corrupt(1, || format!("ERROR refcount block {index} is outside image"));
        }
        let geometry = self.image.geometry;
        self.tally.count(cluster << geometry.cluster_bits, geometry.cluster_size(), 1);
        let count = self.tally.references.get(cluster);
        if count != 1 {
            self.tally.rebuild = true;
            self.tally.corrupt(1, || format!("ERROR refcount block {index} refcount={count}"));
        }
    }
}
