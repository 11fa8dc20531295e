//! Making ranges read as zeros, and discarding them: changes of L2 entries alone, where that is possible.
//!
//! Whole clusters, that is; with extended L2 entries zeroes change whole subclusters, of a cluster that keeps its
//! place unless nothing but zeros is left in it.
//!
//! | before | zeroes, may unmap | zeroes, keep | discard |
//! | --- | --- | --- | --- |
//! | unallocated | zero | zero | zero if there is a backing file |
//! | data | zero | zero, keeps its cluster | zero (version 2: unallocated) |
//! | compressed | zero | zero | zero (version 2: unallocated) |
//! | zero with a cluster | zero | – | zero |
//!
//! Behind the end of the disk everything becomes unallocated.
//!
//! With `discard-no-unref` a cluster that is the guest's alone stays so when it is discarded or unmapped: the entry
//! becomes zero and keeps its place, whose space goes back to the host at once. The same is done to all clusters
//! in an external data file, which are not counted. A raw one takes the request itself, and no entry changes.
//!
//! Version 2 has no zero clusters: without a backing file unallocated ones do as well, with one both requests
//! are refused, and the pipeline writes zeros.

use super::alloc::InFlight;
use super::cache::Piece;
use super::driver::Qcow2;
use super::entries::L2Entry;
use super::geometry::GuestOffset;
use super::mapping::{Extent, Place};
use crate::block::{Error, Kind, Result};
use std::ops::Range;

/// What is to become of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Zeros; host clusters may go.
    Unmap,
    /// Zeros; host clusters stay.
    Keep,
    /// Nothing of it is needed.
    Discard,
    /// It is behind the end of the disk: nothing of it is seen.
    Drop,
}

/// What came of changing an entry.
enum Outcome {
    Done,
    /// Bytes of the file that it keeps hold nothing any more.
    Emptied(Range<u64>),
    /// It cannot be done without writing.
    Impossible,
}

impl Qcow2 {
    /// Makes a range read as zeros.
    pub(super) async fn zero_disk(&self, at: GuestOffset, len: u64, may_unmap: bool) -> Result<()> {
        let _user = self.begin_change(at, len).await?;
        if self.is_raw() {
            return self.data_node()?.write_zeroes(at.0, len, may_unmap && self.discards.request).await;
        }
        let (end, size) = (at.add(len), self.geometry.subcluster_size());
        let first = GuestOffset(at.0.next_multiple_of(size));
        let last = self.last_boundary(end, self.geometry.subcluster_start(end));
        let change = if may_unmap { Change::Unmap } else { Change::Keep };
        let done = async {
            if first >= last {
                return self.zero_part(at, len).await;
            }
            self.zero_part(at, first.0 - at.0).await?;
            self.change_range(first, last, change).await?;
            self.zero_part(last, end.0.saturating_sub(last.0)).await
        };
        self.judged(done.await).await
    }

    /// Where the last cluster ends that a range up to `end` covers, `boundary` in general: at the end of the
    /// disk nobody needs the rest of the cluster.
    fn last_boundary(&self, end: GuestOffset, boundary: GuestOffset) -> GuestOffset {
        match end.0 == self.size.get() {
            true => GuestOffset(end.0.next_multiple_of(self.geometry.cluster_size())),
            false => boundary,
        }
    }

    /// Gives up a range. Only whole clusters change.
    pub(super) async fn discard_disk(&self, at: GuestOffset, len: u64) -> Result<()> {
        let _user = self.begin_change(at, len).await?;
        if self.is_raw() {
            return match self.discards.request {
                // Not a discard: it reads as the guest's disk, of which every byte is the old one or zero.
                true => self.data_node()?.punch(at.0, len).await,
                false => Ok(()),
            };
        }
        let (end, size) = (at.add(len), self.geometry.cluster_size());
        let first = GuestOffset(at.0.next_multiple_of(size));
        let last = self.last_boundary(end, self.geometry.guest_start(end));
        self.judged(self.change_range(first, last, Change::Discard).await).await
    }

