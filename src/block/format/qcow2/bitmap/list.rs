//! The bitmaps of an open image.

use super::super::header::Header;
use super::bits::Bits;
use super::directory::{self, Entry, Table};
use crate::block::graph::Node;
use crate::block::graph::bitmaps::BitmapInfo;
use crate::block::{Error, Kind, Result};
use async_lock::Mutex;
use std::cell::{Cell, Ref, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// Bytes that all bitmaps of an image may take when they are read, whatever it says. At 64 KiB of granularity, the
/// default, scattered writes to a disk of 90 TiB take as much.
const ROOM: u64 = 192 << 20;

/// A bitmap.
#[derive(Clone)]
pub(super) struct Bitmap {
    /// As it is in the directory on disk.
    pub(super) entry: Entry,
    /// The bits, if they are known. What is not in use on disk has the same there.
    pub(super) bits: Option<Rc<Bits>>,
    /// The bits are no longer what its table on disk says.
    pub(super) changed: bool,
}

impl Bitmap {
    /// In use, and nobody has its bits.
    pub(super) fn is_inconsistent(&self) -> bool {
        self.entry.in_use && self.bits.is_none()
    }

    /// In use by us.
    pub(super) fn is_tracked(&self) -> bool {
        self.entry.in_use && self.bits.is_some()
    }

    fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.entry.name.to_string(),
            granularity: 1 << self.entry.granularity_bits,
            enabled: self.entry.enabled,
            in_use: self.entry.in_use,
            inconsistent: self.is_inconsistent(),
        }
    }
}

/// All bitmaps, in the order of the directory.
pub(in super::super) struct BitmapList {
    list: RefCell<Vec<Bitmap>>,
    /// Where the directory stands.
    place: RefCell<Range<u64>>,
    /// Held while the directory is changed or bits are loaded.
    pub(super) changing: Mutex<()>,
    /// An enabled bitmap is not in use yet: the next change of the disk must wait for that.
    unmarked: Cell<bool>,
    /// Changes of the disk must be noted.
    tracking: Cell<bool>,
    /// Clusters of tables and bits that were read so far. No two bitmaps share any, so the file bounds it.
    pub(super) loaded: Cell<u64>,
    /// Bytes of memory that bitmaps may still fill when they are read.
    room: Cell<u64>,
    /// Tables that were given up and could not be read; they and their clusters of bits stay counted.
    pub(super) unread: RefCell<Vec<Table>>,
}

impl BitmapList {
    /// Reads the directory, if the header says that it is valid.
    pub(in super::super) async fn read(file: &Node, header: &Header) -> Result<BitmapList> {
        let (entries, place) = directory::read(file, header).await?;
        // Names are in memory for good, and twice more when the directory is written.
        let room = ROOM.saturating_sub(3 * (place.end - place.start));
        let list = entries.into_iter().map(|entry| Bitmap { entry, bits: None, changed: false }).collect();
        let bitmaps = BitmapList {
            list: RefCell::new(list),
            place: RefCell::new(place),
            changing: Mutex::new(()),
            unmarked: Cell::new(false),
            tracking: Cell::new(false),
            loaded: Cell::new(0),
            room: Cell::new(room),
            unread: RefCell::default(),
        };
        bitmaps.update();
        Ok(bitmaps)
    }

    /// Whether there is none.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// The bytes of the file that the directory takes.
    pub(in super::super) fn place(&self) -> Range<u64> {
        self.place.borrow().clone()
    }

    /// The bytes of the file that the tables take; what stands in them is an offset of a cluster of bits, 0 or 1.
    pub(in super::super) fn tables(&self) -> Vec<Range<u64>> {
        self.list.borrow().iter().map(|bitmap| bitmap.entry.table.range()).collect()
    }

    /// What there is to know without reading them.
    pub(in super::super) fn infos(&self) -> Vec<BitmapInfo> {
        self.list.borrow().iter().map(Bitmap::info).collect()
    }

    /// Whether the next change of the disk has to wait until bitmaps are marked as in use.
    pub(in super::super) fn must_track(&self) -> bool {
        self.unmarked.get()
    }

