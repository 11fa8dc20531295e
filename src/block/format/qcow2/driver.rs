//! The driver of an open image: what it knows of it, and the requests that it serves.

use super::alloc::{Frees, Users};
use super::bitmap::BitmapList;
use super::cache::Cache;
use super::cache_options::{CacheOptions, Capacities, Cleaning};
use super::codec::Codec;
use super::compressed::Decompressed;
use super::data::DataFile;
use super::discard_options::DiscardOptions;
use super::encrypt::Encryption;
use super::geometry::{Geometry, GuestOffset, HostOffset, Slices};
use super::header::{CORRUPT, DIRTY, Header, LAZY_REFCOUNTS};
use super::mapping::View;
use super::overlap::Overlap;
use super::refcount::Refcounts;
use super::snapshot::Snapshot;
use crate::block::aio::Engine;
use crate::block::graph::amend::Amend;
use crate::block::graph::bitmaps::Bitmaps;
use crate::block::graph::driver::{Check, Clusters, KeySlotChanges, Place, Qcow2Specifics, Specifics};
use crate::block::graph::filling::Filling;
use crate::block::graph::overlay::Overlay;
use crate::block::graph::snapshots::{Snapshots, VmState};
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::range_lock::RangeLock;
use crate::block::{Buffer, Iov, Result};
use async_lock::Mutex;
use async_trait::async_trait;
use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

/// Longest read or write, in bytes.
const MAX_TRANSFER: u32 = 64 << 20;

/// What may be done with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It was opened to be read.
    Read,
    /// Anything.
    Write,
    /// Anything; it is being repaired, and nobody else uses it.
    Repair,
    /// It was opened for more, but was found corrupt, or is no longer the image that the driver knows.
    Ended,
}

/// An open image.
pub(super) struct Qcow2 {
    pub(super) engine: Rc<Engine>,
    pub(super) file: Rc<Node>,
    pub(super) backing: RefCell<Option<Rc<Node>>>,
    pub(super) geometry: Geometry,
    /// Version 3: there are zero clusters and feature bits. An amend can switch to it.
    pub(super) v3: Cell<bool>,
    /// How clusters are compressed.
    pub(super) codec: Codec,
    pub(super) size: Cell<u64>,
    pub(super) access: Cell<Access>,
    /// Refcounts may be written after what relies on them.
    pub(super) lazy_refcounts: bool,
    /// As it is on disk; changed by [`Qcow2::change_header`].
    pub(super) header: RefCell<Header>,
    pub(super) encryption: Option<Encryption>,
    /// Held while the header is changed.
    pub(super) switching: Mutex<()>,
    /// Autoclear bits of what is not upheld here that are not yet known to be gone from the disk.
    pub(super) autoclear: Cell<u64>,
    /// A switch of the header may or may not outlive a power failure: nothing may change before a flush.
    pub(super) unsettled: Cell<bool>,
    /// Bytes of the first cluster, and where they belong: see [`super::switch`].
    pub(super) owed_header: RefCell<Option<(u64, Vec<u8>)>>,
    /// Where the guest's data is, if not in `file`.
    pub(super) data_file: Option<DataFile>,
    /// The live disk.
    pub(super) active: View,
    pub(super) slices: Slices,
    pub(super) l2: Cache,
    pub(super) caches: CacheOptions,
    /// Which space goes back to the host.
    pub(super) discards: DiscardOptions,
    pub(super) cleaning: Cleaning,
    pub(super) refcounts: Refcounts,
    pub(super) overlap: Rc<Overlap>,
    pub(super) snapshots: RefCell<Vec<Snapshot>>,
    /// L1 tables of snapshots that someone reads.
    pub(super) open_views: RefCell<Vec<HostOffset>>,
    /// Where the snapshot table stands.
    pub(super) snapshot_table: RefCell<Range<u64>>,
    pub(super) bitmaps: BitmapList,
    pub(super) frees: Frees,
    pub(super) users: Users,
    /// Guest ranges whose mapping is being changed.
    pub(super) guests: RangeLock,
    /// Held while an L2 table is made.
    pub(super) tables: Mutex<()>,
    /// Held while room for compressed data is looked for.
    pub(super) packing: Mutex<()>,
    pub(super) decompressed: Decompressed,
    /// Held while a checkpoint is written.
    pub(super) writing: Mutex<()>,
    pub(super) zeros: OnceCell<Buffer>,
    /// Whether many allocated clusters take no space in the file, once someone asked.
    pub(super) unwritten: Cell<Option<bool>>,
}

impl Qcow2 {
    /// What unallocated clusters read as, if not zeros.
    pub(super) fn backing(&self) -> Option<Rc<Node>> {
        self.backing.borrow().clone()
    }

    /// Whether there is a backing file.
    pub(super) fn has_backing(&self) -> bool {
        self.backing.borrow().is_some()
    }

    /// Reads through another node from now on, which shows the same.
    pub(super) fn replace_backing(&self, backing: Rc<Node>) {
        self.backing.replace(Some(backing));
    }

    /// Whether the image may be changed.
    pub(super) fn is_writable(&self) -> bool {
        matches!(self.access.get(), Access::Write | Access::Repair)
    }

