//! All refcounts, written anew in another width.
//!
//! ```text
//!   … what is in use, with the old table and blocks | block' 0 | block' 1 | … | table' | not needed |
//! ```
//! The new structure stands in one run of clusters behind all that are in use. It counts itself, and not the old
//! table and blocks, which nothing refers to once the header names the new one.

use super::alloc::Reserved;
use super::driver::Qcow2;
use super::entries::set_refcount;
use super::geometry::{ENTRY, Geometry, HostCluster, HostOffset};
use super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::refcount::Run;
use crate::block::{Error, Kind, Result};
use std::collections::HashSet;

/// A refcount structure that nothing refers to yet.
pub(super) struct NewRefcounts<'a> {
    room: Reserved<'a>,
    refcount_order: u32,
    offset: HostOffset,
    clusters: u32,
    table: Vec<u64>,
}

impl NewRefcounts<'_> {
    /// Makes a header name it.
    pub(super) fn enter(&self, header: &mut Header) {
        header.geometry.refcount_order = self.refcount_order;
        header.refcount_table_offset = self.offset;
        header.refcount_table_clusters = self.clusters;
    }

    /// The header names it: nothing of the old structure is to be written any more.
    pub(super) fn adopt(self, image: &Qcow2) {
        self.room.keep();
        image.refcounts.replace(self.offset, self.clusters, self.table);
    }
}

/// The clusters that a structure takes: blocks, then the table.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    blocks: u64,
    table: u64,
}

impl Shape {
    /// For refcounts of the first `clusters` clusters.
    fn new(geometry: Geometry, clusters: u64) -> Result<Shape> {
        let blocks = clusters.div_ceil(geometry.block_entries());
        if blocks * ENTRY > MAX_REFCOUNT_TABLE_BYTES {
            return Err(Error::new(Kind::NoSpace, "the refcount table would be too large"));
        }
        Ok(Shape { blocks, table: geometry.clusters_for(blocks * ENTRY) })
    }

    fn clusters(self) -> u64 {
        self.blocks + self.table
    }
}

impl Qcow2 {
    /// Writes all refcounts in another width. Nothing on disk refers to them, and nothing is dirty before.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a refcount that is too high for it.
    pub(super) async fn write_refcounts_anew(&self, refcount_order: u32) -> Result<NewRefcounts<'_>> {
        let geometry = Geometry { refcount_order, ..self.geometry };
        let room = self.reserve_contiguous(self.room_for(geometry).await?).await?;
        let end = self.refcounts.end_in_use().await?;
        let shape = Shape::new(geometry, end)?;
        if shape.clusters() > room.run.count {
            return Err(Error::new(Kind::NoSpace, "the refcounts do not fit"));
        }
        let first = room.run.first.0;
        let used = Run { first: room.run.first, count: shape.clusters() };
        let gone = self.not_counted(room.run, used);
        let mut table = vec![0; ((shape.table << geometry.cluster_bits) / ENTRY) as usize];
        for block in 0..shape.blocks {
            let bytes = self.counts_anew(geometry, block, end, &gone).await?;
            let at = geometry.start_of(HostCluster(first + block));
            self.write_unreferenced(at, &bytes, None).await?;
            table[block as usize] = at.0;
            self.engine.tell_work(block + 1, shape.blocks);
        }
        let bytes: Vec<u8> = table.iter().flat_map(|raw| raw.to_be_bytes()).collect();
        let offset = geometry.start_of(HostCluster(first + shape.blocks));
        self.write_unreferenced(offset, &bytes, None).await?;
        self.file.flush().await?;
        Ok(NewRefcounts { room, refcount_order, offset, clusters: shape.table as u32, table })
    }

    /// How many clusters are enough, with those that taking them may need in the old structure.
    async fn room_for(&self, geometry: Geometry) -> Result<u64> {
        let end = self.refcounts.end_in_use().await?;
        let mut wanted = 0;
        loop {
            let old_blocks = wanted / self.geometry.block_entries() + 2;
            let needed = Shape::new(geometry, end + wanted + old_blocks)?.clusters();
            if needed <= wanted {
                return Ok(wanted);
            }
            wanted = needed;
        }
    }

    /// Clusters of the old structure, and of the room what the new one does not use.
    fn not_counted(&self, room: Run, used: Run) -> HashSet<u64> {
        let blocks = self.refcounts.block_offsets().into_iter().map(|at| self.geometry.cluster_of(at).0);
        let table = self.geometry.clusters_of(self.refcounts.table_range());
        let unused = used.first.0 + used.count..room.first.0 + room.count;
        blocks.chain(table).chain(unused).collect()
    }

    /// The content of a block.
    async fn counts_anew(
        &self,
        geometry: Geometry,
        block: u64,
        end: u64,
        gone: &HashSet<u64>,
    ) -> Result<Vec<u8>> {
        let per_block = geometry.block_entries();
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        for cluster in block * per_block..((block + 1) * per_block).min(end) {
            let count = self.refcounts.get(HostCluster(cluster)).await?;
            if count == 0 || gone.contains(&cluster) {
                continue;
            }
            if count > geometry.refcount_max() {
                return Err(too_high(geometry, cluster, count));
            }
            set_refcount(&mut bytes, geometry.refcount_order, (cluster % per_block) as usize, count);
        }
        Ok(bytes)
    }
}

fn too_high(geometry: Geometry, cluster: u64, count: u64) -> Error {
    let (bits, offset) = (geometry.refcount_bits(), cluster << geometry.cluster_bits);
    let what = format!(
        "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {offset:#x} has a refcount of {count}"
    );
    Error::new(Kind::InvalidArgument, what)
}
