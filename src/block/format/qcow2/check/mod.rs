//! The consistency check and the repair.
//!
//! ```text
//!   count: who refers to each cluster ─▶ compare with the refcounts ─▶ copied flags ─▶ dirty and corrupt bits
//!                    │                          │ too wrong
//!              references (memory)              └─▶ rebuild: a new refcount structure, then count again
//! ```
//! Verdicts, counts and messages are those of qemu-img, so that scripts which match on them go on working. Time
//! and memory are bounded by what the file holds, not by what it claims.
//!
//! A repair writes in place what may be old or new at any moment (a refcount, an entry), and to free space with
//! one switch of the header what may not (see [`rebuild`]). Refcounts are right on disk before the copied flags
//! that rely on them; the bits that warn of damage go last. What is found leaked is counted down and not punched
//! out: a wrong verdict about a damaged table must not cost the bytes.

mod compare;
mod copied;
mod count;
mod rebuild;
mod references;
mod snapshots;
mod tables;
mod tally;

use super::driver::Qcow2;
use super::geometry::HostOffset;
use super::header::{CORRUPT, DIRTY};
use super::overlap::Metadata;
use crate::block::graph::driver::{Check, CheckReport, Repair};
use crate::block::{Error, Kind, Result};
use async_trait::async_trait;
use count::Seen;
use references::{MAX_CLUSTERS, References};
use std::ops::Range;
use tables::TableReader;
use tally::Tally;

#[async_trait(?Send)]
impl Check for Qcow2 {
    async fn check(&self) -> Result<CheckReport> {
        self.check_and_repair(None).await
    }

    async fn repair(&self, what: Repair) -> Result<CheckReport> {
        if !self.is_writable() {
            return Err(Error::new(Kind::ReadOnly, "the image is read-only"));
        }
        self.check_and_repair(Some(what)).await
    }
}

impl Qcow2 {
    async fn check_and_repair(&self, repair: Option<Repair>) -> Result<CheckReport> {
        self.close_all().await?;
        let mut checker = Checker::new(self, repair)?;
        checker.check_snapshot_table().await?;
        let done = checker.run().await;
        let mut report = checker.tally.report;
        if let Err(error) = done {
            report.gave_up = Some(error);
        }
        Ok(report)
    }
}

impl Qcow2 {
    /// What a check reads: L2 tables, those of the live disk twice, and refcount blocks.
    fn bytes_of_tables(&self) -> u64 {
        let live = self.active.l1.borrow().iter().filter(|&&raw| raw != 0).count() as u64;
        let snapshots = self.snapshots.borrow();
        let in_snapshots: u64 = snapshots.iter().map(|snapshot| u64::from(snapshot.l1_entries)).sum();
        let blocks = self.refcounts.table().iter().filter(|&&raw| raw != 0).count() as u64;
        let tables = (2 * live).saturating_add(in_snapshots).saturating_add(blocks);
        tables.saturating_mul(self.geometry.cluster_size())
    }
}

/// A check under way.
struct Checker<'a> {
    image: &'a Qcow2,
    tally: Tally,
    tables: TableReader,
    seen: Seen,
    snapshots: snapshots::Table,
    /// Clusters whose refcounts could not be read, in order.
    unknown: Vec<Range<u64>>,
    /// Behind the last cluster in use.
    end: u64,
    /// How many bytes of tables were looked at, of how many; tables that are shared may make it more.
    looked_at: u64,
    to_look_at: u64,
    /// The warning about malformed entries of the refcount table was given.
    told_corrupt: bool,
}

