//! The image as a whole: what is read when it is opened, and the driver that serves it.

use super::alloc::{Frees, Users};
use super::bitmap::BitmapList;
use super::cache::Cache;
use super::cache_options::{CacheOptions, Capacities, Cleaning};
use super::codec::Codec;
use super::compressed::Decompressed;
use super::data::DataFile;
use super::discard_options::DiscardOptions;
use super::encrypt::{Encryption, Unlock, luks_place};
use super::geometry::{Geometry, GuestOffset, HostOffset, Slices};
use super::header::{CORRUPT, DATA_FILE_RAW, DIRTY, EXTERNAL_DATA, Header, LAZY_REFCOUNTS};
use super::image_options::ImageOptions;
use super::mapping::View;
use super::overlap::{Metadata, Overlap};
use super::refcount::Refcounts;
use super::snapshot::{self, Snapshot};
use crate::block::aio::Engine;
use crate::block::graph::amend::Amend;
use crate::block::graph::bitmaps::Bitmaps;
use crate::block::graph::driver::{Check, KeySlotChanges, Qcow2Specifics, Repair, Specifics};
use crate::block::graph::overlay::Overlay;
use crate::block::graph::snapshots::{Snapshots, VmState};
use crate::block::graph::{BlockStatus, ChildRole, Driver, Event, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::range_lock::RangeLock;
use crate::block::{Buffer, Error, Iov, Kind, Result};
use async_lock::Mutex;
use async_trait::async_trait;
use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

/// What to do about a damaged image.
pub(super) const REPAIR: &str = "repair it with: qemu-img check -r all";
/// Longest read or write, in bytes.
const MAX_TRANSFER: u32 = 64 << 20;

/// An image whose metadata was read and found valid, before its backing file is known.
pub struct Image {
    header: Header,
    file: Rc<Node>,
    active: View,
    refcounts: Refcounts,
    overlap: Rc<Overlap>,
    snapshots: Vec<Snapshot>,
    snapshot_table: Range<u64>,
    encryption: Option<Encryption>,
    bitmaps: BitmapList,
    /// Damage is no reason to refuse it: it is to be checked and nothing else.
    for_check: bool,
    /// Refcounts may be written late.
    lazy_refcounts: bool,
    options: ImageOptions,
    data: Option<Rc<Node>>,
}

impl Image {
    /// Reads and checks header, L1 table, refcount table, snapshot table and bitmap directory.
    ///
    /// # Errors
    /// [`Kind::InvalidFormat`] for what is no qcow2 image or breaks a rule, [`Kind::Unsupported`] for features
    /// that this build does not have, by name.
    pub async fn read(file: &Rc<Node>) -> Result<Image> {
        let header = Header::read(file).await?;
        header.check_has_refcounts()?;
        let mut image = Image::read_tables(file, header).await?;
        (image.snapshots, image.snapshot_table) = snapshot::read(file, &image.header).await?;
        image.note_snapshots();
        Ok(image)
    }

    /// As [`Image::read`], for an image that is to be checked or repaired: it may be marked as corrupt, or lack its
    /// refcounts, and its snapshot table is not read before the check does it.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub async fn read_for_check(file: &Rc<Node>) -> Result<Image> {
        let image = Image::read_tables(file, Header::read(file).await?).await?;
        Ok(Image { for_check: true, lazy_refcounts: false, ..image })
    }

    /// The image as it must be before it is written: refcounts that a writer left behind (the dirty bit) are made
    /// right first. An encrypted image is left as it is until somebody has its key.
    ///
    /// # Errors
    /// As [`Image::read`], and [`Kind::Corrupt`] where the refcounts cannot be made right.
    pub async fn made_right(mut self, engine: &Rc<Engine>) -> Result<Image> {
        let locked = self.encryption.as_ref().is_some_and(Encryption::is_locked);
        if self.header.incompatible & (DIRTY | CORRUPT) != DIRTY || locked {
            return Ok(self);
        }
        let (file, encryption) = (self.file.clone(), self.encryption.take());
        let unclean =
            Image { for_check: true, lazy_refcounts: false, ..self }.into_qcow2(engine, None, false)?;
        let report = unclean.repair(Repair::All).await?;
        match report.gave_up {
            None if report.check_errors == 0 => Ok(Image { encryption, ..Image::read(&file).await? }),
            Some(error) => Err(error.context("Could not repair dirty image").remedy(REPAIR)),
            None => Err(Error::new(Kind::Corrupt, "Could not repair dirty image").remedy(REPAIR)),
        }
    }

    async fn read_tables(file: &Rc<Node>, header: Header) -> Result<Image> {
        let overlap = Rc::new(Overlap::new(header.geometry));
        let active = View::read(file, header.l1_offset, header.l1_entries, header.size).await?;
        let refcounts = Refcounts::read(file, &header, &overlap).await?;
        let bitmaps = BitmapList::read(file, &header).await?;
        let geometry = header.geometry;
        note_metadata(&overlap, geometry, &active, &refcounts, &[], 0..0);
        overlap.set_range(Metadata::BitmapDirectory, bitmaps.place());
        if let Some(place) = luks_place(&header)? {
            overlap.set_range(Metadata::EncryptionHeader, place);
        }
        let (file, encryption) = (file.clone(), Encryption::locked(&header)?);
        let lazy_refcounts = header.is_v3() && header.compatible & LAZY_REFCOUNTS != 0;
        Ok(Image {
            header,
            file,
            active,
            refcounts,
            overlap,
            snapshots: Vec::new(),
            snapshot_table: 0..0,
            encryption,
            bitmaps,
            for_check: false,
            lazy_refcounts,
            options: ImageOptions::default(),
            data: None,
        })
    }

    /// Unlocks an encrypted image; without this its data can neither be read nor written.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words where the image is not as `unlock` has it, or no key slot has
    /// that passphrase.
    pub async fn unlock(&mut self, engine: &Rc<Engine>, unlock: &Unlock) -> Result<()> {
        self.encryption = Encryption::open(engine, &self.file, &self.header, unlock).await?;
        Ok(())
    }

    /// The backing file's name, as the header has it.
    pub fn backing_file(&self) -> Option<&str> {
        self.header.backing_file.as_deref()
    }

    /// The backing file's format, where the header has it.
    pub fn backing_format(&self) -> Option<String> {
        self.header.backing_format()
    }

    /// Says whether refcounts may be written late, whatever the header says of it.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for an image that has no dirty bit to tell of it.
    pub fn set_lazy_refcounts(&mut self, lazy: bool) -> Result<()> {
        if lazy && !self.header.is_v3() {
            let what = "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level";
            return Err(Error::new(Kind::InvalidArgument, what).remedy("leave out lazy-refcounts=on"));
        }
        self.lazy_refcounts = lazy;
        Ok(())
    }

    /// Says what the user decides of caches, discarded space and checks.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words for options that contradict one another or are none for this image.
    pub fn set_options(&mut self, options: ImageOptions) -> Result<()> {
        options.caches.check(self.header.geometry, self.header.size)?;
        options.discards.check(self.header.is_v3())?;
        self.options = options;
        Ok(())
    }

    /// Whether the guest's data is in a file of its own, which [`Image::set_data_file`] takes.
    pub fn needs_data_file(&self) -> bool {
        self.header.incompatible & EXTERNAL_DATA != 0
    }

    /// The data file's name, where the header has it.
    pub fn data_file(&self) -> Option<String> {
        self.header.data_file()
    }

    /// The file that the guest's data is in. Without it nothing but metadata can be read.
    pub fn set_data_file(&mut self, data: Rc<Node>) {
        self.data = Some(data);
    }

    /// The driver of the image over `backing`.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] and [`Kind::Unsupported`] where the image may only be read and `read_only` is false.
    pub fn into_driver(
        self,
        engine: &Rc<Engine>,
        backing: Option<Rc<Node>>,
        read_only: bool,
    ) -> Result<Box<dyn Driver>> {
        Ok(Box::new(self.into_qcow2(engine, backing, read_only)?))
    }

    pub(super) fn into_qcow2(
        self,
        engine: &Rc<Engine>,
        backing: Option<Rc<Node>>,
        read_only: bool,
    ) -> Result<Rc<Qcow2>> {
        if !read_only && !self.for_check {
            self.check_writable()?;
        }
        let geometry = self.header.geometry;
        let ImageOptions { caches, discards, checks_inactive_l2 } = self.options;
        self.overlap.want_inactive_l2(checks_inactive_l2 && !self.for_check);
        let slices = caches.slices(geometry);
        let capacities = caches.capacities(geometry, self.header.size);
        self.refcounts.blocks.set_capacity(capacities.blocks);
        let locked = self.encryption.as_ref().is_some_and(Encryption::is_locked);
        let external = self.header.incompatible & EXTERNAL_DATA != 0;
        let raw = self.header.upheld() & DATA_FILE_RAW != 0;
        Ok(Rc::new(Qcow2 {
            engine: engine.clone(),
            file: self.file,
            backing,
            geometry,
            v3: self.header.is_v3(),
            codec: self.header.codec(),
            size: Cell::new(self.header.size),
            read_only: Cell::new(read_only || locked && !self.for_check),
            opened_read_only: read_only,
            for_check: self.for_check,
            lazy_refcounts: self.lazy_refcounts,
            autoclear: Cell::new(self.header.autoclear & !self.header.upheld()),
            unsettled: Cell::new(false),
            owed_header: RefCell::default(),
            data_file: external.then_some(DataFile { node: self.data, raw }),
            header: RefCell::new(self.header),
            encryption: self.encryption,
            switching: Mutex::new(()),
            active: self.active,
            slices,
            l2: Cache::new(slices.size(), capacities.slices, Event::L2Load),
            cleaning: Cleaning::new(caches.interval(), Instant::now()),
            caches,
            discards,
            refcounts: self.refcounts,
            overlap: self.overlap,
            snapshots: RefCell::new(self.snapshots),
            open_views: RefCell::default(),
            snapshot_table: RefCell::new(self.snapshot_table),
            bitmaps: self.bitmaps,
            frees: Frees::default(),
            users: Users::default(),
            guests: RangeLock::default(),
            tables: Mutex::new(()),
            packing: Mutex::new(()),
            decompressed: Decompressed::default(),
            writing: Mutex::new(()),
            zeros: OnceCell::new(),
            unwritten: Cell::new(None),
        }))
    }

    fn check_writable(&self) -> Result<()> {
        if self.header.incompatible & CORRUPT != 0 {
            let error = Error::new(Kind::Corrupt, "Image is corrupt; cannot be opened read/write");
            return Err(error.remedy(REPAIR));
        }
        if self.refcounts.has_shared_blocks() {
            let what = "Two refcount table entries name the same refcount block; cannot be opened read/write";
            return Err(Error::new(Kind::Corrupt, what).remedy(REPAIR));
        }
        Ok(())
    }

    fn note_snapshots(&self) {
        self.overlap.set_range(Metadata::SnapshotTable, self.snapshot_table.clone());
        self.overlap.set_inactive_l1(self.snapshots.iter().map(Snapshot::l1_range));
    }
}

