//! Changing the version, the width of refcounts and the features of an image that exists.
//!
//! Order on disk:
//!
//! 1. what the image shows stays as it is, but it gets ready: for version 2, zero clusters go
//!    ([`super::downgrade`]); for another width, all refcounts are written anew to clusters that nothing refers to
//!    ([`super::refcount_width`]);
//! 2. everything is flushed, as when the image is closed: no dirty bit, no bitmap in use;
//! 3. one change of the header switches version, features, and place and width of the refcounts. A flush.
//!
//! A new size comes before all that. Where the version goes up too, it does so first, by a switch of its own: whoever
//! dies in between leaves an image of version 3 with the old size.
//!
//! From then on this driver knows an image that is no more: it takes no changes until it is opened again.

use super::codec::Codec;
use super::driver::{Access, Qcow2};
use super::extensions::{self, DATA_FILE, Extension, FEATURE_NAMES};
use super::header::{COMPRESSION_TYPE, DATA_FILE_RAW, DIRTY, Header, LAZY_REFCOUNTS};
use crate::block::graph::amend::{Amend, AmendOptions};
use crate::block::options::Preallocation;
use crate::block::{Error, Kind, Result};
use async_trait::async_trait;

#[async_trait(?Send)]
impl Amend for Qcow2 {
    async fn amend(&self, options: &AmendOptions) -> Result<()> {
        let old = Target::of(&self.header.borrow());
        let target = Target::new(&self.header.borrow(), options)?;
        let size = options.size.unwrap_or(self.size.get());
        self.check_target(&target, size)?;
        if target.version < 3 && self.codec != Codec::Deflate && self.has_compressed_clusters().await? {
            let what =
                "Cannot downgrade an image with zstd compression type and existing compressed clusters";
            return Err(Error::new(Kind::Unsupported, what).remedy("convert it with: -o compat=v2"));
        }
        if size != self.size.get() {
            self.amend_size(size, target.version).await?;
        }
        if target == old {
            return Ok(());
        }
        self.judged(self.switch_target(target).await).await
    }
}

/// What of the header can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    version: u32,
    refcount_order: u32,
    lazy_refcounts: bool,
    data_file: Option<String>,
    data_file_raw: bool,
}

impl Target {
    /// As the image is.
    fn of(header: &Header) -> Target {
        Target {
            version: header.version,
            refcount_order: header.geometry.refcount_order,
            lazy_refcounts: header.compatible & LAZY_REFCOUNTS != 0,
            data_file: header.data_file(),
            data_file_raw: header.autoclear & DATA_FILE_RAW != 0,
        }
    }

    /// As the options want it.
    fn new(header: &Header, options: &AmendOptions) -> Result<Target> {
        let mut target = Target::of(header);
        check_backing(header, options)?;
        if let Some(compat) = &options.compat {
            target.version = version(compat)?;
        }
        if let Some(bits) = options.refcount_bits {
            target.refcount_order = refcount_order(bits)?;
        }
        if let Some(name) = &options.data_file {
            target.data_file = Some(name.clone());
        }
        target.data_file_raw = options.data_file_raw.unwrap_or(target.data_file_raw);
        // Late refcounts go with the version that has them, unless they are asked for.
        target.lazy_refcounts = options.lazy_refcounts.unwrap_or(target.lazy_refcounts && target.version > 2);
        target.check_version(options)?;
        Ok(target)
    }

