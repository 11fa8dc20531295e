//! A new refcount structure, made of nothing but the references that were counted.
//!
//! Order on disk: blocks and table go to clusters that nothing refers to; a flush; one change of the header
//! switches to the new table; a flush. A process that dies leaves the old structure or the new one. The new one
//! counts the clusters of the old one too, until they are found leaked.
//!
//! Blocks are needed wherever something is referred to, so that a few tables in a sparse file could ask for
//! gigabytes of them. In an image that is no lie they are a small part of it: the new structure may take as much
//! as the file takes on the host already, and not more.

use super::super::entries::set_refcount;
use super::super::geometry::{ENTRY, Geometry, HostCluster, HostOffset};
use super::super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::super::overlap::Overlap;
use super::Checker;
use super::references::{MAX_CLUSTERS, References};
use crate::block::{Error, Kind, Result};
use std::collections::BTreeMap;

/// Bytes that a new structure may take, however small the file is.
const LEAST_LIMIT: u64 = 16 << 20;

/// Where the new structure is to stand.
struct Plan<'a> {
    geometry: Geometry,
    references: &'a mut References,
    overlap: &'a Overlap,
    /// Refcount blocks, by their index in the table.
    blocks: BTreeMap<u64, HostCluster>,
    /// Most refcount blocks that it may have.
    most_blocks: u64,
    /// No cluster below is free.
    from: u64,
}

impl Plan<'_> {
    /// Places blocks for all clusters that are referred to, then the table. Returns the table's place.
    fn place(&mut self) -> Result<(HostCluster, u64)> {
        self.place_blocks()?;
        let mut clusters = 1;
        loop {
            let first = self.take(clusters)?;
            self.place_blocks()?;
            let entries = self.blocks.last_key_value().map_or(0, |(&last, _)| last + 1);
            let needed = self.geometry.clusters_for(entries * ENTRY);
            if needed <= clusters {
                return Ok((first, clusters));
            }
            (first.0..first.0 + clusters).for_each(|cluster| self.references.set(cluster, 0));
            self.from = first.0;
            clusters = needed;
        }
    }

    /// Places the blocks that are missing; one that is placed may be the first cluster of the next.
    fn place_blocks(&mut self) -> Result<()> {
        let per_block = self.geometry.block_entries();
        let mut index = 0;
        while index * per_block < self.references.len() {
            let clusters = index * per_block..((index + 1) * per_block).min(self.references.len());
            if !self.blocks.contains_key(&index) && self.references.has_any(clusters.clone()) {
                self.check_room(index)?;
                self.from = self.from.max(clusters.start);
                let cluster = self.take(1)?;
                self.blocks.insert(index, cluster);
                continue;
            }
            index += 1;
        }
        Ok(())
    }

    /// Refuses a block that the table would have no entry for, and more blocks than there may be.
    fn check_room(&self, index: u64) -> Result<()> {
        if index >= MAX_REFCOUNT_TABLE_BYTES / ENTRY {
            return Err(Error::new(Kind::NoSpace, "the refcount table would be too large"));
        }
        if self.blocks.len() as u64 >= self.most_blocks {
            return Err(Error::new(
                Kind::NoSpace,
                "the new refcounts would take more than the whole image does",
            ));
        }
        Ok(())
    }

    /// Takes the first `count` free clusters that follow one another.
    fn take(&mut self, count: u64) -> Result<HostCluster> {
        let mut first = self.from;
        loop {
            if first + count > MAX_CLUSTERS {
                return Err(Error::new(Kind::NoSpace, "the image file cannot grow any further"));
            }
            match (first..first + count).rev().find(|&cluster| !self.is_free(cluster)) {
                Some(used) => first = used + 1,
                None => break,
            }
        }
        self.references.grow((first + count).max(self.references.len()));
        (first..first + count).for_each(|cluster| self.references.set(cluster, 1));
        self.from = first + count;
        Ok(HostCluster(first))
    }

    /// Nothing refers to it, nor is it metadata that is in use although its entry is malformed.
    fn is_free(&self, cluster: u64) -> bool {
        let (offset, size) = (self.geometry.start_of(HostCluster(cluster)), self.geometry.cluster_size());
        self.references.get(cluster) == 0 && self.overlap.check(offset, size, None).is_ok()
    }

    /// The content of the block at `index`.
    fn block(&self, index: u64) -> Vec<u8> {
        let per_block = self.geometry.block_entries();
        let mut bytes = vec![0; self.geometry.cluster_size() as usize];
        let clusters = index * per_block..((index + 1) * per_block).min(self.references.len());
        for (cluster, entry) in clusters.zip(0..) {
            set_refcount(&mut bytes, self.geometry.refcount_order, entry, self.references.get(cluster));
        }
        bytes
    }
}

