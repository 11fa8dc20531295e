//! Making the disk smaller, and giving up what is mapped behind its end.
//!
//! Order on disk: the new size, a flush; then L1 entries and L2 entries behind it go; then, as always, the clusters
//! that they named are counted down; last, when that is durable, the file is cut behind the last cluster in use, and
//! an external data file at the disk's end. Dying after the switch leaves clusters mapped behind the end, where nobody
//! sees them.

use super::driver::{Qcow2, l2_slices};
use super::entries::{L1Entry, L2Entry};
use super::geometry::{GuestOffset, HostOffset};
use super::overlap::Metadata;
use super::refcount::Run;
use crate::block::graph::Node;
use crate::block::options::Preallocation;
use crate::block::{Kind, Result};

impl Qcow2 {
    /// Makes the disk `size` bytes long, less than it is. No request is in flight.
    pub(super) async fn shrink(&self, size: u64) -> Result<()> {
        self.flush_all().await?;
        self.switch_size(size, self.active.offset.get(), self.l1_entries()).await?;
        self.size.set(size);
        self.resize_bitmaps(size);
        self.file.flush().await?;
        // The size has changed. Space that cannot be given back now stays mapped where nobody sees it.
        if let Err(error) = self.give_up_behind(size).await
            && error.kind() == Kind::Corrupt
        {
            return Err(error);
        }
        self.l2.set_capacity(l2_slices(self.geometry, size));
        Ok(())
    }

    async fn give_up_behind(&self, size: u64) -> Result<()> {
        self.drop_behind(size).await?;
        // Refcounts too: none may count a cluster that was cut off.
        self.settle().await?;
        let end = self.refcounts.end_in_use().await? << self.geometry.cluster_bits;
        cut(&self.file, end).await?;
        match self.has_data_file() {
            true => cut(self.data_node()?, size).await,
            false => Ok(()),
        }
    }

    /// Gives up all that is mapped behind the first `size` bytes, VM state too.
    pub(super) async fn drop_behind(&self, size: u64) -> Result<()> {
        let first = GuestOffset(size.next_multiple_of(self.geometry.cluster_size()));
        let reach = self.geometry.l2_reach();
        let whole = first.0.next_multiple_of(reach);
        self.drop_clusters(first, GuestOffset(whole)).await?;
        for index in (whole / reach)..self.l1_entries() {
            self.drop_l2_table(index as usize).await?;
            if self.must_prepare() {
                self.prepare_change().await?;
            }
        }
        Ok(())
    }

    /// Gives up an L2 table and all that it maps.
    async fn drop_l2_table(&self, index: usize) -> Result<()> {
        let at = GuestOffset(index as u64 * self.geometry.l2_reach());
        let Some(slot) = self.slot(&self.active, at)? else { return Ok(()) };
        let entries = self.l2_entries_of(slot.table).await?;
        // From here on nothing can fail: the entry and what it named change as one.
        self.active.set(index, L1Entry::Unallocated);
        let cluster = self.geometry.cluster_of(slot.table);
        self.overlap.remove(Metadata::ActiveL2, cluster);
        entries.into_iter().for_each(|entry| self.free_entry(entry, true));
        self.frees.push(Run { first: cluster, count: 1 }, false);
        Ok(())
    }

    async fn l2_entries_of(&self, table: HostOffset) -> Result<Vec<L2Entry>> {
        let mut entries = Vec::new();
        for slice in (0..self.geometry.cluster_size()).step_by(self.geometry.slice_size() as usize) {
            let slice = self.l2.load(&self.file, table.add(slice)).await?;
            for index in 0..self.geometry.slice_entries() {
                let entry = self.entry(&slice, index)?;
                if entry != L2Entry::Unallocated {
                    entries.push(entry);
                }
            }
        }
        Ok(entries)
    }
}

/// Makes a file end at `end`, if it does not already end before.
async fn cut(file: &Node, end: u64) -> Result<()> {
    if end < file.size() { file.truncate(end, Preallocation::Off).await } else { Ok(()) }
}
