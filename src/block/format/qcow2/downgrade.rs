//! Making an image do without zero clusters, which version 2 does not have.
//!
//! | zero cluster | without a backing file | over one |
//! | --- | --- | --- |
//! | with or without a host cluster | unallocated | a new host cluster of zeros |
//!
//! A host cluster that it had is given up: in a snapshot it may hold data. Tables of the live disk and of the
//! snapshots change where they stand, as each entry reads as before; what a table that several L1 tables share
//! refers to has as many references as the table itself.

use super::cache::Piece;
use super::driver::Qcow2;
use super::entries::{L1Entry, L2Entry};
use super::geometry::{GuestOffset, HostCluster, HostOffset};
use super::image::REPAIR;
use super::mapping::View;
use super::refcount::Run;
use crate::block::{Error, Kind, Result};
use std::collections::HashSet;

/// An L2 table.
struct Table {
    offset: HostOffset,
    /// The first guest byte that it maps.
    start: GuestOffset,
    /// How many L1 tables refer to it.
    holders: u64,
    is_live: bool,
}

impl Qcow2 {
    /// Replaces all zero clusters, of the disk and of the snapshots. No request is in flight.
    pub(super) async fn expand_zero_clusters(&self) -> Result<()> {
        let trees = self.all_l1_tables().await?;
        let total = trees.iter().map(|l1| l1.len() as u64).sum();
        let (mut seen, mut visited) = (HashSet::new(), 0);
        for (l1, is_live) in trees.iter().zip(std::iter::once(true).chain(std::iter::repeat(false))) {
            for (index, &raw) in (0..).zip(l1) {
                self.expand_below(index, raw, is_live, &mut seen).await?;
                visited += 1;
                self.engine.tell_work(visited, total);
            }
        }
        Ok(())
    }

    /// The L1 table of the disk, and those of the snapshots.
    async fn all_l1_tables(&self) -> Result<Vec<Vec<u64>>> {
        let mut tables = vec![self.active.l1.borrow().clone()];
        let snapshots = self.snapshots.borrow().clone();
        for snapshot in snapshots {
            let view =
                View::read(&self.file, snapshot.l1_offset, snapshot.l1_entries, snapshot.disk_size).await?;
            tables.push(view.l1.take());
        }
        Ok(tables)
    }

    /// Whether the disk or a snapshot has compressed clusters.
    pub(super) async fn has_compressed_clusters(&self) -> Result<bool> {
        let mut l1 = self.all_l1_tables().await?.concat();
        l1.sort_unstable();
        l1.dedup();
        for raw in l1 {
            let Ok(L1Entry::Table { offset, .. }) = L1Entry::decode(raw, self.geometry) else { continue };
            if self.is_compressed_in(offset).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_compressed_in(&self, table: HostOffset) -> Result<bool> {
        for at in (0..self.geometry.cluster_size()).step_by(self.slices.size() as usize) {
            let piece = self.l2.load(&self.file, table.add(at)).await?;
            for index in 0..self.slices.entries() {
                if let L2Entry::Compressed(_) = self.entry(&piece, index)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Replaces the zero clusters below an L1 entry.
    async fn expand_below(
        &self,
        index: u64,
        raw: u64,
        is_live: bool,
        seen: &mut HashSet<HostOffset>,
    ) -> Result<()> {
        let Ok(L1Entry::Table { offset, .. }) = L1Entry::decode(raw, self.geometry) else { return Ok(()) };
        if !seen.insert(offset) {
            return Ok(());
        }
        let holders = self.refcounts.get(self.geometry.cluster_of(offset)).await?;
        // One for each L1 table.
        if holders == 0 || holders > 1 + self.snapshots.borrow().len() as u64 {
            let what = format!("L2 table {:#x} has refcount {holders}", offset.0);
            return Err(Error::new(Kind::Corrupt, what).remedy(REPAIR));
        }
        let start = GuestOffset(index * self.geometry.l2_reach());
        self.expand_table(Table { offset, start, holders, is_live }).await
    }

    async fn expand_table(&self, table: Table) -> Result<()> {
        let slice_size = self.slices.size();
        for (slice, first) in
            (0..self.geometry.cluster_size() / slice_size).zip((0..).step_by(self.slices.entries()))
        {
            if self.must_prepare() {
                self.prepare_change().await?;
            }
            let piece = self.l2.load(&self.file, table.offset.add(slice * slice_size)).await?;
            for index in 0..self.slices.entries() {
                let at = table.start.add((first + index as u64) << self.geometry.cluster_bits);
                self.expand_entry(&table, &piece, index, at).await?;
            }
        }
        Ok(())
    }

    async fn expand_entry(&self, table: &Table, piece: &Piece, index: usize, at: GuestOffset) -> Result<()> {
        let L2Entry::Zero { host: old, .. } = self.entry(piece, index)? else { return Ok(()) };
        let over_backing = self.header.borrow().backing_file.is_some();
        let new = match over_backing {
            false => L2Entry::Unallocated,
            true => self.zeros_for(table, at).await?,
        };
        self.set_entry(piece, index, new);
        if let Some(old) = old {
            let run = Run { first: self.geometry.cluster_of(old), count: 1 };
            (0..table.holders).for_each(|_| self.frees.push(run, self.discards.other));
        }
        Ok(())
    }

    /// A new cluster of zeros, with a reference for each holder of the table.
    async fn zeros_for(&self, table: &Table, at: GuestOffset) -> Result<L2Entry> {
        let new = self.reserve(1).await?;
        let host = self.geometry.start_of(new.run.first);
        self.write_zero_cluster(host, at).await?;
        self.refcounts.set_count(HostCluster(new.run.first.0), table.holders).await?;
        new.keep();
        Ok(L2Entry::Data { host, copied: table.is_live && table.holders == 1 })
    }
}
