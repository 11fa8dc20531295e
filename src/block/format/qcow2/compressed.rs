//! Compressed clusters: read several at a time, written packed one behind the other.
//!
//! ```text
//!   host clusters  |  a  |   b    |  c  ┊   d   | free |      c goes over a border, as its clusters follow one
//!                  └── refcount 3 ──────┴ refcount 2 ─┘      another; a refcount is how many reach in
//! ```
//! * Clusters are compressed and decompressed by several threads, this one among them, about [`BATCH`] bytes a job.
//! * Clusters that are read in part are kept decompressed for a while, so that small sequential reads decompress
//!   each once. What is kept of a place is forgotten when something else is stored there; that happens only
//!   after all requests that knew the old content have ended (see [`super::alloc`]), so none brings it back.
//! * The data is written before the L2 entry that shows it, and nobody changes it again: a cluster that is
//!   written to in part moves elsewhere, as any shared one.
//! * In encrypted images they stand unencrypted, as QEMU has it; so none are written to those.

use super::codec::Codec;
use super::driver::Qcow2;
use super::entries::{Compressed, L2Entry, SECTOR};
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::{Extent, Place, View};
use crate::block::graph::Event;
use crate::block::options::Preallocation;
use crate::block::range_lock::RangeLock;
use crate::block::{AlignedBytes, Error, Iov, Kind, Result};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;

/// Up to so many bytes are decompressed at once: handing them to a thread takes longer.
const INLINE: usize = 16 << 10;
/// As [`INLINE`], where no other request would have to wait.
const INLINE_ALONE: usize = 64 << 10;
/// Bytes of guest data that one job is about, or one cluster where that is larger.
const BATCH: u64 = 64 << 10;
/// How many bytes of a request are looked up at once.
const REACH: usize = 4 << 20;
/// How many jobs one request has in flight.
const JOBS: usize = 8;
/// Bytes of decompressed clusters that are kept, but for 2 clusters at least and 64 at most.
const KEPT: u64 = 2 << 20;
/// Compressed clusters that stand apart less than this are read as one, in bytes.
const GAP: u64 = 4 << 10;

/// A part of a request that one compressed cluster holds.
struct Part {
    data: Compressed,
    /// Where in the cluster it starts.
    skip: usize,
    into: Iov,
}

/// What one job reads and makes of it.
#[derive(Default)]
struct Scratch {
    packed: AlignedBytes,
    clusters: Vec<u8>,
}

/// Clusters that were read in part, decompressed, the last one first.
#[derive(Default)]
pub(super) struct Decompressed {
    kept: RefCell<VecDeque<(Compressed, Rc<Vec<u8>>)>>,
    /// Memory for the next ones: fresh from the host it would cost a good part of what the codec does.
    spare: RefCell<Vec<Scratch>>,
    /// So that two requests do not decompress one cluster twice.
    turns: RangeLock,
}

impl Decompressed {
    fn get(&self, data: Compressed) -> Option<Rc<Vec<u8>>> {
        let mut kept = self.kept.borrow_mut();
        let at = kept.iter().position(|(other, _)| *other == data)?;
        let found = kept.remove(at)?;
        kept.push_front(found.clone());
        Some(found.1)
    }

    fn keep(&self, data: Compressed, cluster: Rc<Vec<u8>>) {
        let most = (KEPT / cluster.len() as u64).clamp(2, 64) as usize;
        let mut kept = self.kept.borrow_mut();
        kept.push_front((data, cluster));
        kept.truncate(most);
    }

    fn give_back(&self, scratch: Scratch) {
        let mut spare = self.spare.borrow_mut();
        let size = scratch.packed.capacity() + scratch.clusters.capacity();
        if spare.len() < 2 * JOBS && size as u64 <= KEPT / JOBS as u64 {
            spare.push(scratch);
        }
    }

    /// Forgets what started at `host`: something else does now.
    fn forget(&self, host: HostOffset) {
        self.kept.borrow_mut().retain(|(data, _)| data.offset != host);
    }
}