impl<'a> Checker<'a> {
    fn new(image: &'a Qcow2, repair: Option<Repair>) -> Result<Checker<'a>> {
        let (geometry, file_len) = (image.geometry, image.file.size());
        let clusters = geometry.clusters_for(file_len);
        if clusters > MAX_CLUSTERS {
            return Err(Error::new(Kind::Unsupported, "the image has too many clusters to be checked"));
        }
        let total_clusters = geometry.clusters_for(image.size.get());
        let tally = Tally {
            geometry,
            report: CheckReport { total_clusters, ..CheckReport::default() },
            references: References::new(clusters, geometry.refcount_max()),
            repair,
            external: image.has_data_file(),
            file_len,
            rebuild: false,
        };
        Ok(Checker {
            image,
            tally,
            tables: TableReader::new(&image.file),
            seen: Seen::default(),
            snapshots: snapshots::Table::default(),
            unknown: Vec::new(),
            end: 1,
            told_corrupt: false,
            looked_at: 0,
            to_look_at: image.bytes_of_tables(),
        })
    }

    async fn run(&mut self) -> Result<()> {
        if self.tally.repair.is_some() {
            // What relied on them is counted as leaked.
            self.image.clear_autoclear().await?;
        }
        self.check_refcounts().await?;
        self.check_copied_flags().await?;
        self.restore_snapshot_table().await?;
        self.tally.report.image_end_offset = self.end << self.image.geometry.cluster_bits;
        let report = &self.tally.report;
        if self.tally.repair.is_some() && report.check_errors + report.corruptions == 0 {
            self.mark_sound().await?;
        }
        Ok(())
    }

    async fn check_refcounts(&mut self) -> Result<()> {
        let repair = self.tally.repair;
        self.count_all().await?;
        let counted = self.tally.counters();
        self.compare(None, repair.is_none()).await?;
        if self.tally.rebuild && repair == Some(Repair::All) {
            return self.rebuild_and_compare().await;
        }
        if self.tally.rebuild && repair.is_some() {
            self.tally.say(|| "ERROR need to rebuild refcount structures".into());
            return Err(Error::new(Kind::Io, "Input/output error"));
        }
        let report = &self.tally.report;
        if repair.is_some() && report.leaks + report.corruptions > 0 {
            self.tally.restore(counted);
            self.compare(repair, true).await?;
        }
        self.flush().await
    }

    /// Makes the refcounts anew, and looks again at what refers to what: the old structure is no longer in use.
    async fn rebuild_and_compare(&mut self) -> Result<()> {
        self.tally.say(|| "Rebuilding refcount structure".into());
        self.rebuild_refcounts().await?;
        let before = self.tally.counters();
        self.tally.start_again(self.image.file.size());
        self.unknown.clear();
        self.count_all().await?;
        let found = self.tally.counters();
        self.compare(Some(Repair::Leaks), true).await?;
        if self.tally.rebuild {
            self.tally.say(|| "ERROR rebuilt refcount structure is still broken".into());
        }
        self.tally.restore(found);
        self.tally.note_fixed(&before);
        self.flush().await
    }

    /// Nothing is wrong any more: says so in the header.
    async fn mark_sound(&self) -> Result<()> {
        if self.image.header.borrow().incompatible & (DIRTY | CORRUPT) == 0 {
            return Ok(());
        }
        self.flush().await?;
        self.image.change_header(|header| header.incompatible &= !(DIRTY | CORRUPT)).await?;
        self.flush().await
    }

    /// Writes to metadata of one kind, unless other metadata stands there too.
    async fn write_metadata(&mut self, at: HostOffset, bytes: &[u8], own: Option<Metadata>) -> Result<()> {
        self.tables.forget();
        let hit = self.image.overlap.check(at, bytes.len() as u64, own);
        if let Err(error) = hit {
            let error = self.image.corrupted(error).await;
            self.tally.say(|| format!("qcow2: {error}; further corruption events will be suppressed"));
            return Err(error);
        }
        self.image.file.write_bytes(at.0, bytes).await
    }

    /// Tells whoever waits that one more table was looked at.
    fn count_work(&mut self) {
        self.looked_at = (self.looked_at + self.image.geometry.cluster_size()).min(self.to_look_at);
        self.image.engine.tell_work(self.looked_at, self.to_look_at);
    }

    async fn flush(&self) -> Result<()> {
        match self.tally.repair {
            Some(_) => self.image.file.flush().await,
            None => Ok(()),
        }
    }
}
