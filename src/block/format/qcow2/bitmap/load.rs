//! Reading the bits of bitmaps, and what of the file they take.

use super::super::driver::Qcow2;
use super::super::extensions::be64;
use super::super::geometry::ENTRY;
use super::bits::Bits;
use super::chunks::CHUNK_BYTES;
use super::directory::{Entry, Table, TableEntry, table_entries};
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

/// Memory, in bytes, that a bitmap takes whatever is in it: it, its name apart, and the chunk that a write makes.
const EACH: u64 = 1024;
/// Memory that a span of bits takes besides the bits.
const SPAN: u64 = 64;

/// Memory that the bits take, at most, whose clusters of `cluster` bytes a table names.
fn memory_for(table: &[TableEntry], cluster: u64) -> u64 {
    let clusters = table.iter().filter(|entry| matches!(entry, TableEntry::Bits(_))).count() as u64;
    let runs = table.chunk_by(|a, b| a == b).filter(|run| run[0] == TableEntry::Set).count() as u64;
    clusters * (cluster + cluster / CHUNK_BYTES as u64 * SPAN) + runs * SPAN
}

impl Qcow2 {
    /// The bits of a bitmap that is not inconsistent; they stay in memory. The list is not changed meanwhile.
    pub(super) async fn bits_of(&self, index: usize) -> Result<Rc<Bits>> {
        let (entry, bits) = {
            let list = self.bitmaps.get();
            (list[index].entry.clone(), list[index].bits.clone())
        };
        if let Some(bits) = bits {
            return Ok(bits);
        }
        let bits = self.load_bits(&entry).await;
        let bits =
            Rc::new(bits.map_err(|error| {
                error.context(format!("Could not read bitmap '{}' from image", entry.name))
            })?);
        self.bitmaps.set_bits(index, bits.clone());
        Ok(bits)
    }

    async fn load_bits(&self, entry: &Entry) -> Result<Bits> {
        let (size, cluster) = (self.size.get(), self.geometry.cluster_size());
        if u64::from(entry.table.entries) != table_entries(self.geometry, size, entry.granularity_bits) {
            return Err(Error::new(Kind::InvalidFormat, "Invalid argument"));
        }
        self.bitmaps.take_room(EACH + u64::from(entry.table.entries) * ENTRY)?;
        let table = self.bitmap_table(entry.table).await?;
        self.count_loaded(&table)?;
        self.bitmaps.take_room(memory_for(&table, cluster))?;
        let mut bits = Bits::new(size, entry.granularity_bits);
        for (index, entry) in (0..).zip(table) {
            match entry {
                TableEntry::Clear => {}
                TableEntry::Set => bits.load_ones(index, cluster),
                TableEntry::Bits(at) => {
                    bits.load(index, &self.file.read_bytes(at.0, cluster as usize).await?)
                }
            }
        }
        Ok(bits)
    }

    /// Refuses bitmaps that together claim more clusters than the file has.
    fn count_loaded(&self, table: &[TableEntry]) -> Result<()> {
        let bits = table.iter().filter(|entry| matches!(entry, TableEntry::Bits(_))).count() as u64;
        let all = self.bitmaps.loaded.get() + bits + self.geometry.clusters_for(table.len() as u64 * ENTRY);
        if all > self.geometry.clusters_for(self.file.size()) {
            return Err(Error::new(Kind::InvalidFormat, "bitmaps claim more clusters than the file has"));
        }
        self.bitmaps.loaded.set(all);
        Ok(())
    }

    /// The entries of a bitmap's table, which must lie in the file.
    pub(super) async fn bitmap_table(&self, table: Table) -> Result<Vec<TableEntry>> {
        let range = table.range();
        let invalid = || Error::new(Kind::InvalidFormat, "Could not read bitmap_table table from image");
        if range.end > self.file.size().next_multiple_of(self.geometry.cluster_size()) {
            return Err(invalid());
        }
        let bytes = self.file.read_bytes(range.start, (range.end - range.start) as usize).await?;
        let entries = bytes.chunks_exact(ENTRY as usize).map(be64);
        let entries: Option<_> = entries.map(|raw| TableEntry::decode(raw, self.geometry)).collect();
        entries.ok_or_else(invalid)
    }
}
