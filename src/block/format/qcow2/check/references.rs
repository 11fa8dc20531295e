//! How many references every cluster of the file has, counted from the tables.
//!
//! ```text
//!   chunks of 16384 clusters, made when first counted:  | 1 | 1 | 0 | 2 | 255 | …   a byte a cluster
//!                                                                       └▶ spilled: cluster ─▶ 1000
//! ```
//! A count of 255 means that the true one stands in the map beside; few images have clusters with that many
//! users. Memory follows what is referred to, a byte a cluster in the end, not what a sparse file claims to be.

use super::super::cache::OffsetMap;
use super::super::entries::refcount;
use std::ops::Range;

/// Clusters of a chunk.
pub(super) const CHUNK: u64 = 1 << 14;
/// The count is in the map.
const SPILLED: u8 = u8::MAX;
/// Most clusters that can be counted, as QEMU has it.
pub(super) const MAX_CLUSTERS: u64 = i32::MAX as u64;

type Chunk = Box<[u8]>;

/// References to each cluster.
pub(super) struct References {
    chunks: Vec<Option<Chunk>>,
    spilled: OffsetMap<u64, u64>,
    len: u64,
    /// The largest count: what a refcount on disk can hold.
    max: u64,
}

impl References {
    /// No references to any of `len` clusters, at most [`MAX_CLUSTERS`].
    pub(super) fn new(len: u64, max: u64) -> References {
        let chunks = vec![None; len.div_ceil(CHUNK) as usize];
        References { chunks, spilled: OffsetMap::default(), len, max }
    }

    /// How many clusters are counted.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Counts clusters up to `len` too.
    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
        self.chunks.resize(self.len.div_ceil(CHUNK) as usize, None);
    }

    /// References to a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        match self.counts(cluster).and_then(|counts| counts.first()) {
            None => 0,
            Some(&SPILLED) => self.spilled.get(&cluster).copied().unwrap_or(0),
            Some(&count) => u64::from(count),
        }
    }

    /// Adds references to a cluster that is counted. Returns how many did not fit.
    #[inline]
    pub(super) fn add(&mut self, cluster: u64, references: u64) -> u64 {
        let chunk = self.chunks[(cluster / CHUNK) as usize].get_or_insert_with(new_chunk);
        let count = &mut chunk[(cluster % CHUNK) as usize];
        if references == 1 && *count < SPILLED - 1 && u64::from(*count) < self.max {
            *count += 1;
            return 0;
        }
        let (sum, over) = {
            let old = self.get(cluster);
            let sum = old.saturating_add(references).min(self.max);
            (sum, references - (sum - old))
        };
        self.set(cluster, sum);
        over
    }

    /// Sets the count of a cluster.
    pub(super) fn set(&mut self, cluster: u64, references: u64) {
        let chunk = self.chunks[(cluster / CHUNK) as usize].get_or_insert_with(new_chunk);
        let count = &mut chunk[(cluster % CHUNK) as usize];
        if references < u64::from(SPILLED) {
            *count = references as u8;
            return;
        }
        *count = SPILLED;
        self.spilled.insert(cluster, references);
    }

    /// Whether anything refers to one of `clusters`.
    pub(super) fn has_any(&self, clusters: Range<u64>) -> bool {
        let mut at = clusters.start;
        while at < clusters.end {
            let behind = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            let counts = self.counts(at).map(|counts| &counts[..(behind - at) as usize]);
            if counts.is_some_and(|counts| counts.iter().any(|&count| count != 0)) {
                return true;
            }
            at = behind;
        }
        false
    }

    /// The counts from a cluster on to the end of its chunk, a byte each, 255 for all that do not fit; `None` if
    /// all of them are 0.
    pub(super) fn counts(&self, cluster: u64) -> Option<&[u8]> {
        let chunk = self.chunks.get((cluster / CHUNK) as usize)?.as_ref()?;
        Some(&chunk[(cluster % CHUNK) as usize..])
    }

    /// Whether the refcounts in `block`, entries of 2^`order` bits, are the counts of `clusters`. If they are: the
    /// end of the last cluster in use, 0 if none is. Else a cluster before which all are equal.
    pub(super) fn equal_to(&self, block: &[u8], order: u32, clusters: Range<u64>) -> Result<u64, u64> {
        let mut used = 0;
        let mut at = clusters.start;
        while at < clusters.end {
            let behind = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            let entries = (at - clusters.start) as usize..(behind - clusters.start) as usize;
            let counts = self.counts(at).map(|counts| &counts[..entries.len()]);
            match counts {
                Some(counts) if same(block, order, entries.clone(), counts) => {
                    if let Some(last) = counts.iter().rposition(|&count| count != 0) {
                        used = at + last as u64 + 1;
                    }
                }
                None if same_zeros(block, order, entries) => {}
                _ => return Err(at),
            }
            at = behind;
        }
        Ok(used)
    }
}

