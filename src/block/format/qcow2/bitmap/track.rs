//! Bitmaps while the disk changes: marked as in use before, stored after.

use super::super::driver::Qcow2;
use super::super::geometry::HostOffset;
use super::super::overlap::Metadata;
use super::directory;
use super::list::Bitmap;
use super::store::Room;
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

impl Qcow2 {
    /// Before the disk changes: sees to it that all enabled bitmaps are loaded and marked as in use.
    pub(in super::super) async fn track_bitmaps(&self) -> Result<()> {
        let _turn = self.bitmaps.changing.lock().await;
        if !self.bitmaps.must_track() {
            return Ok(());
        }
        self.use_bitmaps(|bitmap| bitmap.entry.enabled).await
    }

    /// Loads the bits of the bitmaps that `wanted` names, and marks them as in use, durably. One that cannot be
    /// read is in use from now on, with nobody to have its bits.
    async fn use_bitmaps(&self, wanted: impl Fn(&Bitmap) -> bool) -> Result<()> {
        let mut entries: Vec<_> = self.bitmaps.get().iter().map(|bitmap| bitmap.entry.clone()).collect();
        for (index, entry) in entries.iter_mut().enumerate() {
            let wanted = !entry.in_use && wanted(&self.bitmaps.get()[index]);
            if wanted {
                entry.in_use = true;
                // The error is what `list` says of it: inconsistent.
                let _ = self.bits_of(index).await;
            }
        }
        let (place, bytes) = (self.bitmaps.place(), directory::encode(entries.iter()));
        if bytes.len() as u64 != place.end - place.start {
            return Err(Error::new(Kind::Corrupt, "Broken bitmap directory"));
        }
        // In place: until the last of it is written nothing has changed that a bitmap would have to know.
        self.overlap.check(HostOffset(place.start), bytes.len() as u64, Some(Metadata::BitmapDirectory))?;
        self.file.write_bytes(place.start, &bytes).await?;
        self.file.flush().await?;
        self.bitmaps
            .change(|list| list.iter_mut().zip(entries).for_each(|(bitmap, entry)| bitmap.entry = entry));
        Ok(())
    }

    /// Writes all bitmaps that are in use by us to the file, where they are valid again. The next change of the disk
    /// will mark them anew. No request is in flight.
    pub(in super::super) async fn store_bitmaps(&self) -> Result<()> {
        let _turn = self.bitmaps.changing.lock().await;
        if !self.bitmaps.get().iter().any(Bitmap::is_tracked) {
            return Ok(());
        }
        let stored = self.judged(self.store_tracked().await).await;
        stored.map_err(|error| error.context("Lost persistent bitmaps"))
    }

    async fn store_tracked(&self) -> Result<()> {
        let (mut list, mut room) = (self.bitmaps.get().clone(), Room::default());
        for bitmap in list.iter_mut().filter(|bitmap| bitmap.is_tracked()) {
            if let Some(bits) = bitmap.bits.clone().filter(|_| bitmap.changed) {
                bitmap.entry.table = self.write_bits(&bits, &mut room).await?;
            }
            (bitmap.entry.in_use, bitmap.changed) = (false, false);
        }
        self.switch_bitmaps(list, room).await
    }

    /// Before the disk gets `size` bytes: all bitmaps are in use until they are stored with the new size.
    ///
    /// # Errors
    /// When one is inconsistent, cannot be read or would be too large for the format.
    pub(in super::super) async fn begin_bitmap_resize(&self, size: u64) -> Result<()> {
        let _turn = self.bitmaps.changing.lock().await;
        if self.bitmaps.is_empty() {
            return Ok(());
        }
        self.bitmaps.check_all_usable()?;
        self.bitmaps.check_all_fit(size)?;
        let count = self.bitmaps.get().len();
        for index in 0..count {
            self.bits_of(index).await?;
        }
        self.use_bitmaps(|_| true).await
    }

    /// The disk has `size` bytes now. What is added is clean.
    pub(in super::super) fn resize_bitmaps(&self, size: u64) {
        self.bitmaps.change(|list| {
            for bitmap in list {
                if let Some(bits) = &mut bitmap.bits {
                    Rc::make_mut(bits).resize(size);
                    bitmap.changed = true;
                }
            }
        });
    }
}
