//! An image that is written once, from start to end, as to a pipe: metadata first, then the clusters that have data, in
//! the order of the disk. What has data must be known before.
//!
//! ```text
//!   | header | L1 table | refcount table | refcount blocks | L2 tables | clusters of data |
//! ```
//! Every cluster has one user, so that all refcounts are 1; nothing is behind the last cluster of data.

use super::create::CreateOptions;
use super::entries::{L1Entry, L2Entry, set_refcount};
use super::geometry::{ENTRY, Geometry, HostCluster, HostOffset};
use crate::block::cluster_map::ClusterMap;
use crate::block::{Error, Kind, Result};
use std::io::{self, Write};
use std::ops::Range;

/// Where everything stands, in clusters.
struct Layout {
    geometry: Geometry,
    /// Entries of the L1 table.
    l1_entries: u64,
    l1: Range<u64>,
    refcount_table: Range<u64>,
    blocks: Range<u64>,
    tables: Range<u64>,
    data: Range<u64>,
}

impl Layout {
    fn new(geometry: Geometry, map: &ClusterMap) -> Layout {
        let reach = geometry.cluster_size() / geometry.l2_entry();
        let l1_entries = map.clusters().div_ceil(reach);
        let l1 = 1..1 + geometry.clusters_for(l1_entries * ENTRY);
        let (tables, data) = (map.groups(reach).count() as u64, map.used());
        let mut blocks = 1;
        loop {
            let table = geometry.clusters_for(blocks * ENTRY);
            let all = l1.end + table + blocks + tables + data;
            let needed = all.div_ceil(geometry.block_entries());
            if needed <= blocks {
                let refcount_table = l1.end..l1.end + table;
                let blocks = refcount_table.end..refcount_table.end + blocks;
                let tables = blocks.end..blocks.end + tables;
                let data = tables.end..tables.end + data;
                return Layout { geometry, l1_entries, l1, refcount_table, blocks, tables, data };
            }
            blocks = needed;
        }
    }

    fn start(&self, cluster: u64) -> HostOffset {
        self.geometry.start_of(HostCluster(cluster))
    }

    /// Entries of a table, and zeros up to the end of its clusters.
    fn write_table(
        &self,
        out: &mut impl Write,
        place: &Range<u64>,
        entries: impl Iterator<Item = u64>,
    ) -> io::Result<()> {
        let mut written = 0;
        for entry in entries {
            out.write_all(&entry.to_be_bytes())?;
            written += ENTRY;
        }
        let len = (place.end - place.start) << self.geometry.cluster_bits;
        io::copy(&mut io::Read::take(io::repeat(0), len - written), out).map(drop)
    }

    fn write_l1(&self, out: &mut impl Write, map: &ClusterMap, reach: u64) -> io::Result<()> {
        let mut next = self.tables.start;
        let mut with_data = map.groups(reach).map(|(index, _)| index).peekable();
        let entries = (0..self.l1_entries).map(|index| {
            if with_data.next_if_eq(&index).is_none() {
                return L1Entry::Unallocated.encode();
            }
            next += 1;
            L1Entry::Table { offset: self.start(next - 1), copied: true }.encode()
        });
        self.write_table(out, &self.l1, entries)
    }

    /// All clusters up to the last one are in use once.
    fn write_refcounts(&self, out: &mut impl Write) -> io::Result<()> {
        let blocks = self.blocks.clone().map(|cluster| self.start(cluster).0);
        self.write_table(out, &self.refcount_table, blocks)?;
        let (per_block, order) = (self.geometry.block_entries(), self.geometry.refcount_order);
        for block in 0..self.blocks.end - self.blocks.start {
            let mut bytes = vec![0; self.geometry.cluster_size() as usize];
            for index in 0..self.data.end.saturating_sub(block * per_block).min(per_block) {
                set_refcount(&mut bytes, order, index as usize, 1);
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    fn write_l2(&self, out: &mut impl Write, map: &ClusterMap, reach: u64) -> io::Result<()> {
        let mut next = self.data.start;
        for ((_, clusters), table) in map.groups(reach).zip(self.tables.clone()) {
            let entries = clusters.map(|cluster| {
                if !map.contains(cluster) {
                    return 0;
                }
                next += 1;
                let data = L2Entry::Data { host: self.start(next - 1), copied: true };
                data.encode(self.geometry).descriptor
            });
            self.write_table(out, &(table..table + 1), entries)?;
        }
        Ok(())
    }
}

/// Writes all that stands before the clusters of data. Blocks.
///
/// # Errors
/// [`Kind::InvalidArgument`] for options that make no image, [`Kind::Unsupported`] for those that a stream cannot have;
/// what the host says.
pub fn write_metadata(options: &CreateOptions, map: &ClusterMap, out: impl Write) -> Result<()> {
    let geometry = options.check()?;
    if options.extended_l2 || options.data_file.is_some() || options.encryption.is_some() {
        return Err(Error::new(Kind::Unsupported, "such an image cannot be written to a pipe")
            .remedy("leave out the options encrypt.*, extended_l2 and data_file, or write it to a file"));
    }
    let layout = Layout::new(geometry, map);
    let mut header = options.fields(geometry);
    header.size = map.size();
    header.l1_entries = u32::try_from(layout.l1_entries).map_err(|_| too_large())?;
    header.l1_offset = layout.start(layout.l1.start);
    header.refcount_table_offset = layout.start(layout.refcount_table.start);
    let table = layout.refcount_table.end - layout.refcount_table.start;
    header.refcount_table_clusters = u32::try_from(table).map_err(|_| too_large())?;
    let mut first = header.encode()?;
    first.resize(geometry.cluster_size() as usize, 0);
    let reach = geometry.cluster_size() / geometry.l2_entry();
    let mut out = io::BufWriter::with_capacity(256 << 10, out);
    let mut write = || -> io::Result<()> {
        out.write_all(&first)?;
        layout.write_l1(&mut out, map, reach)?;
        layout.write_refcounts(&mut out)?;
        layout.write_l2(&mut out, map, reach)?;
        out.flush()
    };
    write().map_err(Error::from_io)
}

fn too_large() -> Error {
    Error::new(Kind::InvalidArgument, "The image size is too large for file format 'qcow2'")
        .remedy("take a larger cluster_size")
}
