//! What users do with bitmaps. Each operation is one switch of the directory; where a bitmap is in use by us, a
//! change of its bits happens in memory and reaches the file with the others.

use super::super::driver::Qcow2;
use super::bits::Bits;
use super::directory::{self, Entry, GRANULARITY_BITS, MAX_BITMAPS, MAX_NAME};
use super::list::Bitmap;
use super::store::Room;
use crate::block::graph::bitmaps::{BitmapInfo, Bitmaps};
use crate::block::{Error, Kind, Result};
use crate::util::text;
use async_trait::async_trait;
use std::ops::Range;
use std::rc::Rc;

/// The granularity that a bitmap has if nobody says otherwise: the cluster size within these, in bytes.
const LEAST_DEFAULT: u64 = 4096;
const MOST_DEFAULT: u64 = 64 << 10;
/// How many ranges are read of another bitmap at once.
const MERGED_AT_ONCE: usize = 1024;

#[async_trait(?Send)]
impl Bitmaps for Qcow2 {
    fn list(&self) -> Vec<BitmapInfo> {
        self.bitmaps.infos()
    }

    fn have_room(&self) -> bool {
        self.v3.get()
    }

    fn tracked_size(&self) -> u64 {
        self.size.get()
    }

    async fn add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        self.judged(self.add_bitmap(name, granularity, enabled).await).await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.judged(self.remove_bitmap(name).await).await
    }

    async fn clear(&self, name: &str) -> Result<()> {
        self.judged(self.clear_bitmap(name).await).await
    }

    async fn set_enabled(&self, name: &str, enabled: bool) -> Result<()> {
        self.judged(self.enable_bitmap(name, enabled).await).await
    }

    async fn merge(&self, name: &str, source: &dyn Bitmaps, from: &str) -> Result<()> {
        let index = self.bitmaps.find_usable(name)?;
        let granularity_bits = self.bitmaps.get()[index].entry.granularity_bits;
        // Not within the turn: the source may be this image.
        let added = collect(source, from, self.size.get(), granularity_bits).await?;
        self.judged(self.add_bits(name, added).await).await
    }

    async fn dirty(&self, name: &str, from: u64, limit: usize) -> Result<Vec<Range<u64>>> {
        let _turn = self.bitmaps.changing.lock().await;
        let index = self.bitmaps.find_usable(name)?;
        Ok(self.bits_of(index).await?.dirty(from, limit))
    }
}

/// What is dirty in another bitmap, in granules of this one. Parts of it, so that a range list of a scattered
/// bitmap is never in memory.
async fn collect(source: &dyn Bitmaps, from: &str, size: u64, granularity_bits: u32) -> Result<Bits> {
    let mut bits = Bits::new(size, granularity_bits);
    let mut ranges = source.dirty(from, 0, MERGED_AT_ONCE).await?;
    let theirs = source.tracked_size();
    if theirs != size {
        let message = format!(
            "Bitmaps are of different sizes (destination size is {size}, source size is {theirs}) and can't be merged"
        );
        return Err(Error::new(Kind::InvalidArgument, message));
    }
    while let Some(end) = ranges.last().map(|range| range.end) {
        ranges.into_iter().for_each(|range| bits.set(range));
        ranges = source.dirty(from, end, MERGED_AT_ONCE).await?;
    }
    Ok(bits)
}

impl Qcow2 {
    async fn add_bitmap(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        let _turn = self.begin_edit().await?;
        let default = self.geometry.cluster_size().clamp(LEAST_DEFAULT, MOST_DEFAULT);
        let granularity_bits = self.check_new(name, granularity.unwrap_or(default))?;
        let bits = Bits::new(self.size.get(), granularity_bits);
        let (mut list, mut room) = (self.bitmaps.get().clone(), Room::default());
        let table = self.write_bits(&bits, &mut room).await?;
        let entry = Entry { name: name.into(), table, granularity_bits, in_use: false, enabled };
        list.push(Bitmap { entry, bits: Some(Rc::new(bits)), changed: false });
        self.switch_bitmaps(list, room).await
    }

