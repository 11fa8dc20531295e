//! Changing the size of the disk, and allocating clusters ahead of their use.
//!
//! Each step is one switch of the header, so that the image is of the old or the new size whenever the process
//! dies. Growing switches to a longer L1 table first and to the new size last. Shrinking (see [`super::shrink`])
//! switches to the new size first, and clusters may stay mapped behind the end: an image that grows gives them up
//! before they could be seen.

use super::cache::Piece;
use super::driver::Qcow2;
use super::entries::L2Entry;
use super::geometry::{ENTRY, GuestOffset, HostOffset};
use super::header::{Header, MAX_L1_BYTES};
use super::overlap::Metadata;
use super::refcount::Run;
use crate::block::graph::Event;
use crate::block::options::Preallocation;
use crate::block::{Error, Kind, Result};

/// Sizes are multiples of this.
const SECTOR: u64 = 512;

impl Qcow2 {
    /// Changes the size of the disk. No request is in flight.
    pub(super) async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.check_size(size)?;
        if !self.v3.get() && !self.snapshots.borrow().is_empty() {
            return Err(Error::new(Kind::Unsupported, "Can't resize a v2 image which has snapshots")
                .remedy("amend it first: qemu-img amend -o compat=1.1"));
        }
        let old = self.size.get();
        if size < old && preallocation != Preallocation::Off {
            let what = "Preallocation can only be used for growing images";
            return Err(Error::new(Kind::InvalidArgument, what));
        }
        self.prepare_change().await?;
        self.begin_bitmap_resize(size).await?;
        if size < old {
            return self.shrink(size).await;
        }
        // What stands where the disk will be.
        self.discard_vm_state().await?;
        self.size_caches(size);
        self.drop_behind(old).await?;
        self.grow_l1(self.geometry.l1_entries_for(size)).await?;
        self.grow_data_file(old, size, preallocation).await?;
        if size > old {
            // Without zero clusters, allocated ones hide it.
            let allocated = !self.v3.get() && preallocation != Preallocation::Off;
            self.hide_backing(old, size, allocated).await?;
        }
        // A raw data file decides what is read: all of it is mapped.
        let tables_only = preallocation == Preallocation::Off && self.is_raw();
        let preallocation = if tables_only { Preallocation::Metadata } else { preallocation };
        self.preallocate(old, size, preallocation).await?;
        self.flush_all().await?;
        self.switch_size(size, self.active.offset.get(), self.l1_entries()).await?;
        self.size.set(size);
        self.active.disk_size.set(size);
        self.resize_bitmaps(size);
        self.file.flush().await
    }

    /// Refuses a size that no image with such clusters can have.
    pub(super) fn check_size(&self, size: u64) -> Result<()> {
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::new(Kind::InvalidArgument, "The new size must be a multiple of 512"));
        }
        if self.geometry.l1_entries_for(size) * ENTRY > MAX_L1_BYTES || size > i64::MAX as u64 {
            let what =
                "The image size is too large for file format 'qcow2' (try using a larger cluster size)";
            return Err(Error::new(Kind::InvalidArgument, what));
        }
        Ok(())
    }

    pub(super) fn l1_entries(&self) -> u64 {
        self.active.l1.borrow().len() as u64
    }

    /// Moves the L1 table to a place where it has `entries` entries. Requests may be in flight.
    pub(super) async fn grow_l1(&self, entries: u64) -> Result<()> {
        // Nobody may make an L2 table while the L1 table is copied.
        let _turn = self.tables.lock().await;
        if entries <= self.l1_entries() {
            return Ok(());
        }
        self.file.debug_event(Event::L1GrowAllocTable);
        let new = self.reserve_contiguous(self.geometry.clusters_for(entries * ENTRY)).await?;
        self.flush_all().await?;
        let mut bytes: Vec<u8> = self.active.l1.borrow().iter().flat_map(|raw| raw.to_be_bytes()).collect();
        bytes.resize((entries * ENTRY) as usize, 0);
        let offset = self.geometry.start_of(new.run.first);
        self.overlap.check(offset, bytes.len() as u64, None)?;
        self.file.debug_event(Event::L1GrowWriteTable);
        self.file.write_bytes(offset.0, &bytes).await?;
        self.file.flush().await?;
        self.file.debug_event(Event::L1GrowActivateTable);
        self.switch_size(self.size.get(), offset, entries).await?;
        new.keep();
        let old = (self.active.offset.replace(offset), self.l1_entries() * ENTRY);
        self.active.l1.borrow_mut().resize(entries as usize, 0);
        self.overlap.set_range(Metadata::ActiveL1, offset.0..offset.0 + entries * ENTRY);
        if old.1 > 0 {
            let run =
                Run { first: self.geometry.cluster_of(old.0), count: self.geometry.clusters_for(old.1) };
            self.free_table(run);
        }
        self.file.flush().await
    }

    /// Switches size, L1 entries and L1 offset.
    pub(super) async fn switch_size(&self, size: u64, l1: HostOffset, entries: u64) -> Result<()> {
        let switch = |header: &mut Header| {
            header.size = size;
            header.l1_entries = entries as u32;
            header.l1_offset = l1;
        };
        self.change_header(switch).await
    }

    /// Makes what is added read as zeros: the rest of the last cluster, and what a longer backing file has unless
    /// all of that will be `allocated`.
    async fn hide_backing(&self, old: u64, size: u64, allocated: bool) -> Result<()> {
        let cluster_end = old.next_multiple_of(self.geometry.cluster_size());
        let backing = self.backing().filter(|_| !allocated);
        let backing = backing.map_or(0, |backing| backing.size()).min(size);
        if backing > cluster_end && !self.v3.get() {
            let what = "Failed to zero out new clusters: Operation not supported";
            let remedy = "version 2 cannot hide what a longer backing file has: qemu-img amend -o compat=1.1";
            return Err(Error::new(Kind::Unsupported, what).remedy(remedy));
        }
        let first = old.next_multiple_of(self.geometry.subcluster_size());
        let last = backing.next_multiple_of(self.geometry.cluster_size()).max(cluster_end);
        self.zero_part(GuestOffset(old), first.min(size) - old).await?;
        self.zero_subclusters(GuestOffset(first), GuestOffset(last)).await
    }

    /// Makes the data file as long as the disk, with zeros in what is added to the disk.
    async fn grow_data_file(&self, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
        if !self.has_data_file() || size < old {
            return Ok(());
        }
        let node = self.data_node()?;
        let stale = node.size().min(size);
        if stale > old {
            node.write_zeroes(old, stale - old, true).await?;
        }
        if node.size() < size || self.is_raw() && node.size() > size {
            node.truncate(size, preallocation).await?;
        }
        Ok(())
    }

    /// Allocates all clusters of a range that are not.
    async fn preallocate(&self, from: u64, to: u64, mode: Preallocation) -> Result<()> {
        if mode == Preallocation::Off {
            return Ok(());
        }
        // A cluster that the old end lies in may show the backing file: it stays as it is.
        let mut at = GuestOffset(from.next_multiple_of(self.geometry.cluster_size()));
        while at.0 < to {
            if self.must_prepare() {
                self.prepare_change().await?;
            }
            at = self.preallocate_run(at, to, mode).await?;
        }
        Ok(())
    }

    /// Allocates one run. Returns where it ended.
    async fn preallocate_run(&self, at: GuestOffset, to: u64, mode: Preallocation) -> Result<GuestOffset> {
        let (slice, slot) = self.writable_slot(at).await?;
        if self.entry(&slice, slot.index)? != L2Entry::Unallocated {
            return Ok(at.add(self.geometry.cluster_size()));
        }
        let in_slice = (self.slices.entries() - slot.index) as u64;
        let wanted = self.geometry.clusters_for(to - at.0).min(in_slice);
        let is_free = |count: &u64| {
            self.entry(&slice, slot.index + *count as usize).is_ok_and(|entry| entry == L2Entry::Unallocated)
        };
        let free = (0..wanted).take_while(is_free).count() as u64;
        if self.has_data_file() {
            return Ok(self.preallocate_placed(&slice, slot.index, at, free));
        }
        let new = self.reserve(free).await?;
        let run = new.run;
        self.extend_file(run.first.0 + run.count, mode).await?;
        let host = |count| self.geometry.start_of(run.first).add(count << self.geometry.cluster_bits);
        if !new.untouched && !self.v3.get() {
            self.zero_run(run, at).await?;
        }
        for count in 0..run.count {
            let host = host(count);
            let entry = if self.geometry.extended_l2 {
                L2Entry::unused(host)
            } else if new.untouched || !self.v3.get() {
                L2Entry::Data { host, copied: true }
            } else {
                // Old bytes may stand in clusters that were used before.
                L2Entry::Zero { host: Some(host), copied: true }
            };
            self.set_entry(&slice, slot.index + count as usize, entry);
        }
        new.keep();
        Ok(at.add(run.count << self.geometry.cluster_bits))
    }

    /// Maps a run to its place in the data file, where zeros are. Returns where it ended.
    fn preallocate_placed(&self, slice: &Piece, index: usize, at: GuestOffset, count: u64) -> GuestOffset {
        for count in 0..count {
            let host = HostOffset(at.0 + (count << self.geometry.cluster_bits));
            let entry = match self.geometry.extended_l2 && !self.is_raw() {
                true => L2Entry::unused(host),
                false => L2Entry::Data { host, copied: true },
            };
            self.set_entry(slice, index + count as usize, entry);
        }
        at.add(count << self.geometry.cluster_bits)
    }

    /// Writes zeros to clusters that nothing refers to, and that are to be the guest's from `at` on.
    async fn zero_run(&self, run: Run, at: GuestOffset) -> Result<()> {
        for count in 0..run.count {
            let skip = count << self.geometry.cluster_bits;
            self.write_zero_cluster(self.geometry.start_of(run.first).add(skip), at.add(skip)).await?;
        }
        Ok(())
    }

    /// Makes the file reach to the end of `clusters` clusters: no entry may point behind it.
    async fn extend_file(&self, clusters: u64, mode: Preallocation) -> Result<()> {
        let end = clusters << self.geometry.cluster_bits;
        if end > self.file.size() {
            self.file.truncate(end, mode).await?;
        }
        Ok(())
    }
}
