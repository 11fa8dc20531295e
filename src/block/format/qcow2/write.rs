//! Writing: in place where the bytes are the live disk's alone, else to a cluster that is kept for them or new.
//!
//! ```text
//!   cluster    |        | head: old content | data of the request | tail: old content |        |
//!                       '---------------- whole subclusters: one write below ---------'
//! ```
//! Subclusters are filled as a whole: the whole cluster, where entries are not extended. A cluster that moves,
//! because it is shared or compressed, takes along all its data.
//!
//! The guest range is locked from the look-up to the change of the L2 entries, which comes after the data. A
//! write that fails leaves the old mapping, and its new clusters are given back.

use super::alloc::Reserved;
use super::cache::Piece;
use super::driver::Qcow2;
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::{Extent, Place};
use crate::block::graph::Event;
use crate::block::graph::status::chain_status;
use crate::block::{Buffer, Iov, Result};
use std::ops::Range;

/// Longest run that is allocated at once, in bytes: what is in flight is bounded by it.
const MAX_RUN: u64 = 4 << 20;

/// Where the data of new clusters goes.
enum Target<'a> {
    /// Clusters were kept for it: zero clusters with a host cluster.
    Kept(HostOffset),
    /// Newly taken.
    New(Reserved<'a>),
    /// Their place in the external data file, which nothing says yet; anything may stand there.
    Placed(HostOffset),
}

/// The old content of a part of a cluster.
enum Around {
    /// Nothing need be written: nothing to keep, or zeros where zeros are already.
    Nothing,
    /// Bytes to write.
    Bytes(Iov),
}

impl Qcow2 {
    /// Writes to the live disk.
    pub(super) async fn write_disk(&self, at: GuestOffset, from: &Iov) -> Result<()> {
        let want = from.len() as u64;
        if let Some(Extent { place: Place::Data { host, copied: true }, len }) =
            self.lookup(&self.active, at, want)?
            && len == want
        {
            self.file.debug_event(Event::WriteAio);
            return self.write_data(host, at, from).await;
        }
        // Boxed, so that the future of the common case above stays small.
        Box::pin(self.write_extents(at, from)).await
    }

    async fn write_extents(&self, at: GuestOffset, from: &Iov) -> Result<()> {
        let mut done = 0;
        while done < from.len() {
            let (to, rest) = (at.add(done as u64), from.len() - done);
            let extent = self.map(&self.active, to, rest as u64).await?;
            if let Place::Data { host, copied: true } = extent.place {
                self.file.debug_event(Event::WriteAio);
                self.write_data(host, to, &from.slice(done, extent.len as usize)).await?;
                done += extent.len as usize;
            } else {
                done += self.write_new(to, &from.slice(done, rest)).await? as usize;
            }
        }
        Ok(())
    }

    /// Writes the first bytes of `from` to clusters that must be taken or changed first. Returns how many;
    /// none, if someone else did it meanwhile.
    async fn write_new(&self, at: GuestOffset, from: &Iov) -> Result<u64> {
        let skip = self.geometry.in_cluster(at.0);
        let clusters = self.run_limit(at, skip + from.len() as u64);
        let start = self.geometry.guest_start(at);
        let locked = start.0..start.0 + (clusters << self.geometry.cluster_bits);
        let _turn = self.guests.lock(locked, true).await;
        let (slice, slot) = self.writable_slot(at).await?;
        let (target, len) = match self.kept_run(&slice, slot.index, skip, clusters)? {
            Some((_, 0)) => return Ok(0),
            Some((host, len)) => (Target::Kept(host), len),
            None if self.has_data_file() => {
                let count = self.new_run(&slice, slot.index, clusters)?;
                (Target::Placed(HostOffset(start.0)), (count << self.geometry.cluster_bits) - skip)
            }
            None => {
                let reserved = self.reserve(self.new_run(&slice, slot.index, clusters)?).await?;
                let len = (reserved.run.count << self.geometry.cluster_bits) - skip;
                (Target::New(reserved), len)
            }
        };
        let part = from.slice(0, len.min(from.len() as u64) as usize);
        let filled = self.filled(&slice, slot.index, &target, at, part.len() as u64)?;
        self.write_filled(&target, at, &part, &filled).await?;
        self.link(&slice, slot.index, filled, target)?;
        Ok(part.len() as u64)
    }

