//! Where the metadata is, so that no write of anything else hits it.
//!
//! Checked before every write of data and metadata, in release builds too: the header, the active L1 table and
//! the L2 tables it names, the refcount table and its blocks, the snapshot table, the snapshots' L1
//! tables and the bitmap directory (what QEMU checks by default), and the header of the encryption. Tables of one
//! cluster are bits in a sparse map, so that a check costs one look-up; the rest is a short list of ranges.
//! The L2 tables of snapshots are checked where that is asked for: to know where they are, all L1 tables must be
//! read, when the image changes for the first time and after each change of the snapshots.
//!
//! Invariant: whatever the tables in memory refer to as metadata is in here before it is written.

use super::cache::OffsetMap;
use super::geometry::{Geometry, HostCluster, HostOffset};
use crate::block::{Error, Kind, Result};
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// A kind of metadata. The text is how messages call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metadata {
    Header,
    ActiveL1,
    ActiveL2,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    InactiveL1,
    InactiveL2,
    EncryptionHeader,
    BitmapDirectory,
}

impl Metadata {
    fn name(self) -> &'static str {
        match self {
            Metadata::Header => "qcow2_header",
            Metadata::ActiveL1 => "active L1 table",
            Metadata::ActiveL2 => "active L2 table",
            Metadata::RefcountTable => "refcount table",
            Metadata::RefcountBlock => "refcount block",
            Metadata::SnapshotTable => "snapshot table",
            Metadata::InactiveL1 => "inactive L1 table",
            Metadata::InactiveL2 => "inactive L2 table",
            Metadata::EncryptionHeader => "encryption header",
            Metadata::BitmapDirectory => "bitmap directory",
        }
    }
}

/// Clusters, 64 to a word.
#[derive(Default)]
pub(super) struct ClusterSet(OffsetMap<u64, u64>);

impl ClusterSet {
    /// Adds a cluster. Whether it is new.
    pub(super) fn insert(&mut self, cluster: u64) -> bool {
        let word = self.0.entry(cluster / 64).or_default();
        let old = std::mem::replace(word, *word | 1 << (cluster % 64));
        old != *word
    }

    /// Takes a cluster out, if it is in.
    pub(super) fn remove(&mut self, cluster: u64) {
        if let Some(word) = self.0.get_mut(&(cluster / 64)) {
            *word &= !(1 << (cluster % 64));
        }
    }

    /// Whether one of `clusters` is in the set.
    pub(super) fn intersects(&self, clusters: &Range<u64>) -> bool {
        let mut at = clusters.start;
        while at < clusters.end {
            let in_word = (64 - at % 64).min(clusters.end - at);
            let mask = u64::MAX >> (64 - in_word) << (at % 64);
            if self.0.get(&(at / 64)).is_some_and(|word| word & mask != 0) {
                return true;
            }
            at += in_word;
        }
        false
    }
}

#[derive(Default)]
struct Places {
    ranges: Vec<(Metadata, Range<u64>)>,
    /// L1 tables of snapshots, in order and merged.
    inactive_l1: Vec<Range<u64>>,
    l2_tables: ClusterSet,
    /// L2 tables of snapshots, where they are known.
    inactive_l2: Option<ClusterSet>,
    refcount_blocks: ClusterSet,
}

/// All places of metadata.
pub(super) struct Overlap {
    geometry: Geometry,
    places: RefCell<Places>,
    wants_inactive_l2: Cell<bool>,
}

impl Overlap {
    /// Nothing but the header.
    pub(super) fn new(geometry: Geometry) -> Overlap {
        let overlap = Overlap { geometry, places: RefCell::default(), wants_inactive_l2: Cell::new(false) };
        overlap.set_range(Metadata::Header, 0..geometry.cluster_size());
        overlap
    }

    /// Forgets the trees and what counts them: all but header, encryption header and bitmaps.
    pub(super) fn forget_tables(&self) {
        let stays = |kind: Metadata| {
            matches!(kind, Metadata::Header | Metadata::EncryptionHeader | Metadata::BitmapDirectory)
        };
        let mut places = self.places.borrow_mut();
        places.ranges.retain(|(kind, _)| stays(*kind));
        places.inactive_l1.clear();
        places.l2_tables.0.clear();
        places.inactive_l2 = None;
        places.refcount_blocks.0.clear();
    }

    /// Notes a table of one cluster.
    pub(super) fn add(&self, kind: Metadata, cluster: HostCluster) {
        if let Some(set) = self.places.borrow_mut().set(kind) {
            set.insert(cluster.0);
        }
    }

    /// Notes where all refcount blocks are, in place of where they were.
    pub(super) fn set_refcount_blocks(&self, blocks: impl Iterator<Item = HostCluster>) {
        let mut places = self.places.borrow_mut();
        places.refcount_blocks = ClusterSet::default();
        for cluster in blocks {
            places.refcount_blocks.insert(cluster.0);
        }
    }

    /// Forgets a table of one cluster.
    pub(super) fn remove(&self, kind: Metadata, cluster: HostCluster) {
        if let Some(set) = self.places.borrow_mut().set(kind) {
            set.remove(cluster.0);
        }
    }

