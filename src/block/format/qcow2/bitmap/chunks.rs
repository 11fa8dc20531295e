//! The chunks of a bitmap's bits: sparse, so that an empty or a full one of a huge disk takes next to nothing.
//!
//! ```text
//!   chunk 0   1   2 …… 900000   900001     clear chunks are absent
//!         │       └─ full ──┘      │       full ones in a row are one span, by its first chunk
//!       mixed                    mixed     4096 bits each, 512 bytes
//! ```
//! A chunk is the part that the smallest cluster holds, and its bytes are those on disk: the lowest bit of the
//! first byte comes first. Invariant: spans of full chunks do not touch, and no mixed chunk is clear or full.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bits and bytes of a chunk.
pub(super) const CHUNK_BITS: u64 = 4096;
pub(super) const CHUNK_BYTES: usize = 512;
const WORDS: usize = CHUNK_BYTES / 8;

/// The bits of a chunk.
pub(super) type Words = [u64; WORDS];

const CLEAR: Words = [0; WORDS];
const FULL: Words = [u64::MAX; WORDS];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Span {
    /// Up to this chunk, which is none of them.
    Full(u64),
    /// One chunk.
    Mixed(Box<Words>),
}

/// All chunks of a bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunks(BTreeMap<u64, Span>);

impl Chunks {
    /// What is not clear of a range of chunks, in order: full ones in a row, as `None`, and single mixed ones.
    pub(super) fn spans(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<&Words>)> {
        let before = self.0.range(..range.start).next_back();
        before.into_iter().chain(self.0.range(range.clone())).filter_map(move |(&start, span)| {
            let (end, words) = match span {
                Span::Full(end) => (*end, None),
                Span::Mixed(words) => (start + 1, Some(&**words)),
            };
            let inside = start.max(range.start)..end.min(range.end);
            (!inside.is_empty()).then_some((inside, words))
        })
    }

    /// The bits of a chunk.
    pub(super) fn words(&self, index: u64) -> Words {
        self.spans(index..index + 1).next().map_or(CLEAR, |(_, words)| words.copied().unwrap_or(FULL))
    }

    /// Makes a chunk what `words` says.
    pub(super) fn put(&mut self, index: u64, words: &Words) {
        if *words == FULL {
            return self.fill(index..index + 1);
        }
        self.clear(index..index + 1);
        if *words != CLEAR {
            self.0.insert(index, Span::Mixed(Box::new(*words)));
        }
    }

    /// Sets some bits of a chunk.
    pub(super) fn set(&mut self, index: u64, bits: Range<u64>) {
        if bits == (0..CHUNK_BITS) {
            return self.fill(index..index + 1);
        }
        if self.is_full(index) {
            return;
        }
        let span = self.0.entry(index).or_insert_with(|| Span::Mixed(Box::new(CLEAR)));
        let Span::Mixed(words) = span else { return };
        let mut at = bits.start;
        while at < bits.end {
            let in_word = (64 - at % 64).min(bits.end - at);
            words[(at / 64) as usize] |= u64::MAX >> (64 - in_word) << (at % 64);
            at += in_word;
        }
        // Looked at only where it may have become full.
        if words[(bits.start / 64) as usize] == u64::MAX && **words == FULL {
            self.fill(index..index + 1);
        }
    }

    fn is_full(&self, index: u64) -> bool {
        let last = self.0.range(..=index).next_back();
        matches!(last, Some((_, Span::Full(end))) if *end > index)
    }

    /// Makes a range of chunks full.
    pub(super) fn fill(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.clear(range.clone());
        let Range { mut start, mut end } = range;
        if let Some((&first, Span::Full(behind))) = self.0.range(..start).next_back()
            && *behind == start
        {
            start = first;
        }
        if let Some(&Span::Full(behind)) = self.0.get(&end) {
            self.0.remove(&end);
            end = behind;
        }
        self.0.insert(start, Span::Full(end));
    }

    /// Makes a range of chunks clear.
    pub(super) fn clear(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut rest = None;
        if let Some((_, Span::Full(end))) = self.0.range_mut(..range.start).next_back()
            && *end > range.start
        {
            rest = Some(std::mem::replace(end, range.start));
        }
        let inside: Vec<u64> = self.0.range(range.clone()).map(|(&start, _)| start).collect();
        for start in inside {
            if let Some(Span::Full(end)) = self.0.remove(&start) {
                rest = Some(end);
            }
        }
        if let Some(end) = rest.filter(|&end| end > range.end) {
            self.0.insert(range.end, Span::Full(end));
        }
    }
}

/// The first bit from `from` on that is `value`.
pub(super) fn find(words: &Words, from: u64, value: bool) -> Option<u64> {
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

/// Writes the bits as they stand in the file.
pub(super) fn put_words(words: &Words, bytes: &mut [u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Bits of the one mixed chunk that the test knows.
    const MIXED: Words = [5; WORDS];

    #[test]
    fn chunks_are_those_of_a_plain_list_and_the_same_ones_look_the_same() {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut chunks, mut model) = (Chunks::default(), vec![CLEAR; 40]);
        for _ in 0..3000 {
            let start = rng.random_range(0..40);
            let range = start..rng.random_range(start..=40);
            let (words, indices) = match rng.random_range(0..3) {
                0 => {
                    chunks.fill(range.clone());
                    (FULL, range)
                }
                1 => {
                    chunks.clear(range.clone());
                    (CLEAR, range)
                }
                _ => {
                    let words = [CLEAR, MIXED, FULL][rng.random_range(0..3)];
                    chunks.put(start, &words);
                    (words, start..start + 1)
                }
            };
            model[indices.start as usize..indices.end as usize].fill(words);
            let mut again = Chunks::default();
            for (index, words) in (0..).zip(&model) {
                assert_eq!(chunks.words(index), *words);
                again.put(index, words);
            }
            assert_eq!(chunks, again);
        }
    }
}
