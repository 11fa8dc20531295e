//! A set of sectors, one bit each, in blocks that come to be when a sector of theirs is put in.

use std::collections::BTreeMap;
use std::ops::Range;

/// Sectors of a block.
const BLOCK: u64 = 4096;
/// Sectors of a word.
const WORD: u64 = 64;

/// A set of sectors.
#[derive(Default)]
pub(super) struct SectorSet {
    blocks: BTreeMap<u64, Box<[u64; (BLOCK / WORD) as usize]>>,
}

impl SectorSet {
    /// Puts a range in.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        for sector in range {
            let block = self.blocks.entry(sector / BLOCK).or_insert_with(|| Box::new([0; 64]));
            block[(sector % BLOCK / WORD) as usize] |= 1 << (sector % WORD);
        }
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    fn word(&self, sector: u64) -> u64 {
        self.blocks.get(&(sector / BLOCK)).map_or(0, |block| block[(sector % BLOCK / WORD) as usize])
    }

    /// Whether the first sector of the range is in, and how many of the range are as it is.
    pub(super) fn run(&self, range: Range<u64>) -> (bool, u64) {
        let inside = self.word(range.start) >> (range.start % WORD) & 1 == 1;
        let mut at = range.start;
        while at < range.end {
            if !inside && !self.blocks.contains_key(&(at / BLOCK)) {
                at = (at / BLOCK + 1) * BLOCK;
                continue;
            }
            let word = if inside { !self.word(at) } else { self.word(at) } >> (at % WORD);
            if word != 0 {
                at += u64::from(word.trailing_zeros());
                break;
            }
            at = (at / WORD + 1) * WORD;
        }
        (inside, at.min(range.end) - range.start)
    }

    /// All that is in, in order: no range leaves its block.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.blocks.keys().flat_map(move |block| {
            let (mut at, end) = (block * BLOCK, (block + 1) * BLOCK);
            std::iter::from_fn(move || {
                while at < end {
                    let (inside, len) = self.run(at..end);
                    at += len;
                    if inside {
                        return Some(at - len..at);
                    }
                }
                None
            })
        })
    }

    /// Whether any of the range is in.
    pub(super) fn has_any(&self, range: Range<u64>) -> bool {
        let (inside, len) = self.run(range.clone());
        !range.is_empty() && (inside || len < range.end - range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn runs_are_those_of_a_plain_set() {
        let (mut set, mut model, mut random) = (SectorSet::default(), BTreeSet::new(), 1u64);
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..300 {
            let start = next(20_000);
            let end = start + next(200);
            set.insert(start..end);
            model.extend(start..end);
            let (start, len) = (next(20_000), next(9_000) + 1);
            let inside = model.contains(&start);
            let run =
                (start..start + len).take_while(|sector| model.contains(sector) == inside).count() as u64;
            assert_eq!(set.run(start..start + len), (inside, run), "{start}+{len}");
            assert_eq!(set.has_any(start..start + len), model.range(start..start + len).next().is_some());
        }
        assert!(set.ranges().flatten().eq(model));
    }
}
