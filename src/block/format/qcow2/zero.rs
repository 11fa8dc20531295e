//! Making ranges read as zeros, and discarding them: changes of L2 entries alone, where that is possible.
//!
//! | before | zeroes, may unmap | zeroes, keep | discard |
//! | --- | --- | --- | --- |
//! | unallocated | zero | zero | zero if there is a backing file |
//! | data | zero | zero, keeps its cluster | zero (version 2: unallocated) |
//! | compressed | zero | zero | zero (version 2: unallocated) |
//! | zero with a cluster | zero | – | zero |
//!
//! In an external data file, which is not counted, the places of clusters that are zeroed by unmapping or
//! discarded are given back to the host at once. A raw one takes the request itself, and no entry changes.
//!
//! Version 2 has no zero clusters: without a backing file unallocated ones do as well, with one both requests
//! are refused, and the pipeline writes zeros.

use super::alloc::InFlight;
use super::cache::Piece;
use super::driver::Qcow2;
use super::entries::L2Entry;
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::{Extent, Place};
use crate::block::{Error, Kind, Result};

/// What is to become of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Zeros; host clusters may go.
    Unmap,
    /// Zeros; host clusters stay.
    Keep,
    /// Nothing of it is needed.
    Discard,
}

impl Qcow2 {
    /// Makes a range read as zeros.
    pub(super) async fn zero_disk(&self, at: GuestOffset, len: u64, may_unmap: bool) -> Result<()> {
        let _user = self.begin_change(at, len).await?;
        if self.is_raw() {
            return self.data_node()?.write_zeroes(at.0, len, may_unmap).await;
        }
        let (end, size) = (at.add(len), self.geometry.cluster_size());
        let first = GuestOffset(at.0.next_multiple_of(size));
        let last = if end.0 == self.size.get() { end } else { self.geometry.guest_start(end) };
        let change = if may_unmap { Change::Unmap } else { Change::Keep };
        let done = async {
            if first >= last {
                return self.zero_part(at, len).await;
            }
            self.zero_part(at, first.0 - at.0).await?;
            self.change_clusters(first, last, change).await?;
            self.zero_part(last, end.0 - last.0).await
        };
        match done.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.corrupted(error).await),
        }
    }

    /// Gives up a range. Only whole clusters change.
    pub(super) async fn discard_disk(&self, at: GuestOffset, len: u64) -> Result<()> {
        let _user = self.begin_change(at, len).await?;
        if self.is_raw() {
            return self.data_node()?.discard(at.0, len).await;
        }
        let (end, size) = (at.add(len), self.geometry.cluster_size());
        let first = GuestOffset(at.0.next_multiple_of(size));
        let last = if end.0 == self.size.get() { end } else { self.geometry.guest_start(end) };
        match self.change_clusters(first, last, Change::Discard).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.corrupted(error).await),
        }
    }

    async fn begin_change(&self, at: GuestOffset, len: u64) -> Result<InFlight<'_>> {
        if !self.v3 && self.backing.is_some() {
            return Err(Error::new(Kind::Unsupported, "version 2 has no zero clusters"));
        }
        if self.must_prepare() {
            self.prepare_change().await?;
        }
        self.bitmaps.note(at.0, len);
        Ok(self.users.enter())
    }

    /// Makes whole clusters read as zeros; their host clusters stay. Needs version 3.
    pub(super) async fn zero_clusters(&self, first: GuestOffset, last: GuestOffset) -> Result<()> {
        self.change_clusters(first, last, Change::Keep).await
    }

    /// Zeroes a part of one or two clusters by writing, unless it reads as zeros already.
    pub(super) async fn zero_part(&self, at: GuestOffset, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let from = at.add(done);
            let in_cluster = self.geometry.cluster_size() - self.geometry.in_cluster(from.0);
            let extent = self.map(&self.active, from, (len - done).min(in_cluster)).await?;
            if !self.is_zero(&extent, from).await? {
                self.write_disk(from, &self.zeros(extent.len)).await?;
            }
            done += extent.len;
        }
        Ok(())
    }

    async fn is_zero(&self, extent: &Extent, at: GuestOffset) -> Result<bool> {
        match extent.place {
            Place::Zero { .. } => Ok(true),
            Place::Unallocated => self.backing_is_zero(at, extent.len).await,
            Place::Data { .. } | Place::Compressed(_) => Ok(false),
        }
    }

    /// Changes whole clusters; the end of the disk ends a cluster too.
    async fn change_clusters(&self, first: GuestOffset, last: GuestOffset, change: Change) -> Result<()> {
        let mut at = first;
        while at < last {
            let extent = self.map(&self.active, at, last.0 - at.0).await?;
            if !self.needs_change(&extent, change) {
                at = at.add(extent.len);
                continue;
            }
            if self.must_prepare() {
                self.prepare_change().await?;
            }
            at = self.change_slice(at, last, change).await?;
        }
        Ok(())
    }

    /// Whether entries of the extent change at all.
    fn needs_change(&self, extent: &Extent, change: Change) -> bool {
        match extent.place {
            Place::Unallocated => self.backing.is_some(),
            Place::Zero { host, .. } => host.is_some() && change != Change::Keep,
            Place::Data { .. } | Place::Compressed(_) => true,
        }
    }

    /// Changes the entries of one slice. Returns where it ended.
    async fn change_slice(&self, at: GuestOffset, last: GuestOffset, change: Change) -> Result<GuestOffset> {
        let (_, index) = self.geometry.slice_of(at);
        let in_slice = (self.geometry.slice_entries() - index) as u64;
        let clusters = self.geometry.clusters_for(last.0 - at.0).min(in_slice);
        let end = at.add(clusters << self.geometry.cluster_bits);
        let _turn = self.guests.lock(at.0..end.0, true).await;
        let (slice, slot) = self.writable_slot(at).await?;
        for index in slot.index..slot.index + clusters as usize {
            self.change_entry(&slice, index, change)?;
        }
        if self.has_data_file() && change != Change::Keep {
            // Under the lock, so that nobody writes there again before: entries on disk may still show the
            // place, where zeros are as good as what was there.
            self.discard_data(HostOffset(at.0), end.0.min(last.0) - at.0).await;
        }
        Ok(end)
    }

    fn change_entry(&self, slice: &Piece, index: usize, change: Change) -> Result<()> {
        let old = self.entry(slice, index)?;
        let zero = if self.v3 { L2Entry::Zero { host: None, copied: false } } else { L2Entry::Unallocated };
        let new = match old {
            L2Entry::Unallocated if self.backing.is_none() => L2Entry::Unallocated,
            L2Entry::Data { host, copied } if change == Change::Keep && self.v3 => {
                L2Entry::Zero { host: Some(host), copied }
            }
            L2Entry::Zero { .. } if change == Change::Keep => old,
            _ => zero,
        };
        if new == old {
            return Ok(());
        }
        self.l2.set_entry(slice, index, new.encode(self.geometry));
        if !matches!(new, L2Entry::Zero { host: Some(_), .. }) {
            self.free_entry(old, true);
        }
        Ok(())
    }
}
