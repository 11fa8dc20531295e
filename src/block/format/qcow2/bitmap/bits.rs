//! The bits of a bitmap in memory: sparse, so that an empty or a full one of a huge disk takes next to nothing.
//!
//! ```text
//!   granule 0 … 4095 | 4096 … 8191 | …        a chunk: absent (clear) | full | 4096 bits, 512 bytes
//! ```
//! A chunk is the part that the smallest cluster holds, and its bytes are those on disk: the lowest bit of the
//! first byte is the first granule. Invariant: no bit behind the end of the disk is set, and chunks that are clear
//! are absent; a full chunk has no bits behind the end.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bits and bytes of a chunk.
const CHUNK_BITS: u64 = 4096;
pub(super) const CHUNK_BYTES: usize = 512;
const WORDS: usize = CHUNK_BYTES / 8;

type Words = [u64; WORDS];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Full,
    Mixed(Box<Words>),
}

impl Chunk {
    fn words(&self) -> &Words {
        match self {
            Chunk::Full => &[u64::MAX; WORDS],
            Chunk::Mixed(words) => words,
        }
    }

    fn from_words(words: Box<Words>) -> Chunk {
        if words.iter().all(|&word| word == u64::MAX) { Chunk::Full } else { Chunk::Mixed(words) }
    }
}

/// Which granules of a disk are dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    /// Bytes of the disk.
    size: u64,
    granularity_bits: u32,
    chunks: BTreeMap<u64, Chunk>,
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
        Bits { size, granularity_bits, chunks: BTreeMap::new() }
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
        self.chunks.split_off(&end.div_ceil(CHUNK_BITS));
        let (last, kept) = (end / CHUNK_BITS, end % CHUNK_BITS);
        if kept > 0
            && let Some(chunk) = self.chunks.remove(&last)
        {
            let mut bytes = [0; CHUNK_BYTES];
            put_words(chunk.words(), &mut bytes);
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
        let mut at = granules.start;
        while at < granules.end {
            let chunk = at / CHUNK_BITS;
            let end = granules.end.min((chunk + 1) * CHUNK_BITS);
            self.set_in_chunk(chunk, at % CHUNK_BITS..end - chunk * CHUNK_BITS);
            at = end;
        }
    }

    fn set_in_chunk(&mut self, index: u64, bits: Range<u64>) {
        if bits == (0..CHUNK_BITS) {
            self.chunks.insert(index, Chunk::Full);
            return;
        }
        let chunk = self.chunks.entry(index).or_insert_with(|| Chunk::Mixed(Box::new([0; WORDS])));
        let Chunk::Mixed(words) = chunk else { return };
        let mut at = bits.start;
        while at < bits.end {
            let in_word = (64 - at % 64).min(bits.end - at);
            words[(at / 64) as usize] |= u64::MAX >> (64 - in_word) << (at % 64);
            at += in_word;
        }
        // Looked at only where it may have become full.
        if words[(bits.start / 64) as usize] == u64::MAX && words.iter().all(|&word| word == u64::MAX) {
            *chunk = Chunk::Full;
        }
    }

    /// Marks all that is dirty in `other`, a bitmap of the same disk with the same granularity.
    pub(super) fn union(&mut self, other: &Bits) {
        for (&index, theirs) in &other.chunks {
            let mut words = Box::new(*theirs.words());
            if let Some(ours) = self.chunks.get(&index) {
                words.iter_mut().zip(ours.words()).for_each(|(word, ours)| *word |= ours);
            }
            self.chunks.insert(index, Chunk::from_words(words));
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
        let mut words = Box::new([0; WORDS]);
        for ((word, bytes), at) in words.iter_mut().zip(bytes.chunks(8)).zip((0..).step_by(64)) {
            let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            *word = match valid.saturating_sub(at) {
                0 => 0,
                left @ 1..64 => value & (u64::MAX >> (64 - left)),
                _ => value,
            };
        }
        if words.iter().any(|&word| word != 0) {
            self.chunks.insert(index, Chunk::from_words(words));
        }
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
        let first = index * per_cluster;
        let chunks: Vec<_> = self.chunks.range(first..first + per_cluster).collect();
        if chunks.is_empty() {
            return Part::Clear;
        }
        if chunks.len() as u64 == per_cluster && chunks.iter().all(|(_, chunk)| **chunk == Chunk::Full) {
            return Part::Set;
        }
        let mut bytes = vec![0; len];
        for (&index, chunk) in chunks {
            let at = (index - first) as usize * CHUNK_BYTES;
            put_words(chunk.words(), &mut bytes[at..at + CHUNK_BYTES]);
        }
        Part::Mixed(bytes)
    }

    /// Which clusters of `len` bytes are not clear.
    pub(super) fn parts(&self, len: u64) -> Vec<u64> {
        let per_cluster = len / CHUNK_BYTES as u64;
        let mut parts: Vec<u64> = self.chunks.keys().map(|chunk| chunk / per_cluster).collect();
        parts.dedup();
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
            let full = found.len() == limit;
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if full => break,
                _ => found.push(start..end),
            }
        }
        found
    }

    /// The next dirty granules from `at` on, as far as their chunk goes.
    fn next_run(&self, at: u64) -> Option<Range<u64>> {
        for (&index, chunk) in self.chunks.range(at / CHUNK_BITS..) {
            let start = index * CHUNK_BITS;
            let (words, from) = (chunk.words(), at.saturating_sub(start));
            if let Some(first) = find(words, from, true) {
                let end = find(words, first, false).unwrap_or(CHUNK_BITS);
                return Some(start + first..start + end);
            }
        }
        None
    }
}

/// The first bit from `from` on that is `value`.
fn find(words: &Words, from: u64, value: bool) -> Option<u64> {
    let mut at = from;
    while at < CHUNK_BITS {
        let word = words[(at / 64) as usize];
        let wanted = if value { word } else { !word } >> (at % 64);
        if wanted != 0 {
            return Some(at + u64::from(wanted.trailing_zeros()));
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

fn put_words(words: &Words, bytes: &mut [u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
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
        assert!(bits.chunks.values().all(|chunk| *chunk == Chunk::Full));
        assert_eq!(bits.dirty(1000, 5), only(1000..1 << 36));
        bits.resize(1 << 20);
        assert_eq!(bits.chunks.len(), 1);
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