/// Reading.
impl Qcow2 {
    /// Reads the compressed clusters that `into` starts with. Returns how many bytes they hold of it.
    pub(super) async fn read_compressed(&self, view: &View, at: GuestOffset, into: &Iov) -> Result<usize> {
        let parts = self.compressed_parts(view, at, into).await?;
        let (whole, partial): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|part| part.into.len() as u64 == self.geometry.cluster_size());
        let partial_len: usize = partial.iter().map(|part| part.into.len()).sum();
        let whole_len: usize = whole.iter().map(|part| part.into.len()).sum();
        for part in partial {
            part.into.copy_from(0, &self.decompressed(part.data).await?[part.skip..]);
        }
        let batches = self.batches(whole);
        let single = batches.len() == 1;
        let batches = stream::iter(batches).map(|batch| self.read_batch(batch, single));
        batches.buffer_unordered(JOBS).try_collect::<()>().await?;
        Ok(partial_len + whole_len)
    }

    async fn compressed_parts(&self, view: &View, at: GuestOffset, into: &Iov) -> Result<Vec<Part>> {
        let (mut parts, mut done) = (Vec::new(), 0);
        while done < into.len().min(REACH) {
            let from = at.add(done as u64);
            let extent = self.map(view, from, (into.len() - done) as u64).await?;
            let Extent { place: Place::Compressed(data), len } = extent else { break };
            let skip = self.geometry.in_cluster(from.0) as usize;
            parts.push(Part { data, skip, into: into.slice(done, len as usize) });
            done += len as usize;
        }
        Ok(parts)
    }

    /// Groups clusters that one read of the file and one job are about.
    fn batches(&self, parts: Vec<Part>) -> Vec<Vec<Part>> {
        let most = (BATCH >> self.geometry.cluster_bits).max(1) as usize;
        let mut batches: Vec<Vec<Part>> = Vec::new();
        for part in parts {
            match batches.last_mut() {
                Some(batch) if batch.len() < most && follows(&batch[batch.len() - 1], &part) => {
                    batch.push(part);
                }
                _ => batches.push(vec![part]),
            }
        }
        batches
    }

    /// `single`: it is all that the request waits for.
    async fn read_batch(&self, batch: Vec<Part>, single: bool) -> Result<()> {
        let data = batch.iter().map(|part| part.data).collect();
        let scratch = self.decompress(data, single).await?;
        let size = self.geometry.cluster_size() as usize;
        for (part, cluster) in batch.iter().zip(scratch.clusters.chunks_exact(size)) {
            part.into.copy_from(0, cluster);
        }
        self.decompressed.give_back(scratch);
        Ok(())
    }

    /// A cluster that is wanted in part.
    async fn decompressed(&self, data: Compressed) -> Result<Rc<Vec<u8>>> {
        if let Some(cluster) = self.decompressed.get(data) {
            return Ok(cluster);
        }
        let _turn = self.decompressed.turns.lock(data.offset.0..data.offset.0 + 1, true).await;
        if let Some(cluster) = self.decompressed.get(data) {
            return Ok(cluster);
        }
        let mut scratch = self.decompress(vec![data], true).await?;
        let cluster = Rc::new(std::mem::take(&mut scratch.clusters));
        self.decompressed.give_back(scratch);
        self.decompressed.keep(data, cluster.clone());
        Ok(cluster)
    }

    /// Reads and decompresses clusters that stand in the order of the file, not far from each other.
    async fn decompress(&self, clusters: Vec<Compressed>, single: bool) -> Result<Scratch> {
        let start = clusters.first().map_or(0, |data| data.offset.0);
        let end = clusters.iter().map(|data| data.offset.0 + data.len).max().unwrap_or(start);
        let len = (end - start) as usize;
        let mut scratch = self.decompressed.spare.borrow_mut().pop().unwrap_or_default();
        self.file.debug_event(Event::ReadCompressed);
        scratch.packed = self.file.read_memory(start, len, scratch.packed).await?;
        let (codec, size) = (self.codec, self.geometry.cluster_size() as usize);
        let alone = single && self.users.is_single() && self.engine.is_idle();
        let inline = clusters.len() * size <= if alone { INLINE_ALONE } else { INLINE };
        let work = move || {
            scratch.clusters.resize(clusters.len() * size, 0);
            let into = scratch.clusters.chunks_exact_mut(size);
            decompress_all(codec, scratch.packed.first(len), start, &clusters, into)?;
            Ok(scratch)
        };
        if inline { work() } else { self.engine.share(work).await }
    }
}

/// Whether `next` stands behind `last`, and near.
fn follows(last: &Part, next: &Part) -> bool {
    let (last, next) = (last.data, next.data.offset.0);
    next >= last.offset.0 && next <= last.offset.0 + last.len + GAP
}

