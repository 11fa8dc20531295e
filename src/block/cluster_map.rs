//! Which clusters of a disk have data, known before any of it is copied.

use crate::block::{Error, Kind, Result};
use std::ops::Range;

/// Most memory that a map may take, in bytes: 32 TiB of disk in clusters of 64 KiB.
const MAX_MAP: u64 = 64 << 20;

/// Which clusters of a disk have data: a bit each.
#[derive(Debug)]
pub struct ClusterMap {
    bits: Vec<u64>,
    cluster_size: u64,
    /// Bytes of the disk.
    size: u64,
}

impl ClusterMap {
    /// Of a disk without data.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the map would take too much memory.
    pub fn new(size: u64, cluster_size: u64) -> Result<ClusterMap> {
        let words = size.div_ceil(cluster_size).div_ceil(64);
        if words > MAX_MAP / 8 {
            return Err(Error::new(Kind::Unsupported, "the disk is too large to be written to a pipe")
                .remedy("take a larger cluster_size, or write it to a file"));
        }
        Ok(ClusterMap { bits: vec![0; words as usize], cluster_size, size })
    }

    /// Notes that there is data in a range of bytes.
    pub fn add(&mut self, bytes: Range<u64>) {
        for cluster in bytes.start / self.cluster_size..bytes.end.div_ceil(self.cluster_size) {
            if let Some(word) = self.bits.get_mut((cluster / 64) as usize) {
                *word |= 1 << (cluster % 64);
            }
        }
    }

    /// Whether there is data in a cluster.
    pub fn contains(&self, cluster: u64) -> bool {
        self.bits.get((cluster / 64) as usize).is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.cluster_size
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Clusters of the disk.
    pub fn clusters(&self) -> u64 {
        self.size.div_ceil(self.cluster_size)
    }

    /// How many clusters have data.
    pub fn used(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The groups of `reach` clusters that have data: their numbers, and their clusters.
    pub fn groups(&self, reach: u64) -> impl Iterator<Item = (u64, Range<u64>)> + '_ {
        let all = (0..self.clusters().div_ceil(reach))
            .map(move |index| (index, index * reach..((index + 1) * reach).min(self.clusters())));
        all.filter(|(_, clusters)| clusters.clone().any(|cluster| self.contains(cluster)))
    }
}