impl Checker<'_> {
    /// Makes all refcounts anew. They are the references that were counted, and those of the new structure.
    pub(super) async fn rebuild_refcounts(&mut self) -> Result<()> {
        let (image, geometry) = (self.image, self.image.geometry);
        let allocated = match image.file.driver().device() {
            // Its space is there, whatever the file system with its name says.
            Some(_) => self.tally.file_len,
            None => image.file.driver().allocated_size().unwrap_or(self.tally.file_len),
        };
        let mut plan = Plan {
            geometry,
            references: &mut self.tally.references,
            overlap: &image.overlap,
            blocks: BTreeMap::new(),
            most_blocks: allocated.max(LEAST_LIMIT) >> geometry.cluster_bits,
            from: 0,
        };
        let (first, clusters) = plan.place()?;
        let mut table = vec![0; (clusters << geometry.cluster_bits >> ENTRY.trailing_zeros()) as usize];
        for (&index, &cluster) in &plan.blocks {
            let offset = geometry.start_of(cluster);
            table[index as usize] = offset.0;
            image.file.write_bytes(offset.0, &plan.block(index)).await?;
        }
        let bytes: Vec<u8> = table.iter().flat_map(|raw: &u64| raw.to_be_bytes()).collect();
        let offset = geometry.start_of(first);
        image.file.write_bytes(offset.0, &bytes).await?;
        image.file.flush().await?;
        self.switch_table(offset, clusters as u32, table).await
    }

    async fn switch_table(&mut self, offset: HostOffset, clusters: u32, table: Vec<u64>) -> Result<()> {
        let switch = |header: &mut Header| {
            header.refcount_table_offset = offset;
            header.refcount_table_clusters = clusters;
        };
        self.image.change_header_durably(switch).await?;
        self.image.refcounts.replace(offset, clusters, table);
        self.tables.forget();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::overlap::Metadata;
    use super::*;

    const GEOMETRY: Geometry = Geometry { cluster_bits: 9, refcount_order: 4, extended_l2: false };

    fn message<T>(result: Result<T>) -> String {
        result.err().unwrap().message().to_owned()
    }

    #[test]
    fn the_search_for_free_clusters_ends_where_metadata_claims_all_of_them() {
        let overlap = Overlap::new(GEOMETRY);
        overlap.set_range(Metadata::EncryptionHeader, 512..1 << 55);
        let mut references = References::new(8, 65535);
        let from = MAX_CLUSTERS - 100;
        let (references, blocks) = (&mut references, BTreeMap::new());
        let mut plan =
            Plan { geometry: GEOMETRY, references, overlap: &overlap, blocks, most_blocks: 9, from };
        assert_eq!(message(plan.take(3)), "the image file cannot grow any further");
    }

    #[test]
    fn a_new_structure_is_no_larger_than_it_may_be() {
        for (most_blocks, fits) in [(102, true), (50, false)] {
            let overlap = Overlap::new(GEOMETRY);
            let mut references = References::new(100 * 256, 65535);
            (0..100).for_each(|block| references.set(block * 256 + 7, 1));
            let (references, blocks) = (&mut references, BTreeMap::new());
            let mut plan =
                Plan { geometry: GEOMETRY, references, overlap: &overlap, blocks, most_blocks, from: 0 };
            match plan.place() {
                Ok(_) => assert!(fits && plan.blocks.len() <= 102),
                Err(error) => assert!(!fits && error.kind() == Kind::NoSpace, "{error}"),
            }
        }
    }
}