    async fn begin_change(&self, at: GuestOffset, len: u64) -> Result<InFlight<'_>> {
        if !self.v3.get() && self.has_backing() {
            return Err(Error::new(Kind::Unsupported, "version 2 has no zero clusters"));
        }
        if self.must_prepare() {
            self.prepare_change().await?;
        }
        self.bitmaps.note(at.0, len);
        Ok(self.users.enter())
    }

    /// Makes whole subclusters read as zeros; their host clusters stay. Needs version 3.
    pub(super) async fn zero_subclusters(&self, first: GuestOffset, last: GuestOffset) -> Result<()> {
        self.change_range(first, last, Change::Keep).await
    }

    /// Gives up whole clusters behind the end of the disk.
    pub(super) async fn drop_clusters(&self, first: GuestOffset, last: GuestOffset) -> Result<()> {
        self.change_range(first, last, Change::Drop).await
    }

    /// Zeroes a part of one or two clusters by writing, unless it reads as zeros already.
    pub(super) async fn zero_part(&self, at: GuestOffset, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let from = at.add(done);
            let in_cluster = self.geometry.cluster_size() - self.geometry.in_cluster(from.0);
            let extent = self.map(&self.active, from, (len - done).min(in_cluster)).await?;
            if !self.reads_as_zeros(from, extent.len).await? {
                self.write_disk(from, &self.zeros(extent.len)).await?;
            }
            done += extent.len;
        }
        Ok(())
    }

    /// Changes whole subclusters, or clusters if they are discarded.
    async fn change_range(&self, first: GuestOffset, last: GuestOffset, change: Change) -> Result<()> {
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
            let end = self.change_slice(at, last, change).await?;
            if end == at {
                // A part of a compressed cluster has no state of its own.
                self.zero_part(at, extent.len).await?;
                at = at.add(extent.len);
            }
            at = at.max(end);
        }
        Ok(())
    }

    /// Whether entries of the extent change at all.
    fn needs_change(&self, extent: &Extent, change: Change) -> bool {
        match extent.place {
            Place::Unallocated { host: None } if change == Change::Drop => false,
            _ if change == Change::Drop => true,
            Place::Unallocated { host } => {
                self.marks(change) || self.has_backing() || host.is_some() && change != Change::Keep
            }
            Place::Zero { copied: true, .. } if self.discards.no_unref => false,
            Place::Zero { host, .. } => host.is_some() && change != Change::Keep,
            Place::Data { .. } | Place::Compressed(_) => true,
        }
    }

    /// Whether what is unallocated becomes zero though there is no backing file: as in QEMU, zeros that were asked for
    /// are told from what nobody ever wrote to.
    fn marks(&self, change: Change) -> bool {
        self.v3.get() && matches!(change, Change::Unmap | Change::Keep)
    }

    /// Changes the entries of one slice. Returns where it ended: at what has to be written instead, if not at
    /// the end.
    async fn change_slice(
        &self,
        first: GuestOffset,
        last: GuestOffset,
        change: Change,
    ) -> Result<GuestOffset> {
        let (_, index) = self.slices.of(first);
        let start = self.geometry.guest_start(first);
        let in_slice = (self.slices.entries() - index) as u64;
        let clusters = self.geometry.clusters_for(last.0 - start.0).min(in_slice);
        let locked = start.0..start.0 + (clusters << self.geometry.cluster_bits);
        let end = locked.end.min(last.0);
        let _turn = self.guests.lock(locked, true).await;
        let (slice, slot) = self.writable_slot(first).await?;
        let (mut at, mut emptied) = (first.0, Vec::new());
        for index in slot.index..slot.index + clusters as usize {
            let cluster = self.geometry.guest_start(GuestOffset(at)).0;
            let part = at - cluster..(end - cluster).min(self.geometry.cluster_size());
            let next = cluster + part.end;
            match self.change_entry(&slice, index, part, change)? {
                Outcome::Impossible => break,
                Outcome::Done => {}
                Outcome::Emptied(place) => append(&mut emptied, place),
            }
            at = next;
        }
        if self.empties_places(change) {
            // Under the lock, so that nobody writes there again before.
            self.empty_places(emptied).await?;
        }
        Ok(GuestOffset(at))
    }

    /// Whether the space of places that are emptied goes back to the host.
    fn empties_places(&self, change: Change) -> bool {
        match change {
            Change::Keep => false,
            Change::Unmap | Change::Discard => self.discards.request,
            Change::Drop => true,
        }
    }

    async fn empty_places(&self, places: Vec<Range<u64>>) -> Result<()> {
        if self.encryption.is_some() && !places.is_empty() {
            // Zeros of the file are not zeros to whoever decrypts them: no entry may show them.
            self.flush_all().await?;
        }
        for place in places {
            self.empty_place(place).await;
        }
        Ok(())
    }

    /// Changes bytes of one cluster.
    fn change_entry(&self, slice: &Piece, index: usize, part: Range<u64>, change: Change) -> Result<Outcome> {
        let old = self.entry(slice, index)?;
        let Some(zeroed) = old.with_zeros(part.clone(), self.geometry) else {
            return Ok(Outcome::Impossible);
        };
        let new = self.changed(old, zeroed, change);
        if new == old {
            return Ok(Outcome::Done);
        }
        self.set_entry(slice, index, new);
        if new.host().is_none() {
            self.free_entry(old, change == Change::Drop || self.discards.request);
        }
        let stays = self.has_data_file() || self.discards.no_unref && new.host().is_some();
        Ok(match old.own_host().filter(|_| stays) {
            Some(host) => Outcome::Emptied(host.0 + part.start..host.0 + part.end),
            None => Outcome::Done,
        })
    }

    /// What becomes of an entry; `zeroed` is what it is with its bytes as zeros.
    fn changed(&self, old: L2Entry, zeroed: L2Entry, change: Change) -> L2Entry {
        let keeps = change == Change::Keep || self.discards.no_unref && old.own_host().is_some();
        match (old, zeroed) {
            _ if change == Change::Drop => L2Entry::Unallocated,
            (L2Entry::Unallocated, _) if !self.has_backing() && !self.marks(change) => old,
            (_, L2Entry::Zero { .. }) if !self.v3.get() => L2Entry::Unallocated,
            (_, L2Entry::Zero { .. }) if !keeps => L2Entry::Zero { host: None, copied: false },
            _ => zeroed,
        }
    }
}

/// Adds a range behind others, as one with the last if it continues it.
fn append(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