/// Decompresses clusters `into` places for one each; `packed` is what stands in the file from `start` on.
fn decompress_all<'a>(
    codec: Codec,
    packed: &[u8],
    start: u64,
    clusters: &[Compressed],
    into: impl Iterator<Item = &'a mut [u8]>,
) -> Result<()> {
    for (data, cluster) in clusters.iter().zip(into) {
        let from = (data.offset.0 - start) as usize;
        if !codec.decompress(&packed[from..from + data.len as usize], cluster) {
            let what = format!("compressed cluster at offset {:#x} cannot be decompressed", data.offset.0);
            return Err(Error::new(Kind::Io, what));
        }
    }
    Ok(())
}

/// Writing.
impl Qcow2 {
    /// Writes whole clusters compressed, those that do not become smaller as they are. The end of the disk ends
    /// a cluster too.
    pub(super) async fn write_packed(&self, at: GuestOffset, from: &Iov) -> Result<()> {
        self.check_packed(at, from.len() as u64)?;
        let step = BATCH.max(self.geometry.cluster_size()) as usize;
        let batches = stream::iter((0..from.len()).step_by(step)).map(|start| async move {
            let part = from.slice(start, step);
            let packed = self.compress(&part).await;
            (at.add(start as u64), part, packed)
        });
        let mut batches = pin!(batches.buffered(JOBS));
        while let Some((at, from, packed)) = batches.next().await {
            if self.must_prepare() {
                Box::pin(self.prepare_change()).await?;
            }
            self.write_batch(at, &from, packed).await?;
        }
        Ok(())
    }

    fn check_packed(&self, at: GuestOffset, len: u64) -> Result<()> {
        let end = at.add(len);
        if !self.geometry.is_aligned(at.0) || !self.geometry.is_aligned(end.0) && end.0 != self.size.get() {
            return Err(Error::new(Kind::InvalidArgument, "Only whole clusters can be written compressed"));
        }
        if self.header.borrow().crypt_method != 0 {
            let what = "Compression and encryption not supported at the same time";
            return Err(Error::new(Kind::Unsupported, what));
        }
        if self.has_data_file() {
            return Err(Error::new(Kind::Unsupported, "Operation not supported")
                .remedy("images with an external data file cannot have compressed clusters"));
        }
        Ok(())
    }

    /// Compresses each cluster of `from`; none where that does not make it smaller.
    async fn compress(&self, from: &Iov) -> Vec<Option<Vec<u8>>> {
        let (codec, size) = (self.codec, self.geometry.cluster_size() as usize);
        let mut bytes = from.to_vec();
        // What lies behind the end of the disk reads as zeros, should it grow.
        bytes.resize(bytes.len().next_multiple_of(size), 0);
        self.engine
            .share(move || bytes.chunks_exact(size).map(|cluster| codec.compress(cluster)).collect())
            .await
    }

    async fn write_batch(&self, at: GuestOffset, from: &Iov, packed: Vec<Option<Vec<u8>>>) -> Result<()> {
        let size = self.geometry.cluster_size() as usize;
        for (cluster, start) in packed.into_iter().zip((0..).step_by(size)) {
            let to = at.add(start as u64);
            match cluster {
                Some(bytes) => self.write_packed_cluster(to, &bytes).await?,
                None => self.write_disk(to, &from.slice(start, size)).await?,
            }
        }
        Ok(())
    }

    /// Stores a compressed cluster, then shows it.
    pub(super) async fn write_packed_cluster(&self, at: GuestOffset, bytes: &[u8]) -> Result<()> {
        let _turn = self.guests.lock(at.0..at.0 + self.geometry.cluster_size(), true).await;
        let (slice, slot) = self.writable_slot(at).await?;
        let (host, room) = self.reserve_bytes(bytes.len() as u64).await?;
        self.overlap.check(host, bytes.len() as u64, None)?;
        self.file.debug_event(Event::WriteCompressed);
        self.file.write_bytes(host.0, bytes).await?;
        let old = self.entry(&slice, slot.index)?;
        // From here on nothing can fail: the entry and what it replaces change as one.
        self.file.debug_event(Event::L2UpdateCompressed);
        self.decompressed.forget(host);
        let new = L2Entry::Compressed(Compressed::new(host, bytes.len() as u64));
        self.set_entry(&slice, slot.index, new);
        room.keep();
        self.free_entry(old, false);
        Ok(())
    }

    /// If compressed data came last, makes the file reach to the end of its last sector, as the L2 entry says.
    /// For readers who take it at its word; no request is in flight.
    pub(super) async fn end_with_sector(&self) -> Result<()> {
        let (size, end) = (self.file.size(), self.file.size().next_multiple_of(SECTOR));
        if self.refcounts.tail().is_some() && size < end {
            self.file.truncate(end, Preallocation::Off).await?;
        }
        Ok(())
    }
}
