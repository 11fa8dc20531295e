//! Writing bitmaps: all that is new goes to new clusters, then one change of the header switches to it.
//!
//! ```text
//!   bits, tables, directory ─▶ flush (with their refcounts) ─▶ header extension and autoclear bit ─▶ flush
//! ```
//! Only then are the clusters of the old ones given back. Dying before leaks the new clusters, after it the old.

use super::super::alloc::Reserved;
use super::super::driver::Qcow2;
use super::super::geometry::{ENTRY, HostOffset};
use super::super::header::Header;
use super::super::overlap::Metadata;
use super::super::refcount::Run;
use super::bits::{Bits, Part};
use super::directory::{self, BITMAPS_VALID, MAX_DIRECTORY, Table, TableEntry, table_entries};
use super::list::Bitmap;
use crate::block::{Error, Kind, Result};
use std::ops::Range;

/// New clusters that are written and that nothing refers to yet.
#[derive(Default)]
pub(super) struct Room<'a>(Vec<Reserved<'a>>);

impl Room<'_> {
    fn keep(self) {
        self.0.into_iter().for_each(Reserved::keep);
    }
}

impl Qcow2 {
    /// Writes bits and their table to new clusters.
    pub(super) async fn write_bits<'a>(&'a self, bits: &Bits, room: &mut Room<'a>) -> Result<Table> {
        let cluster = self.geometry.cluster_size();
        let entries = table_entries(self.geometry, bits.size(), bits.granularity_bits());
        let mut table = vec![0; (entries * ENTRY) as usize];
        for index in bits.parts(cluster) {
            let entry = match bits.part(index, cluster as usize) {
                Part::Clear => TableEntry::Clear,
                Part::Set => TableEntry::Set,
                Part::Mixed(bytes) => TableEntry::Bits(self.write_new_clusters(&bytes, room).await?),
            };
            let at = (index * ENTRY) as usize;
            table[at..at + ENTRY as usize].copy_from_slice(&entry.encode().to_be_bytes());
        }
        let offset = self.write_new_clusters(&table, room).await?;
        Ok(Table { offset, entries: entries as u32 })
    }

    /// Writes to new clusters that follow one another.
    async fn write_new_clusters<'a>(&'a self, bytes: &[u8], room: &mut Room<'a>) -> Result<HostOffset> {
        let new = match self.geometry.clusters_for(bytes.len() as u64) {
            1 => self.reserve(1).await?,
            more => self.reserve_contiguous(more).await?,
        };
        let offset = self.geometry.start_of(new.run.first);
        room.0.push(new);
        self.overlap.check(offset, bytes.len() as u64, None)?;
        self.file.write_bytes(offset.0, bytes).await?;
        Ok(offset)
    }

    /// Makes `list` the bitmaps of the image. `room` is what of it is new. Durable on return.
    pub(super) async fn switch_bitmaps<'a>(&'a self, list: Vec<Bitmap>, mut room: Room<'a>) -> Result<()> {
        self.clear_autoclear().await?;
        let place = self.write_new_directory(&list, &mut room).await?;
        self.flush_all().await?;
        self.switch_header(list.len(), &place).await?;
        room.keep();
        self.overlap.set_range(Metadata::BitmapDirectory, place.clone());
        let kept: Vec<Table> = list.iter().map(|bitmap| bitmap.entry.table).collect();
        let (old, old_place) = self.bitmaps.replace(list, place);
        let gone = old.iter().map(|bitmap| bitmap.entry.table).filter(|table| !kept.contains(table));
        self.give_back(old_place, gone.collect()).await;
        self.file.flush().await
    }

    /// Makes the header name the directory of `count` bitmaps, or none. The extension may lie in another sector than
    /// the autoclear bit: it comes and goes while the bit says that it counts for nothing.
    async fn switch_header(&self, count: usize, place: &Range<u64>) -> Result<()> {
        if count == 0 {
            self.change_header_durably(|header| header.autoclear &= !BITMAPS_VALID).await?;
            // The bitmaps are gone already, and what is left of them is ignored.
            let _ = self.change_header(|header| directory::set_extension(header, 0, place)).await;
            return Ok(());
        }
        let is_first = self.header.borrow().autoclear & BITMAPS_VALID == 0;
        if is_first {
            let not_yet = |header: &mut Header| {
                directory::set_extension(header, count, place);
                header.autoclear &= !BITMAPS_VALID;
            };
            self.change_header_durably(not_yet).await?;
        }
        self.change_header(|header| directory::set_extension(header, count, place)).await
    }

    async fn write_new_directory<'a>(&'a self, list: &[Bitmap], room: &mut Room<'a>) -> Result<Range<u64>> {
        let bytes = directory::encode(list.iter().map(|bitmap| &bitmap.entry));
        if bytes.len() as u64 > MAX_DIRECTORY {
            return Err(Error::new(Kind::NoSpace, "Not enough space in the bitmap directory"));
        }
        if bytes.is_empty() {
            return Ok(0..0);
        }
        let offset = self.write_new_clusters(&bytes, room).await?;
        Ok(offset.0..offset.0 + bytes.len() as u64)
    }

    /// Gives up clusters that the header no longer leads to. What is no table, or no cluster of bits for sure, leaks.
    async fn give_back(&self, directory: Range<u64>, tables: Vec<Table>) {
        self.give_back_range(directory);
        for table in tables {
            match self.bitmap_table(table).await {
                Ok(entries) => self.give_back_table(table, &entries),
                Err(error) if error.kind() == Kind::InvalidFormat => {}
                Err(_) => self.bitmaps.unread.borrow_mut().push(table),
            }
        }
    }

    /// Before the image is closed: tries again to read what was given up. What cannot be read now leaks.
    pub(in super::super) async fn give_back_unread(&self) {
        for table in self.bitmaps.unread.take() {
            if let Ok(entries) = self.bitmap_table(table).await {
                self.give_back_table(table, &entries);
            }
        }
    }

    fn give_back_table(&self, table: Table, entries: &[TableEntry]) {
        for entry in entries {
            if let TableEntry::Bits(at) = entry {
                self.give_back_range(at.0..at.0 + self.geometry.cluster_size());
            }
        }
        self.give_back_range(table.range());
    }

    fn give_back_range(&self, range: Range<u64>) {
        let (start, len) = (HostOffset(range.start), range.end - range.start);
        if len > 0 && self.overlap.check(start, len, None).is_ok() {
            let run = Run { first: self.geometry.cluster_of(start), count: self.geometry.clusters_for(len) };
            self.free_table(run);
        }
    }
}