/// Tells the overlap checks where the tables are, as read or as switched to. Entries that are not valid are met
/// when they are used.
pub(super) fn note_metadata(
    overlap: &Overlap,
    geometry: Geometry,
    active: &View,
    refcounts: &Refcounts,
    snapshots: &[Snapshot],
    snapshot_table: Range<u64>,
) {
    overlap.forget_tables();
    overlap.set_range(Metadata::ActiveL1, active.range());
    overlap.set_range(Metadata::RefcountTable, refcounts.table_range());
    overlap.set_range(Metadata::SnapshotTable, snapshot_table);
    for offset in refcounts.block_offsets() {
        overlap.add(Metadata::RefcountBlock, geometry.cluster_of(offset));
    }
    active.each_table(geometry, |offset| overlap.add(Metadata::ActiveL2, geometry.cluster_of(offset)));
    overlap.set_inactive_l1(snapshots.iter().map(Snapshot::l1_range));
}

/// An open image.
pub(super) struct Qcow2 {
    pub(super) engine: Rc<Engine>,
    pub(super) file: Rc<Node>,
    pub(super) backing: Option<Rc<Node>>,
    pub(super) geometry: Geometry,
    /// Version 3: there are zero clusters and feature bits.
    pub(super) v3: bool,
    /// How clusters are compressed.
    pub(super) codec: Codec,
    pub(super) size: Cell<u64>,
    pub(super) read_only: Cell<bool>,
    pub(super) opened_read_only: bool,
    /// It is checked or repaired; nobody else uses it.
    pub(super) for_check: bool,
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
    caches: CacheOptions,
    /// Which space goes back to the host.
    pub(super) discards: DiscardOptions,
    cleaning: Cleaning,
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
    zeros: OnceCell<Buffer>,
    /// Whether many allocated clusters take no space in the file, once someone asked.
    pub(super) unwritten: Cell<Option<bool>>,
}

impl Qcow2 {
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
        let backing = self.backing.as_ref().map(|node| (ChildRole::Backing, node.clone()));
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
        self.read_only.get()
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
        self.flush_all().await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let _user = self.users.enter();
        self.status(&self.active, GuestOffset(offset), len).await
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.judged(self.resize(size, preallocation).await).await
    }

    async fn close(&self) -> Result<()> {
        self.close_all().await
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
