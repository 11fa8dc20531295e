//! The bits of a bitmap in memory.
//!
//! ```text
//!   granule 0 … 4095 | 4096 … 8191 | …        a chunk (see chunks): clear, full, or 4096 bits
//! ```
//! Invariant: no bit behind the end of the disk is set; the chunk that the end lies in is never full.

use super::chunks::{CHUNK_BITS, CHUNK_BYTES, Chunks, find, put_words};
use std::ops::Range;

/// Which granules of a disk are dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    /// Bytes of the disk.
    size: u64,
    granularity_bits: u32,
    chunks: Chunks,
}

/// What a part of the bits is.
pub(super) enum Part {
    Clear,
    Set,
    Mixed(Vec<u8>),
}

impl Bits {
    /// No dirty granule.
    pub(super) fn new(size: u64, granularity_bits: u32) -> Bits {
        Bits { size, granularity_bits, chunks: Chunks::default() }
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// log2 of the bytes that a bit stands for.
    pub(super) fn granularity_bits(&self) -> u32 {
        self.granularity_bits
    }

    fn granules(&self) -> u64 {
        self.size.div_ceil(1 << self.granularity_bits)
    }

    /// The disk has `size` bytes from now on. What is added is clean.
    pub(super) fn resize(&mut self, size: u64) {
        self.size = size;
        let end = self.granules();
        self.chunks.clear(end.div_ceil(CHUNK_BITS)..u64::MAX);
        let last = end / CHUNK_BITS;
        if !end.is_multiple_of(CHUNK_BITS) {
            let mut bytes = [0; CHUNK_BYTES];
            put_words(&self.chunks.words(last), &mut bytes);
            self.load_chunk(last, &bytes);
        }
    }

    /// Marks a range of bytes of the disk as dirty. What lies behind its end is no part of it.
    pub(super) fn set(&mut self, range: Range<u64>) {
        let first = range.start >> self.granularity_bits;
        let end = range.end.min(self.size).div_ceil(1 << self.granularity_bits);
        self.set_granules(first..end);
    }

    fn set_granules(&mut self, granules: Range<u64>) {
        let whole = granules.start.div_ceil(CHUNK_BITS)..granules.end / CHUNK_BITS;
        if !whole.is_empty() {
            self.chunks.fill(whole.clone());
            self.set_within_chunks(granules.start..whole.start * CHUNK_BITS);
            self.set_within_chunks(whole.end * CHUNK_BITS..granules.end);
            return;
        }
        self.set_within_chunks(granules);
    }

    fn set_within_chunks(&mut self, granules: Range<u64>) {
        let mut at = granules.start;
        while at < granules.end {
            let chunk = at / CHUNK_BITS;
            let end = granules.end.min((chunk + 1) * CHUNK_BITS);
            self.chunks.set(chunk, at % CHUNK_BITS..end - chunk * CHUNK_BITS);
            at = end;
        }
    }

    /// Marks all that is dirty in `other`, a bitmap of the same disk with the same granularity.
    pub(super) fn union(&mut self, other: &Bits) {
        for (range, theirs) in other.chunks.spans(0..u64::MAX) {
            let Some(theirs) = theirs else {
                self.chunks.fill(range);
                continue;
            };
            let mut words = self.chunks.words(range.start);
            words.iter_mut().zip(theirs).for_each(|(word, theirs)| *word |= theirs);
            self.chunks.put(range.start, &words);
        }
    }

    /// Takes the bits of one cluster of `len` bytes as the file has them. `index`: which cluster of the bitmap.
    pub(super) fn load(&mut self, index: u64, bytes: &[u8]) {
        let first = index * (bytes.len() / CHUNK_BYTES) as u64;
        for (chunk, bytes) in (first..).zip(bytes.chunks(CHUNK_BYTES)) {
            self.load_chunk(chunk, bytes);
        }
    }

    fn load_chunk(&mut self, index: u64, bytes: &[u8]) {
        let valid = self.granules().saturating_sub(index * CHUNK_BITS);
        let mut words = [0; CHUNK_BYTES / 8];
        for ((word, bytes), at) in words.iter_mut().zip(bytes.chunks(8)).zip((0..).step_by(64)) {
            let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            *word = match valid.saturating_sub(at) {
                0 => 0,
                left @ 1..64 => value & (u64::MAX >> (64 - left)),
                _ => value,
            };
        }
        self.chunks.put(index, &words);
    }

    /// Sets all bits of a cluster of `len` bytes of the bitmap.
    pub(super) fn load_ones(&mut self, index: u64, len: u64) {
        let per_cluster = len * 8;
        let end = ((index + 1) * per_cluster).min(self.granules());
        self.set_granules(index * per_cluster..end);
    }

    /// The bits of one cluster of `len` bytes as they stand in the file.
    pub(super) fn part(&self, index: u64, len: usize) -> Part {
        let per_cluster = (len / CHUNK_BYTES) as u64;
        let whole = index * per_cluster..(index + 1) * per_cluster;
        let mut bytes = Vec::new();
        for (range, words) in self.chunks.spans(whole.clone()) {
            if range == whole && words.is_none() {
                return Part::Set;
            }
            bytes.resize(len, 0);
            let at = |chunk: u64| (chunk - whole.start) as usize * CHUNK_BYTES;
            let bytes = &mut bytes[at(range.start)..at(range.end)];
            match words {
                Some(words) => put_words(words, bytes),
                None => bytes.fill(0xff),
            }
        }
        if bytes.is_empty() { Part::Clear } else { Part::Mixed(bytes) }
    }

    /// Which clusters of `len` bytes are not clear.
    pub(super) fn parts(&self, len: u64) -> Vec<u64> {
        let per_cluster = len / CHUNK_BYTES as u64;
        let mut parts: Vec<u64> = Vec::new();
        for (range, _) in self.chunks.spans(0..u64::MAX) {
            let next = parts.last().map_or(0, |last| last + 1);
            parts.extend(next.max(range.start / per_cluster)..range.end.div_ceil(per_cluster));
        }
        parts
    }

    /// The first `limit` dirty ranges from byte `from` on.
    pub(super) fn dirty(&self, from: u64, limit: usize) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = from >> self.granularity_bits;
        while let Some(run) = self.next_run(at) {
            at = run.end;
            let start = (run.start << self.granularity_bits).max(from);
            let end = (run.end << self.granularity_bits).min(self.size);
            if start >= end {
                // It was asked for what lies behind the end of the disk, in the last granule.
                break;
            }
            let full = found.len() == limit;
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if full => break,
                _ => found.push(start..end),
            }
        }
        found
    }

    /// The next dirty granules from `at` on, as far as their span of chunks goes.
    fn next_run(&self, at: u64) -> Option<Range<u64>> {
        for (range, words) in self.chunks.spans(at / CHUNK_BITS..u64::MAX) {
            let (start, end) = (range.start * CHUNK_BITS, range.end * CHUNK_BITS);
            let Some(words) = words else { return Some(at.max(start)..end) };
            if let Some(first) = find(words, at.saturating_sub(start), true) {
                let end = find(words, first, false).unwrap_or(CHUNK_BITS);
                return Some(start + first..start + end);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn only(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    /// One boolean a granule.
    struct Model(Vec<bool>);

    fn same(bits: &Bits, model: &Model) {
        let mut expected: Vec<Range<u64>> = Vec::new();
        for (at, _) in model.0.iter().enumerate().filter(|(_, dirty)| **dirty) {
            let range = at as u64 * 512..((at as u64 + 1) * 512).min(bits.size);
            match expected.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => expected.push(range),
            }
        }
        assert_eq!(bits.dirty(0, usize::MAX), expected);
    }

    #[test]
    fn bits_are_those_of_a_plain_list_through_marking_storing_and_resizing() {
        let mut rng = StdRng::seed_from_u64(1);
        let size = |granules: u64| granules * 512 - 100;
        let mut granules = 20_000;
        let (mut bits, mut model) = (Bits::new(size(granules), 9), Model(vec![false; granules as usize]));
        for step in 0..400 {
            let first = rng.random_range(0..granules);
            let longest = if step % 5 == 0 { 9000 } else { 100 };
            let count = rng.random_range(1..=longest);
            bits.set(first * 512 + 7..(first + count - 1) * 512 + 9);
            let end = (first + count).min(granules) as usize;
            model.0[first as usize..end].fill(true);
            if step % 20 == 0 {
                granules = rng.random_range(1..30_000);
                bits.resize(size(granules));
                model.0.resize(granules as usize, false);
            }
            if step % 90 == 0 {
                bits = Bits::new(size(granules), 9);
                model.0.fill(false);
            }
            if step % 7 == 0 {
                bits = stored_and_loaded(&bits, [512, 2048][step % 2]);
            }
            same(&bits, &model);
        }
    }

    fn stored_and_loaded(bits: &Bits, cluster: usize) -> Bits {
        let mut loaded = Bits::new(bits.size, bits.granularity_bits);
        for part in bits.parts(cluster as u64) {
            match bits.part(part, cluster) {
                Part::Clear => {}
                Part::Set => loaded.load_ones(part, cluster as u64),
                Part::Mixed(bytes) => loaded.load(part, &bytes),
            }
        }
        assert_eq!(&loaded, bits);
        loaded
    }

    #[test]
    fn a_full_and_an_empty_bitmap_of_a_huge_disk_are_small() {
        let mut bits = Bits::new(1 << 36, 9);
        bits.set(0..1 << 36);
        assert_eq!(bits.chunks.spans(0..u64::MAX).count(), 1);
        assert_eq!(bits.dirty(1000, 5), only(1000..1 << 36));
        bits.resize(1 << 20);
        assert_eq!(bits.chunks.spans(0..u64::MAX).count(), 1);
    }

    #[test]
    fn nothing_is_dirty_from_the_end_of_the_disk_on() {
        let mut bits = Bits::new((1 << 20) + 512, 16);
        bits.set(1 << 20..(1 << 20) + 512);
        assert_eq!(bits.dirty(0, 9), only(1 << 20..(1 << 20) + 512));
        assert_eq!(bits.dirty((1 << 20) + 100, 9), only((1 << 20) + 100..(1 << 20) + 512));
        assert_eq!(bits.dirty((1 << 20) + 512, 9), []);
        assert_eq!(bits.dirty(2 << 20, 9), []);
    }

    #[test]
    fn what_a_file_claims_behind_the_end_of_the_disk_is_no_bit() {
        let mut bits = Bits::new(512 * 70, 9);
        bits.load(0, &[0xff; 512]);
        bits.load(1, &[0xff; 512]);
        bits.load_ones(1, 512);
        assert_eq!(bits.dirty(0, 9), only(0..512 * 70));
        bits.resize(512 * 10_000);
        assert_eq!(bits.dirty(0, 9), only(0..512 * 70));
    }
}