    /// Notes that a range of the disk is about to change.
    pub(in super::super) fn note(&self, offset: u64, len: u64) {
        if self.tracking.get() {
            self.note_range(offset..offset + len);
        }
    }

    fn note_range(&self, range: Range<u64>) {
        let mut list = self.list.borrow_mut();
        for bitmap in list.iter_mut().filter(|bitmap| bitmap.entry.enabled && bitmap.entry.in_use) {
            if let Some(bits) = &mut bitmap.bits {
                Rc::make_mut(bits).set(range.clone());
                bitmap.changed = true;
            }
        }
    }

    pub(super) fn get(&self) -> Ref<'_, Vec<Bitmap>> {
        self.list.borrow()
    }

    /// Takes some of the memory that bitmaps may fill.
    ///
    /// # Errors
    /// [`Kind::TooLarge`] when that much is not left.
    pub(super) fn take_room(&self, bytes: u64) -> Result<()> {
        let left = self.room.get().checked_sub(bytes);
        let none = || Error::new(Kind::TooLarge, "the bitmaps of the image take too much memory");
        self.room.set(left.ok_or_else(none)?);
        Ok(())
    }

    /// The bits of a bitmap that is not in use are known now.
    pub(super) fn set_bits(&self, index: usize, bits: Rc<Bits>) {
        self.list.borrow_mut()[index].bits = Some(bits);
    }

    /// Changes bitmaps in memory.
    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<Bitmap>)) {
        change(&mut self.list.borrow_mut());
        self.update();
    }

    /// The directory is another one now. Returns the old bitmaps and where their directory was.
    pub(super) fn replace(&self, list: Vec<Bitmap>, place: Range<u64>) -> (Vec<Bitmap>, Range<u64>) {
        let old = (self.list.replace(list), self.place.replace(place));
        self.update();
        old
    }

    fn update(&self) {
        let list = self.list.borrow();
        let enabled = || list.iter().filter(|bitmap| bitmap.entry.enabled);
        self.unmarked.set(enabled().any(|bitmap| !bitmap.entry.in_use));
        self.tracking.set(enabled().any(Bitmap::is_tracked));
    }

    /// The place of a bitmap in the list.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(super) fn find(&self, name: &str) -> Result<usize> {
        let found = self.list.borrow().iter().position(|bitmap| *bitmap.entry.name == *name);
        found.ok_or_else(|| Error::new(Kind::InvalidArgument, format!("Dirty bitmap '{name}' not found")))
    }

    /// As [`BitmapList::find`], of a bitmap whose bits are known or can be.
    pub(super) fn find_usable(&self, name: &str) -> Result<usize> {
        let index = self.find(name)?;
        match self.list.borrow()[index].is_inconsistent() {
            true => Err(inconsistent(name)),
            false => Ok(index),
        }
    }

    /// Refuses what needs the bits of all bitmaps, if one is inconsistent.
    pub(super) fn check_all_usable(&self) -> Result<()> {
        match self.list.borrow().iter().find(|bitmap| bitmap.is_inconsistent()) {
            Some(bitmap) => Err(inconsistent(&bitmap.entry.name)),
            None => Ok(()),
        }
    }

    /// Refuses a size of the disk for which a bitmap could not be stored.
    pub(super) fn check_all_fit(&self, size: u64) -> Result<()> {
        let fits = |bitmap: &&Bitmap| directory::fits(size, bitmap.entry.granularity_bits);
        match self.list.borrow().iter().find(|bitmap| !fits(bitmap)) {
            Some(bitmap) => Err(Error::new(
                Kind::InvalidArgument,
                format!(
                    "Bitmap '{}' doesn't satisfy the constraints: {}",
                    bitmap.entry.name,
                    directory::TOO_LARGE
                ),
            )),
            None => Ok(()),
        }
    }
}

fn inconsistent(name: &str) -> Error {
    let hint = "Try block-dirty-bitmap-remove to delete this bitmap from disk";
    Error::new(Kind::InvalidArgument, format!("Bitmap '{name}' is inconsistent and cannot be used\n{hint}"))
}
