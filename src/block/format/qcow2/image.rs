//! An image that is being opened: its metadata, read and found valid, before its backing file is known; and how it
//! becomes a driver.

use super::alloc::{Frees, Users};
use super::bitmap::BitmapList;
use super::cache::Cache;
use super::cache_options::Cleaning;
use super::compressed::Decompressed;
use super::data::DataFile;
use super::driver::{Access, Qcow2};
use super::encrypt::{Encryption, Unlock, luks_place};
use super::geometry::Geometry;
use super::header::{CORRUPT, DATA_FILE_RAW, DIRTY, EXTERNAL_DATA, Header, LAZY_REFCOUNTS};
use super::image_options::ImageOptions;
use super::mapping::View;
use super::overlap::{Metadata, Overlap};
use super::refcount::Refcounts;
use super::snapshot::{self, Snapshot};
use crate::block::aio::Engine;
use crate::block::graph::driver::{Check, Repair};
use crate::block::graph::{Driver, Event, Node};
use crate::block::range_lock::RangeLock;
use crate::block::{Error, Kind, Result};
use async_lock::Mutex;
use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

/// What to do about a damaged image.
pub(super) const REPAIR: &str = "repair it with: qemu-img check -r all";

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
            backing: RefCell::new(backing),
            geometry,
            v3: Cell::new(self.header.is_v3()),
            codec: self.header.codec(),
            size: Cell::new(self.header.size),
            access: Cell::new(match (read_only, self.for_check) {
                (true, _) => Access::Read,
                (false, true) => Access::Repair,
                (false, false) if locked => Access::Read,
                (false, false) => Access::Write,
            }),
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