    /// Notes where the one table of a kind is, in place of where it was.
    pub(super) fn set_range(&self, kind: Metadata, range: Range<u64>) {
        let ranges = &mut self.places.borrow_mut().ranges;
        ranges.retain(|(other, _)| *other != kind);
        if !range.is_empty() {
            ranges.push((kind, self.whole_clusters(&range)));
        }
    }

    /// Notes where all L1 tables of snapshots are.
    pub(super) fn set_inactive_l1(&self, tables: impl Iterator<Item = Range<u64>>) {
        let mut tables: Vec<_> =
            tables.filter(|range| !range.is_empty()).map(|range| self.whole_clusters(&range)).collect();
        tables.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for table in tables {
            match merged.last_mut() {
                Some(last) if table.start <= last.end => last.end = last.end.max(table.end),
                _ => merged.push(table),
            }
        }
        self.places.borrow_mut().inactive_l1 = merged;
    }

    /// Says whether L2 tables of snapshots are to be checked too. Returns whether they were.
    pub(super) fn want_inactive_l2(&self, wanted: bool) -> bool {
        self.places.borrow_mut().inactive_l2 = None;
        self.wants_inactive_l2.replace(wanted)
    }

    /// Whether [`Overlap::set_inactive_l2`] must be called before anything is written.
    pub(super) fn lacks_inactive_l2(&self) -> bool {
        self.wants_inactive_l2.get() && self.places.borrow().inactive_l2.is_none()
    }

    /// Notes where the L2 tables of all snapshots are.
    pub(super) fn set_inactive_l2(&self, tables: ClusterSet) {
        self.places.borrow_mut().inactive_l2 = Some(tables);
    }

    fn whole_clusters(&self, range: &Range<u64>) -> Range<u64> {
        let size = self.geometry.cluster_size();
        range.start / size * size..range.end.next_multiple_of(size)
    }

    /// Refuses a write of `len` bytes that would hit metadata, of whatever kind but `own`.
    pub(super) fn check(&self, offset: HostOffset, len: u64, own: Option<Metadata>) -> Result<()> {
        match self.places.borrow().find(self.geometry, offset, len, own) {
            None => Ok(()),
            Some(kind) => Err(Error::new(
                Kind::Corrupt,
                format!("Preventing invalid write on metadata (overlaps with {})", kind.name()),
            )),
        }
    }
}

impl Places {
    fn set(&mut self, kind: Metadata) -> Option<&mut ClusterSet> {
        match kind {
            Metadata::ActiveL2 => Some(&mut self.l2_tables),
            Metadata::RefcountBlock => Some(&mut self.refcount_blocks),
            _ => None,
        }
    }

    fn find(
        &self,
        geometry: Geometry,
        offset: HostOffset,
        len: u64,
        own: Option<Metadata>,
    ) -> Option<Metadata> {
        let (start, end) = (offset.0, offset.0.saturating_add(len));
        for (kind, range) in &self.ranges {
            if range.start < end && start < range.end && Some(*kind) != own {
                return Some(*kind);
            }
        }
        let next = self.inactive_l1.partition_point(|range| range.end <= start);
        if self.inactive_l1.get(next).is_some_and(|range| range.start < end)
            && own != Some(Metadata::InactiveL1)
        {
            return Some(Metadata::InactiveL1);
        }
        let clusters = start >> geometry.cluster_bits..end.div_ceil(geometry.cluster_size());
        let inactive = self.inactive_l2.as_ref().map(|tables| (Metadata::InactiveL2, tables));
        let sets = [(Metadata::ActiveL2, &self.l2_tables), (Metadata::RefcountBlock, &self.refcount_blocks)];
        sets.into_iter()
            .chain(inactive)
            .find(|(kind, set)| Some(*kind) != own && set.intersects(&clusters))
            .map(|(kind, _)| kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_unless_it_is_the_writers_own() {
        let overlap = Overlap::new(Geometry { cluster_bits: 9, refcount_order: 4, extended_l2: false });
        overlap.set_range(Metadata::ActiveL1, 1024..1032);
        overlap.add(Metadata::ActiveL2, HostCluster(200));
        overlap.add(Metadata::RefcountBlock, HostCluster(63));
        let hit = |start: u64, len, own| overlap.check(HostOffset(start), len, own).is_err();
        assert!(hit(0, 1, None) && !hit(512, 512, None));
        assert!(hit(1535, 1, None) && !hit(1536, 100, None) && !hit(1024, 8, Some(Metadata::ActiveL1)));
        assert!(hit(512 * 199, 513, None) && !hit(512 * 199, 512, None));
        assert!(hit(512 * 60, 512 * 1000, Some(Metadata::ActiveL2)));
        assert!(!hit(512 * 64, 512 * 136, None) && hit(512 * 64, 512 * 137, None));
        overlap.remove(Metadata::ActiveL2, HostCluster(200));
        assert!(!hit(512 * 200, 512, None));
        overlap.set_inactive_l1([90 * 512..91 * 512 + 8, 80 * 512..81 * 512, 91 * 512..95 * 512].into_iter());
        let snapshots: Vec<u64> = (70..100).filter(|&cluster| hit(cluster * 512 + 7, 1, None)).collect();
        assert_eq!(snapshots, [80, 90, 91, 92, 93, 94]);
    }
}