    /// `len` bytes of zeros, at most a cluster. Nobody writes to them.
    pub(super) fn zeros(&self, len: u64) -> Iov {
        let buffer = self.zeros.get_or_init(|| Buffer::new(self.geometry.cluster_size() as usize));
        buffer.iov(len as usize)
    }

    /// Makes the caches as large as a disk of `size` bytes needs them.
    pub(super) fn size_caches(&self, size: u64) {
        let Capacities { slices, blocks } = self.caches.capacities(self.geometry, size);
        self.l2.set_capacity(slices);
        self.refcounts.blocks.set_capacity(blocks);
    }

    /// Drops metadata that was not used for a whole interval. Called where a look at the clock costs nothing in
    /// proportion: before metadata is read from the file, and with each flush.
    pub(super) fn drop_unused_if_due(&self) {
        if self.cleaning.is_due(Instant::now()) {
            self.drop_unused();
        }
    }

    /// Drops metadata that was not used since the last call.
    pub(super) fn drop_unused(&self) {
        self.l2.drop_unused();
        self.refcounts.blocks.drop_unused();
    }
}

#[async_trait(?Send)]
impl Driver for Rc<Qcow2> {
    fn format_name(&self) -> &'static str {
        "qcow2"
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        let data = self.data_file.as_ref().and_then(|data| data.node.as_ref());
        let data = data.map(|node| (ChildRole::Data, node.clone()));
        let backing = self.backing().map(|node| (ChildRole::Backing, node));
        std::iter::once((ChildRole::File, self.file.clone())).chain(data).chain(backing).collect()
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.sector_alignment(),
            memory_alignment: 1,
            max_transfer: MAX_TRANSFER,
            growable: false,
        }
    }

    fn read_only(&self) -> bool {
        !self.is_writable()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.check_key()?;
        let _user = self.users.enter();
        self.read_view(&self.active, GuestOffset(offset), into).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        if self.must_prepare() {
            self.judged(Box::pin(self.prepare_change()).await).await?;
        }
        self.bitmaps.note(offset, from.len() as u64);
        let _user = self.users.enter();
        self.judged(self.write_disk(GuestOffset(offset), from).await).await
    }

    async fn write_compressed(&self, offset: u64, from: &Iov) -> Result<()> {
        if self.must_prepare() {
            self.judged(self.prepare_change().await).await?;
        }
        self.bitmaps.note(offset, from.len() as u64);
        let _user = self.users.enter();
        self.judged(self.write_packed(GuestOffset(offset), from).await).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.zero_disk(GuestOffset(offset), len, may_unmap).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.discard_disk(GuestOffset(offset), len).await
    }

    async fn flush(&self) -> Result<()> {
        self.drop_unused_if_due();
        self.flush_all().await?;
        // What was lent and is free now can leave the page cache.
        self.return_space_later();
        Ok(())
    }

    async fn begin_flush(&self) {
        self.file.driver().begin_flush().await;
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let _user = self.users.enter();
        self.status(&self.active, GuestOffset(offset), len).await
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.judged(self.resize(size, preallocation).await).await
    }

    async fn close(&self) -> Result<()> {
        let closed = self.close_all().await;
        self.forget_withheld().await;
        closed
    }

    fn specifics(&self) -> Option<Specifics> {
        let header = self.header.borrow();
        Some(Specifics::Qcow2(Qcow2Specifics {
            compat: if header.is_v3() { "1.1" } else { "0.10" },
            compression_type: self.codec.name(),
            lazy_refcounts: header.compatible & LAZY_REFCOUNTS != 0,
            refcount_bits: header.geometry.refcount_bits(),
            corrupt: header.incompatible & CORRUPT != 0,
            dirty: header.incompatible & DIRTY != 0,
            extended_l2: self.geometry.extended_l2,
            encryption: self.encryption.as_ref().and_then(Encryption::facts),
            data_file: header.data_file(),
            data_file_raw: self.data_file.as_ref().map(|data| data.raw),
            cluster_size: self.geometry.cluster_size(),
            backing_file: header.backing_file.clone(),
            backing_format: header.backing_format(),
            bitmaps: self.bitmaps.infos(),
            snapshots: self.snapshots.borrow().iter().map(|snapshot| snapshot.info.clone()).collect(),
        }))
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(&**self)
    }

    fn clusters(&self) -> Option<Clusters> {
        let (size, allocated) = (self.geometry.cluster_size(), self.geometry.subcluster_size());
        Some(Clusters { size, allocated, compressed: true })
    }

    fn lasting_place(&self, offset: u64, len: u64) -> Option<Place> {
        self.lend_view(&self.active, GuestOffset(offset), len)
    }

    fn written_elsewhere(&self, _end: u64) {
        self.file.written_elsewhere(0);
    }

    fn filling(&self) -> Option<&dyn Filling> {
        self.can_be_filled().then_some(&**self as &dyn Filling)
    }

    fn overlay(&self) -> Option<&dyn Overlay> {
        Some(&**self)
    }

    fn amender(&self) -> Option<&dyn Amend> {
        Some(&**self)
    }

    fn checker(&self) -> Option<&dyn Check> {
        Some(&**self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn vm_state(&self) -> Option<&dyn VmState> {
        Some(&**self)
    }

    fn key_slots(&self) -> Option<&dyn KeySlotChanges> {
        Some(&**self)
    }
}
