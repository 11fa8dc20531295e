//! Clusters that are filled from several threads: new ones are taken here, one behind the other, their bytes are written
//! by others, and then the L2 entries show them; bytes of those that the disk has already are written where they are.
//!
//! The order is that of any write: refcounts and data first, what refers to them later. What was taken and never
//! shown is a leak until it is given back.

use super::driver::Qcow2;
use super::entries::L2Entry;
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::Place;
use super::refcount::Run;
use crate::block::aio::BulkFile;
use crate::block::graph::filling::{Filling, Held, NewRoom, Packer, Room};
use crate::block::{Error, Kind, Result};
use async_trait::async_trait;
use std::sync::Arc;

impl Qcow2 {
    /// Whether clusters can be filled by others: they stand in the image file, as they are, as a whole. Room that is
    /// taken and not used costs a file nothing; a device may have no more of it.
    pub(super) fn can_be_filled(&self) -> bool {
        let plain = self.encryption.is_none() && !self.has_data_file() && !self.geometry.extended_l2;
        let has_room = self.file.driver().device().is_none();
        plain && has_room && self.bitmaps.is_empty() && self.bulk_file().is_some()
    }

    fn bulk_file(&self) -> Option<BulkFile> {
        self.file.driver().bulk_file()
    }

    /// Shows the first of `count` clusters at `host`, as many as one slice has. Returns how many.
    async fn show_run(&self, at: GuestOffset, host: HostOffset, count: u64) -> Result<u64> {
        let locked = at.0..at.0 + (count << self.geometry.cluster_bits);
        let _turn = self.guests.lock(locked, true).await;
        let (slice, slot) = self.writable_slot(at).await?;
        let count = count.min((self.slices.entries() - slot.index) as u64);
        let size = self.geometry.cluster_size();
        let old = (0..count).map(|cluster| self.entry(&slice, slot.index + cluster as usize));
        let old = old.collect::<Result<Vec<_>>>()?;
        if !old.iter().all(|entry| matches!(entry, L2Entry::Unallocated | L2Entry::Zero { host: None, .. })) {
            return Err(Error::new(Kind::InvalidArgument, "only new clusters can be filled"));
        }
        for (entry, cluster) in old.into_iter().zip(0..) {
            let data = entry.with_data(host.add(cluster * size), 0..size, self.geometry);
            self.set_entry(&slice, slot.index + cluster as usize, data);
        }
        Ok(count)
    }
}

#[async_trait(?Send)]
impl Filling for Qcow2 {
    fn grain(&self) -> u64 {
        self.geometry.cluster_size()
    }

    async fn held(&self, at: u64, len: u64) -> Result<Held> {
        if self.must_prepare() {
            self.prepare_change().await?;
        }
        let file = self.bulk_file().ok_or_else(no_bulk_file)?;
        let (mut rooms, mut done) = (Vec::new(), 0);
        while done < len {
            let extent = self.map(&self.active, GuestOffset(at + done), len - done).await?;
            let host = match extent.place {
                Place::Data { host, copied: true } => Some(host),
                Place::Unallocated { host: None } | Place::Zero { host: None, .. } => None,
                _ => return Ok(Held::Other),
            };
            if done > 0 && host.is_none() != rooms.is_empty() {
                return Ok(Held::Other);
            }
            if let Some(host) = host {
                self.overlap.check(host, extent.len, None)?;
                self.file.written_elsewhere(host.0 + extent.len);
                let (file, offset) = (file.clone(), host.0);
                rooms.push(Room { file, offset, len: extent.len, untouched: false });
            }
            done += extent.len;
        }
        Ok(if rooms.is_empty() { Held::Nothing } else { Held::Own(rooms) })
    }

    fn new_room(&self) -> Option<&dyn NewRoom> {
        Some(self)
    }
}

#[async_trait(?Send)]
impl NewRoom for Qcow2 {
    async fn take_room(&self, len: u64) -> Result<Room> {
        if self.must_prepare() {
            self.prepare_change().await?;
        }
        let file = self.bulk_file().ok_or_else(no_bulk_file)?;
        let reserved = self.reserve(len >> self.geometry.cluster_bits).await?;
        let offset = self.geometry.start_of(reserved.run.first);
        let len = reserved.run.count << self.geometry.cluster_bits;
        self.overlap.check(offset, len, None)?;
        let untouched = reserved.untouched;
        reserved.keep();
        self.file.written_elsewhere(offset.0 + len);
        Ok(Room { file, offset: offset.0, len, untouched })
    }

    async fn show(&self, at: u64, len: u64, place: u64) -> Result<()> {
        let _user = self.users.enter();
        let (count, bits) = (len >> self.geometry.cluster_bits, self.geometry.cluster_bits);
        let mut done = 0;
        while done < count {
            let (guest, host) = (GuestOffset(at + (done << bits)), HostOffset(place + (done << bits)));
            done += self.show_run(guest, host, count - done).await?;
        }
        Ok(())
    }

    fn give_back(&self, room: Room) {
        let first = self.geometry.cluster_of(HostOffset(room.offset));
        self.frees.push(Run { first, count: room.len >> self.geometry.cluster_bits }, false);
    }

    fn packer(&self) -> Packer {
        let codec = self.codec;
        Arc::new(move |cluster| codec.compress(cluster))
    }

    async fn write_packed(&self, at: u64, packed: &[u8]) -> Result<()> {
        if self.must_prepare() {
            self.prepare_change().await?;
        }
        let _user = self.users.enter();
        self.write_packed_cluster(GuestOffset(at), packed).await
    }
}

fn no_bulk_file() -> Error {
    Error::new(Kind::Unsupported, "the image's file is not one that other threads can write")
}