    async fn remove_bitmap(&self, name: &str) -> Result<()> {
        let _turn = self.begin_edit().await?;
        let index = self.bitmaps.find(name)?;
        let mut list = self.bitmaps.get().clone();
        list.remove(index);
        self.switch_bitmaps(list, Room::default()).await
    }

    async fn clear_bitmap(&self, name: &str) -> Result<()> {
        let _turn = self.begin_edit().await?;
        let index = self.bitmaps.find_usable(name)?;
        let granularity_bits = self.bitmaps.get()[index].entry.granularity_bits;
        self.replace_bits(index, Bits::new(self.size.get(), granularity_bits)).await
    }

    async fn enable_bitmap(&self, name: &str, enabled: bool) -> Result<()> {
        let _turn = self.begin_edit().await?;
        let index = self.bitmaps.find_usable(name)?;
        let mut list = self.bitmaps.get().clone();
        if list[index].entry.enabled == enabled {
            return Ok(());
        }
        list[index].entry.enabled = enabled;
        self.switch_bitmaps(list, Room::default()).await
    }

    async fn add_bits(&self, name: &str, added: Bits) -> Result<()> {
        let _turn = self.begin_edit().await?;
        let index = self.bitmaps.find_usable(name)?;
        let mut bits = Bits::clone(&*self.bits_of(index).await?);
        bits.union(&added);
        self.replace_bits(index, bits).await
    }

    /// Waits for the turn to change bitmaps.
    async fn begin_edit(&self) -> Result<async_lock::MutexGuard<'_, ()>> {
        if !self.is_writable() {
            return Err(Error::new(Kind::ReadOnly, "the image is read-only"));
        }
        Ok(self.bitmaps.changing.lock().await)
    }

    /// Gives a bitmap other bits.
    async fn replace_bits(&self, index: usize, bits: Bits) -> Result<()> {
        let (mut list, mut room) = (self.bitmaps.get().clone(), Room::default());
        if list[index].is_tracked() {
            self.bitmaps.change(|list| {
                (list[index].bits, list[index].changed) = (Some(Rc::new(bits)), true);
            });
            return Ok(());
        }
        list[index].entry.table = self.write_bits(&bits, &mut room).await?;
        list[index].bits = Some(Rc::new(bits));
        self.switch_bitmaps(list, room).await
    }

    /// Refuses a bitmap that cannot be. Returns log2 of the granularity.
    fn check_new(&self, name: &str, granularity: u64) -> Result<u32> {
        let refuse = |message: &str| Err(Error::new(Kind::InvalidArgument, message));
        if name.is_empty() {
            return refuse("Bitmap name cannot be empty");
        }
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&granularity.ilog2()) {
            return refuse("Granularity must be power of 2 and at least 512");
        }
        self.check_storable(name, granularity.ilog2()).map_err(|error| {
            error.context(format!("Can't make bitmap '{name}' persistent in '{}'", self.file.filename()))
        })?;
        if self.bitmaps.find(name).is_ok() {
            return refuse(&format!("Bitmap already exists: {name}"));
        }
        Ok(granularity.ilog2())
    }

    /// Whether the format has room for it.
    fn check_storable(&self, name: &str, granularity_bits: u32) -> Result<()> {
        let refuse = |message: String| Err(Error::new(Kind::InvalidArgument, message));
        if !self.v3.get() {
            return refuse("Cannot store dirty bitmaps in qcow2 v2 files".to_owned());
        }
        if text::to_bytes(name).len() > MAX_NAME {
            return refuse(format!("Name length exceeds maximum ({MAX_NAME} characters)"));
        }
        if !directory::fits(self.size.get(), granularity_bits) {
            return refuse(directory::TOO_LARGE.to_owned());
        }
        if self.bitmaps.get().len() >= MAX_BITMAPS {
            return refuse("Maximum number of persistent bitmaps is already reached".to_owned());
        }
        Ok(())
    }
}
