//! Writing: in place where the cluster is the live disk's alone, else to new clusters.
//!
//! ```text
//!   new cluster   | head: old content | data of the request | tail: old content |     one write below
//! ```
//! The guest range is locked from the look-up to the change of the L2 entries, which comes after the data. A
//! write that fails leaves the old mapping, and its new clusters are given back.

use super::alloc::Reserved;
use super::cache::Piece;
use super::driver::Qcow2;
use super::entries::L2Entry;
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::{Extent, Place};
use crate::block::graph::Event;
use crate::block::graph::status::chain_status;
use crate::block::{Buffer, Iov, Result};

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
        let (target, clusters) = match self.kept_run(&slice, slot.index, clusters)? {
            Some((_, 0)) => return Ok(0),
            Some((host, count)) => (Target::Kept(host), count),
            None if self.has_data_file() => {
                (Target::Placed(HostOffset(start.0)), self.new_run(&slice, slot.index, clusters)?)
            }
            None => {
                let reserved = self.reserve(self.new_run(&slice, slot.index, clusters)?).await?;
                let count = reserved.run.count;
                (Target::New(reserved), count)
            }
        };
        let len = ((clusters << self.geometry.cluster_bits) - skip).min(from.len() as u64);
        self.write_clusters(&target, at, &from.slice(0, len as usize)).await?;
        self.link(&slice, slot.index, clusters, target)?;
        Ok(len)
    }

    /// How many clusters, from that of `at` on, one go may change: `len` bytes, one slice, a bounded run.
    fn run_limit(&self, at: GuestOffset, len: u64) -> u64 {
        let (_, index) = self.geometry.slice_of(at);
        let in_slice = (self.geometry.slice_entries() - index) as u64;
        let bounded = (MAX_RUN >> self.geometry.cluster_bits).max(1);
        self.geometry.clusters_for(len).min(in_slice).min(bounded)
    }

    /// If the first cluster has a host cluster that may be written: it, and how many follow it so. No count if
    /// it needs no change at all.
    fn kept_run(&self, slice: &Piece, index: usize, limit: u64) -> Result<Option<(HostOffset, u64)>> {
        let first = match self.entry(slice, index)? {
            L2Entry::Zero { host: Some(host), copied: true } => host,
            L2Entry::Data { host, copied: true } => return Ok(Some((host, 0))),
            _ => return Ok(None),
        };
        let mut count = 1;
        while count < limit {
            let next = first.add(count << self.geometry.cluster_bits);
            let entry = self.entry(slice, index + count as usize)?;
            if entry != (L2Entry::Zero { host: Some(next), copied: true }) {
                break;
            }
            count += 1;
        }
        Ok(Some((first, count)))
    }

    /// How many clusters from the first on need a new host cluster.
    fn new_run(&self, slice: &Piece, index: usize, limit: u64) -> Result<u64> {
        for count in 0..limit {
            match self.entry(slice, index + count as usize)? {
                L2Entry::Data { copied: true, .. } | L2Entry::Zero { host: Some(_), copied: true } => {
                    return Ok(count.max(1));
                }
                _ => {}
            }
        }
        Ok(limit)
    }

    /// Writes `from` with the old content around it.
    async fn write_clusters(&self, target: &Target<'_>, at: GuestOffset, from: &Iov) -> Result<()> {
        let (host, untouched) = match target {
            Target::Kept(host) | Target::Placed(host) => (*host, false),
            Target::New(reserved) => (self.geometry.start_of(reserved.run.first), reserved.untouched),
        };
        let head_len = self.geometry.in_cluster(at.0);
        let end = at.add(from.len() as u64);
        let tail_len = self.cluster_end(end) - end.0;
        let head = self.old_content(self.geometry.guest_start(at), head_len, untouched).await?;
        let tail = self.old_content(end, tail_len, untouched).await?;
        let (mut start, mut first) = (host.add(head_len), at);
        let mut parts = Vec::with_capacity(3);
        if let Around::Bytes(bytes) = head {
            (start, first) = (host, self.geometry.guest_start(at));
            parts.push(bytes);
        }
        parts.push(from.clone());
        if let Around::Bytes(bytes) = tail {
            parts.push(bytes);
        }
        self.file.debug_event(if parts.len() > 1 { Event::CowWrite } else { Event::WriteAio });
        self.write_data(start, first, &Iov::concat(&parts)).await
    }

    /// Where the cluster that `end` is in or behind ends. A data file is no longer than the disk.
    fn cluster_end(&self, end: GuestOffset) -> u64 {
        let cluster_end = end.0.next_multiple_of(self.geometry.cluster_size());
        if self.has_data_file() { cluster_end.min(self.size.get()).max(end.0) } else { cluster_end }
    }

    /// What stands in `len` bytes of one cluster now. `untouched`: what is not written reads as zeros.
    async fn old_content(&self, at: GuestOffset, len: u64, untouched: bool) -> Result<Around> {
        if len == 0 {
            return Ok(Around::Nothing);
        }
        let extent = self.map(&self.active, at, len).await?;
        let zero = match extent.place {
            Place::Zero { .. } => true,
            Place::Unallocated => self.backing_is_zero(at, len).await?,
            Place::Data { .. } | Place::Compressed(_) => false,
        };
        match (zero, untouched) {
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

    /// Whether what is unallocated reads as zeros, as far as that is known without reading it.
    pub(super) async fn backing_is_zero(&self, at: GuestOffset, len: u64) -> Result<bool> {
        let vm_state = self.geometry.vm_state_start(self.active.disk_size.get());
        let backing = self.backing.as_ref().filter(|_| at < vm_state);
        let Some(backing) = backing else { return Ok(true) };
        let mut done = 0;
        while done < len && at.0 + done < backing.size() {
            let status = chain_status(backing, at.0 + done, len - done).await?;
            if !status.status.zero {
                return Ok(false);
            }
            done += status.len;
        }
        Ok(true)
    }

    /// Shows the data that was written.
    fn link(&self, slice: &Piece, index: usize, clusters: u64, target: Target<'_>) -> Result<()> {
        let (host, new) = match &target {
            Target::Kept(host) | Target::Placed(host) => (*host, false),
            Target::New(reserved) => (self.geometry.start_of(reserved.run.first), true),
        };
        let old = (index..index + clusters as usize).map(|at| self.entry(slice, at));
        // From here on nothing can fail: the entries and what they replace change as one.
        for (old, count) in old.collect::<Result<Vec<_>>>()?.into_iter().zip(0..) {
            let at = index + count as usize;
            let data = L2Entry::Data { host: host.add(count << self.geometry.cluster_bits), copied: true };
            self.l2.set_entry(slice, at, data.encode(self.geometry));
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