    /// How many clusters, from that of `at` on, one go may change: `len` bytes, one slice, a bounded run.
    fn run_limit(&self, at: GuestOffset, len: u64) -> u64 {
        let (_, index) = self.slices.of(at);
        let in_slice = (self.slices.entries() - index) as u64;
        let bounded = (MAX_RUN >> self.geometry.cluster_bits).max(1);
        self.geometry.clusters_for(len).min(in_slice).min(bounded)
    }

    /// If the first cluster has a host cluster that may be written: it, and how many bytes from `skip` on hold no
    /// data and have host clusters that follow it. No bytes if nothing needs a change.
    fn kept_run(
        &self,
        slice: &Piece,
        index: usize,
        skip: u64,
        limit: u64,
    ) -> Result<Option<(HostOffset, u64)>> {
        let size = self.geometry.cluster_size();
        let Some(first) = self.entry(slice, index)?.own_host() else { return Ok(None) };
        let mut end = 0;
        for count in 0..limit {
            let entry = self.entry(slice, index + count as usize)?;
            if entry.own_host() != Some(first.add(count * size)) {
                break;
            }
            let from = if count == 0 { skip } else { 0 };
            let data = entry.next_data(from, self.geometry);
            end = count * size + data;
            if data < size {
                break;
            }
        }
        Ok(Some((first, end.saturating_sub(skip))))
    }

    /// How many clusters from the first on need a new host cluster.
    fn new_run(&self, slice: &Piece, index: usize, limit: u64) -> Result<u64> {
        for count in 0..limit {
            if self.entry(slice, index + count as usize)?.own_host().is_some() {
                return Ok(count.max(1));
            }
        }
        Ok(limit)
    }

    /// The guest bytes that a write of `len` bytes fills: whole subclusters, and the data of clusters that move.
    fn filled(
        &self,
        slice: &Piece,
        index: usize,
        target: &Target<'_>,
        at: GuestOffset,
        len: u64,
    ) -> Result<Range<u64>> {
        let (size, end) = (self.geometry.cluster_size(), at.0 + len);
        let mut filled =
            self.geometry.subcluster_start(at).0..end.next_multiple_of(self.geometry.subcluster_size());
        if matches!(target, Target::Kept(_)) {
            return Ok(filled);
        }
        let first = self.geometry.guest_start(at).0;
        let last = self.geometry.guest_start(GuestOffset(end - 1)).0;
        if let Some(data) = self.entry(slice, index)?.data_span(self.geometry) {
            filled.start = filled.start.min(first + data.start);
        }
        if let Some(data) =
            self.entry(slice, index + ((last - first) / size) as usize)?.data_span(self.geometry)
        {
            filled.end = filled.end.max(last + data.end);
        }
        Ok(filled)
    }

    /// Writes `from` with the old content around it.
    async fn write_filled(
        &self,
        target: &Target<'_>,
        at: GuestOffset,
        from: &Iov,
        filled: &Range<u64>,
    ) -> Result<()> {
        let (host, untouched) = match target {
            Target::Kept(host) | Target::Placed(host) => (*host, false),
            Target::New(reserved) => (self.geometry.start_of(reserved.run.first), reserved.untouched),
        };
        let end = at.add(from.len() as u64);
        let head = self.old_content(GuestOffset(filled.start), at.0 - filled.start, untouched).await?;
        let tail = self.old_content(end, self.written_end(end, filled) - end.0, untouched).await?;
        let mut first = at;
        let mut parts = Vec::with_capacity(3);
        if let Around::Bytes(bytes) = head {
            first = GuestOffset(filled.start);
            parts.push(bytes);
        }
        parts.push(from.clone());
        if let Around::Bytes(bytes) = tail {
            parts.push(bytes);
        }
        let start = host.add(first.0 - self.geometry.guest_start(at).0);
        self.file.debug_event(if parts.len() > 1 { Event::CowWrite } else { Event::WriteAio });
        self.write_data(start, first, &Iov::concat(&parts)).await
    }