    fn check_version(&self, options: &AmendOptions) -> Result<()> {
        if self.version > 2 {
            return Ok(());
        }
        if self.lazy_refcounts {
            return Err(Error::invalid_argument(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        match (self.refcount_order, options.refcount_bits) {
            (4, _) => Ok(()),
            (_, Some(_)) => Err(Error::invalid_argument(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            )),
            (_, None) => Err(Error::invalid_argument("compat=0.10 requires refcount_bits=16")),
        }
    }

    /// Makes a header be so.
    fn enter(&self, header: &mut Header) {
        if header.version != self.version {
            header.extensions.retain(|extension| extension.magic != FEATURE_NAMES);
            if self.version > 2 && extensions::has_room_for_names(header.geometry) {
                header.extensions.push(extensions::feature_name_table());
            }
            header.unknown_fields.clear();
        }
        if self.version < 3 {
            header.compression_type = Codec::Deflate.to_byte();
            header.incompatible &= !COMPRESSION_TYPE;
        }
        header.version = self.version;
        header.compatible &= !LAZY_REFCOUNTS;
        if self.lazy_refcounts {
            header.compatible |= LAZY_REFCOUNTS;
        }
        if !self.data_file_raw {
            header.autoclear &= !DATA_FILE_RAW;
        }
        if self.data_file != header.data_file() {
            header.extensions.retain(|extension| extension.magic != DATA_FILE);
            header.extensions.extend(self.data_file.iter().map(|name| Extension::text(DATA_FILE, name)));
        }
    }
}

impl Qcow2 {
    /// Refuses what this image, with a disk of `size` bytes, cannot become.
    fn check_target(&self, target: &Target, size: u64) -> Result<()> {
        let header = self.header.borrow();
        if target.data_file != header.data_file() && !self.has_data_file() {
            return Err(Error::invalid_argument(
                "data-file can only be set for images that use an external data file",
            ));
        }
        if target.data_file_raw && header.autoclear & DATA_FILE_RAW == 0 {
            return Err(Error::invalid_argument("data-file-raw cannot be set on existing images"));
        }
        if target.version < header.version { self.check_downgrade(&header, size) } else { Ok(()) }
    }

    fn check_downgrade(&self, header: &Header, size: u64) -> Result<()> {
        let refuse = |what: &str| Err(Error::new(Kind::Unsupported, what));
        if self.has_data_file() {
            return refuse("Cannot downgrade an image with a data file");
        }
        let features = header.incompatible & !(DIRTY | COMPRESSION_TYPE);
        if features != 0 {
            return refuse(&format!(
                "Cannot downgrade an image with incompatible features {features:#x} set"
            ));
        }
        let fits = |disk_size, vm_state_size| disk_size == size && vm_state_size <= u64::from(u32::MAX);
        if !self.snapshots.borrow().iter().all(|of| fits(of.disk_size, of.info.vm_state_size)) {
            return refuse("Internal snapshots prevent downgrade of image");
        }
        if !self.bitmaps.is_empty() {
            let error = Error::new(Kind::Unsupported, "Cannot downgrade an image with persistent bitmaps");
            return Err(error.remedy("remove them with: qemu-img bitmap --remove"));
        }
        Ok(())
    }

    /// Changes the size, in version 3 if that is wanted: in version 2 the disks of snapshots have no size of their own.
    async fn amend_size(&self, size: u64, version: u32) -> Result<()> {
        if version > 2 && !self.v3.get() {
            self.check_size(size)?;
            self.judged(self.upgrade().await).await?;
        }
        self.judged(self.resize(size, Preallocation::Off).await).await
    }

    /// Switches to version 3 and nothing else, and goes on with an image of that version.
    async fn upgrade(&self) -> Result<()> {
        self.prepare_change().await?;
        self.get_ready_for_version_3().await?;
        let target = Target { version: 3, ..Target::of(&self.header.borrow()) };
        self.unsettled.set(true);
        self.change_header(|header| target.enter(header)).await?;
        self.v3.set(true);
        self.file.flush().await?;
        self.unsettled.set(false);
        self.engine.tell_work(2, 2);
        Ok(())
    }

    /// Gives the snapshots what they have in version 3. That is the first half of the work that is told.
    async fn get_ready_for_version_3(&self) -> Result<()> {
        self.engine.tell_work(0, 2);
        self.complete_snapshots().await?;
        self.engine.tell_work(1, 2);
        Ok(())
    }

    async fn switch_target(&self, target: Target) -> Result<()> {
        if !self.is_writable() {
            return Err(Error::new(Kind::ReadOnly, "the image is read-only"));
        }
        self.clear_autoclear().await?;
        if target.version < 3 && self.v3.get() {
            // They change where they stand, in snapshots too.
            let checks = self.overlap.want_inactive_l2(false);
            let done = self.expand_zero_clusters().await;
            let done = if done.is_ok() { self.settle().await } else { done };
            self.overlap.want_inactive_l2(checks);
            done?;
        }
        let upgrades = target.version > 2 && !self.v3.get();
        if upgrades {
            self.get_ready_for_version_3().await?;
        }
        self.close_all().await?;
        let new = match target.refcount_order == self.geometry.refcount_order {
            true => None,
            false => Some(self.write_refcounts_anew(target.refcount_order).await?),
        };
        let switch = |header: &mut Header| {
            target.enter(header);
            if let Some(new) = &new {
                new.enter(header);
            }
        };
        self.change_header(switch).await?;
        if upgrades {
            self.engine.tell_work(2, 2);
        }
        if let Some(new) = new {
            new.adopt(self);
        }
        self.access.set(Access::Ended);
        self.file.flush().await
    }
}

fn check_backing(header: &Header, options: &AmendOptions) -> Result<()> {
    let same_file = options.backing_file.is_none() || options.backing_file == header.backing_file;
    let same_format = options.backing_format.is_none() || options.backing_format == header.backing_format();
    match same_file && same_format {
        true => Ok(()),
        false => Err(Error::invalid_argument(
            "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.",
        )),
    }
}

fn version(compat: &str) -> Result<u32> {
    match compat {
        "0.10" | "v2" => Ok(2),
        "1.1" | "v3" => Ok(3),
        other => Err(Error::invalid_argument(format!("Unknown compatibility level {other}"))),
    }
}

fn refcount_order(bits: u64) -> Result<u32> {
    match bits.is_power_of_two() && bits <= 64 {
        true => Ok(bits.trailing_zeros()),
        false => {
            Err(Error::invalid_argument("Refcount width must be a power of two and may not exceed 64 bits"))
        }
    }
}
