//! Offsets as types, and the arithmetic of clusters and tables that the header's sizes fix.
//!
//! ```text
//!   guest offset   | L1 index | L2 index | in cluster |      host offset   | cluster | in cluster |
//!                             |-- slice | index --|
//! ```
//! A *slice* is the part of an L2 table that is cached as one: see [`Slices`].
//! A *subcluster* is what has a state of its own: 1/32 of a cluster with extended L2 entries, else the cluster.

use std::ops::Range;

/// A byte in the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HostOffset(pub(super) u64);

/// A cluster of the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HostCluster(pub(super) u64);

/// A byte of a view: of the guest's disk, and behind it of the VM state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct GuestOffset(pub(super) u64);

impl HostOffset {
    /// The byte `bytes` further on. Offsets stay under 2^57, lengths under 2^62: no overflow.
    pub(super) fn add(self, bytes: u64) -> HostOffset {
        HostOffset(self.0 + bytes)
    }
}

impl GuestOffset {
    /// The byte `bytes` further on.
    pub(super) fn add(self, bytes: u64) -> GuestOffset {
        GuestOffset(self.0 + bytes)
    }
}

/// Bytes of an L1 entry, and of the other tables' entries except for extended L2 entries.
pub(super) const ENTRY: u64 = 8;
/// Host offsets end here: bits 56 and up of an entry are no part of an offset.
pub(super) const HOST_END: u64 = 1 << 56;

/// log2 of the subclusters of a cluster with extended L2 entries.
const SUBCLUSTERS_BITS: u32 = 5;

/// Cluster size, refcount width and kind of L2 entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// log2 of the cluster size: 9 to 21.
    pub(super) cluster_bits: u32,
    /// log2 of the width of a refcount in bits: 0 to 6.
    pub(super) refcount_order: u32,
    /// L2 entries have a bitmap of subclusters behind them.
    pub(super) extended_l2: bool,
}

impl Geometry {
    /// Bytes of a cluster.
    pub(super) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// How far a guest or host offset is inside its cluster.
    pub(super) fn in_cluster(self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Whether an offset starts a cluster.
    pub(super) fn is_aligned(self, offset: u64) -> bool {
        self.in_cluster(offset) == 0
    }

    /// The start of the cluster that holds a guest byte.
    pub(super) fn guest_start(self, at: GuestOffset) -> GuestOffset {
        GuestOffset(at.0 - self.in_cluster(at.0))
    }

    /// log2 of the bytes of a subcluster.
    pub(super) fn subcluster_bits(self) -> u32 {
        if self.extended_l2 { self.cluster_bits - SUBCLUSTERS_BITS } else { self.cluster_bits }
    }

    /// Bytes of a subcluster.
    pub(super) fn subcluster_size(self) -> u64 {
        1 << self.subcluster_bits()
    }

    /// The start of the subcluster that holds a guest byte.
    pub(super) fn subcluster_start(self, at: GuestOffset) -> GuestOffset {
        GuestOffset(at.0 & !(self.subcluster_size() - 1))
    }

    /// How many clusters hold `bytes` bytes.
    pub(super) fn clusters_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// The cluster of a host byte.
    pub(super) fn cluster_of(self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// The clusters that a range of bytes touches.
    pub(super) fn clusters_of(self, bytes: Range<u64>) -> Range<u64> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start >> self.cluster_bits..bytes.end.div_ceil(self.cluster_size())
    }

    /// The first byte of a cluster.
    pub(super) fn start_of(self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }

    /// Bytes of an L2 entry.
    pub(super) fn l2_entry(self) -> u64 {
        if self.extended_l2 { 2 * ENTRY } else { ENTRY }
    }

    /// Entries of an L2 table.
    pub(super) fn l2_entries(self) -> u64 {
        self.cluster_size() / self.l2_entry()
    }

    /// Guest bytes that one L2 table maps.
    pub(super) fn l2_reach(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Which entry of the L1 table maps a guest byte.
    pub(super) fn l1_index(self, at: GuestOffset) -> usize {
        (at.0 / self.l2_reach()) as usize
    }

    /// Where the VM state behind a disk of `size` bytes begins.
    pub(super) fn vm_state_start(self, size: u64) -> GuestOffset {
        GuestOffset(self.l1_entries_for(size) * self.l2_reach())
    }

    /// How many L1 entries a view of `size` bytes needs.
    pub(super) fn l1_entries_for(self, size: u64) -> u64 {
        size.div_ceil(self.l2_reach())
    }

    /// Width of a refcount in bits.
    pub(super) fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// The largest refcount that an entry holds.
    pub(super) fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Refcounts in one refcount block.
    pub(super) fn block_entries(self) -> u64 {
        self.cluster_size() * 8 / u64::from(self.refcount_bits())
    }
}

/// How L2 tables are cut into slices. No header says it: each who opens the image may cut as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slices {
    cluster_bits: u32,
    /// log2 of the bytes of an L2 entry.
    entry_bits: u32,
    /// log2 of the bytes of a slice: 9 to `cluster_bits`.
    slice_bits: u32,
}

impl Slices {
    /// Slices of `size` bytes, a power of two from 512 to the cluster size.
    pub(super) fn new(geometry: Geometry, size: u64) -> Slices {
        Slices {
            cluster_bits: geometry.cluster_bits,
            entry_bits: geometry.l2_entry().ilog2(),
            slice_bits: size.ilog2(),
        }
    }

    /// Bytes of a slice.
    pub(super) fn size(self) -> u64 {
        1 << self.slice_bits
    }

    /// Entries of a slice.
    pub(super) fn entries(self) -> usize {
        1 << (self.slice_bits - self.entry_bits)
    }

    /// Where in its L2 table the slice of a guest byte starts (bytes), and the entry's index in the slice.
    pub(super) fn of(self, at: GuestOffset) -> (u64, usize) {
        let in_table = (at.0 >> self.cluster_bits) & ((1 << (self.cluster_bits - self.entry_bits)) - 1);
        let index = in_table & (self.entries() as u64 - 1);
        ((in_table - index) << self.entry_bits, index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_offset_splits_into_indices_that_lead_back_to_it() {
        for (cluster_bits, extended_l2) in (9..=21).flat_map(|bits| [(bits, false), (bits, true)]) {
            let geometry = Geometry { cluster_bits, refcount_order: 4, extended_l2 };
            let clusters = [0, 1, 63, 64, 65, 8191, 8192, 1 << 20, (1 << 30) + 7];
            for (cluster, slice_bits) in
                clusters.into_iter().flat_map(|cluster| (9..=cluster_bits).map(move |bits| (cluster, bits)))
            {
                let slices = Slices::new(geometry, 1 << slice_bits);
                let at = GuestOffset(cluster << cluster_bits);
                let (slice, index) = slices.of(at);
                assert_eq!((slices.size(), slice % slices.size()), (1 << slice_bits, 0));
                assert_eq!(slices.entries() as u64 * geometry.l2_entry(), slices.size());
                assert!(index < slices.entries() && slice < geometry.cluster_size());
                let in_table = slice / geometry.l2_entry() + index as u64;
                let back = geometry.l1_index(at) as u64 * geometry.l2_entries() + in_table;
                assert_eq!(back, cluster);
            }
        }
    }
}