    /// Where what is written ends, of a request that ends at `end`. A data file is no longer than the disk.
    fn written_end(&self, end: GuestOffset, filled: &Range<u64>) -> u64 {
        if self.has_data_file() { filled.end.min(self.size.get()).max(end.0) } else { filled.end }
    }

    /// What stands in `len` bytes of one cluster now. `untouched`: what is not written reads as zeros.
    async fn old_content(&self, at: GuestOffset, len: u64, untouched: bool) -> Result<Around> {
        if len == 0 {
            return Ok(Around::Nothing);
        }
        match (self.reads_as_zeros(at, len).await?, untouched) {
            (true, true) => Ok(Around::Nothing),
            (true, false) => Ok(Around::Bytes(self.zeros(len))),
            (false, _) => {
                let bytes = Buffer::new(len as usize).iov(len as usize);
                self.file.debug_event(Event::CowRead);
                self.read_view(&self.active, at, &bytes).await?;
                Ok(Around::Bytes(bytes))
            }
        }
    }

    /// Whether a range reads as zeros, as far as that is known without reading it.
    pub(super) async fn reads_as_zeros(&self, at: GuestOffset, len: u64) -> Result<bool> {
        let mut done = 0;
        while done < len {
            let extent = self.map(&self.active, at.add(done), len - done).await?;
            let zero = match extent.place {
                Place::Zero { .. } => true,
                Place::Unallocated { .. } => self.backing_is_zero(at.add(done), extent.len).await?,
                Place::Data { .. } | Place::Compressed(_) => false,
            };
            if !zero {
                return Ok(false);
            }
            done += extent.len;
        }
        Ok(true)
    }

    /// Whether what is unallocated reads as zeros, as far as that is known without reading it.
    async fn backing_is_zero(&self, at: GuestOffset, len: u64) -> Result<bool> {
        let vm_state = self.geometry.vm_state_start(self.active.disk_size.get());
        let backing = self.backing().filter(|_| at < vm_state);
        let Some(backing) = backing else { return Ok(true) };
        let mut done = 0;
        while done < len && at.0 + done < backing.size() {
            let status = chain_status(&backing, at.0 + done, len - done).await;
            let status = status.map_err(|error| error.path(backing.filename()))?;
            if !status.status.zero {
                return Ok(false);
            }
            done += status.len;
        }
        Ok(true)
    }

    /// Shows the data that was written: `filled`, which begins in the cluster of the entry at `index`.
    fn link(&self, slice: &Piece, index: usize, filled: Range<u64>, target: Target<'_>) -> Result<()> {
        let (host, new) = match &target {
            Target::Kept(host) | Target::Placed(host) => (*host, false),
            Target::New(reserved) => (self.geometry.start_of(reserved.run.first), true),
        };
        let (size, start) =
            (self.geometry.cluster_size(), self.geometry.guest_start(GuestOffset(filled.start)).0);
        let filled = filled.start - start..filled.end - start;
        let clusters = self.geometry.clusters_for(filled.end);
        let old = (index..index + clusters as usize).map(|at| self.entry(slice, at));
        // From here on nothing can fail: the entries and what they replace change as one.
        for (old, count) in old.collect::<Result<Vec<_>>>()?.into_iter().zip(0..) {
            let cluster = count * size;
            let bytes = filled.start.max(cluster) - cluster..filled.end.min(cluster + size) - cluster;
            let data = old.with_data(host.add(cluster), bytes, self.geometry);
            self.set_entry(slice, index + count as usize, data);
            if new {
                self.free_entry(old, false);
            }
        }
        if let Target::New(reserved) = target {
            reserved.keep();
        }
        Ok(())
    }
}