/// Whether the refcounts at `entries` of a block are `counts`.
fn same(block: &[u8], order: u32, entries: Range<usize>, counts: &[u8]) -> bool {
    // All differences are gathered before one is asked for, so that the compiler takes many at a time.
    match order {
        4 => {
            let refcounts = block[2 * entries.start..2 * entries.end].as_chunks().0.iter();
            let differences = refcounts.zip(counts).fold(0, |found, (refcount, &count)| {
                found | u16::from_be_bytes(*refcount) ^ u16::from(count) | u16::from(count == SPILLED)
            });
            differences == 0
        }
        _ => entries
            .zip(counts)
            .all(|(index, &count)| count != SPILLED && refcount(block, order, index) == u64::from(count)),
    }
}

fn same_zeros(block: &[u8], order: u32, mut entries: Range<usize>) -> bool {
    match order {
        0..3 => entries.all(|index| refcount(block, order, index) == 0),
        _ => block[entries.start << (order - 3)..entries.end << (order - 3)].iter().all(|&byte| byte == 0),
    }
}

fn new_chunk() -> Chunk {
    vec![0; CHUNK as usize].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::super::super::entries::set_refcount;
    use super::*;

    #[test]
    fn a_block_is_equal_only_if_every_refcount_is() {
        for order in 0..=6 {
            let per_block = (512 * 8) >> order;
            let mut references = References::new(8 * CHUNK, u64::MAX >> (64 - (1 << order)));
            let mut block = vec![0; 512];
            let clusters = 3 * per_block..4 * per_block;
            assert_eq!(references.equal_to(&block, order, clusters.clone()), Ok(0));
            references.add(clusters.start + 5, 1);
            assert!(references.equal_to(&block, order, clusters.clone()).is_err());
            set_refcount(&mut block, order, 5, 1);
            assert_eq!(references.equal_to(&block, order, clusters.clone()), Ok(clusters.start + 6));
            set_refcount(&mut block, order, per_block as usize - 1, 1);
            assert!(references.equal_to(&block, order, clusters.clone()).is_err());
            assert!(references.equal_to(&block, order, clusters.start..clusters.end - 1).is_ok());
        }
    }

    #[test]
    fn counts_of_every_size_are_kept_and_stop_at_the_largest_that_fits() {
        for max in [1, 3, 255, 65535, u64::MAX] {
            let mut references = References::new(3 * CHUNK, max);
            for _ in 0..300 {
                references.add(CHUNK + 7, 1);
            }
            assert_eq!(references.get(CHUNK + 7), 300.min(max));
            assert_eq!(references.add(CHUNK + 7, 1000), 1300u64.saturating_sub(max).min(1000));
            references.set(CHUNK + 7, 1);
            assert_eq!((references.get(CHUNK + 7), references.get(CHUNK + 6)), (1, 0));
            assert!(references.counts(0).is_none() && references.counts(CHUNK).is_some());
        }
    }
}
