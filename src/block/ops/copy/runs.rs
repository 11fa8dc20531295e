//! Runs of zeros and of data in bytes that were read.

use super::super::{SECTOR, is_zero};
use std::ops::Range;

/// A run, and whether it is data.
pub(super) type Run = (Range<u64>, bool);

/// Cuts `bytes`, which stand at `position`, into runs of data (true) and of zeros, the latter at least
/// `sparse` bytes long unless they are all of it, and aligned so. All is data where `sparse` is 0.
pub(super) fn find_runs(bytes: &[u8], position: u64, sparse: u64) -> Vec<Run> {
    if sparse == 0 {
        return vec![(0..bytes.len() as u64, true)];
    }
    // The largest power of two up to the wanted length.
    let grain = 1 << sparse.max(SECTOR).ilog2();
    let mut runs: Vec<Run> = Vec::new();
    let (mut at, end) = (0, bytes.len() as u64);
    while at < end {
        let next = (at + grain - (position + at) % grain).min(end);
        let data = !is_zero(&bytes[at as usize..next as usize]);
        match runs.last_mut() {
            Some((run, kind)) if *kind == data => run.end = next,
            _ => runs.push((at..next, data)),
        }
        at = next;
    }
    runs
}

/// The runs of data, widened to whole grains of `grain` bytes, and one where they meet.
pub(super) fn data_grains(runs: &[Run], grain: u64) -> Vec<Range<u64>> {
    let mut wide: Vec<Range<u64>> = Vec::new();
    for (run, _) in runs.iter().filter(|(_, data)| *data) {
        let (start, end) = (run.start / grain * grain, run.end.next_multiple_of(grain));
        match wide.last_mut() {
            Some(last) if last.end >= start => last.end = end.max(last.end),
            _ => wide.push(start..end),
        }
    }
    wide
}

/// What is left of `0..len` between ranges that are in order.
pub(super) fn gaps(ranges: &[Range<u64>], len: u64) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain(std::iter::once(len));
    starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| start..end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_runs_are_aligned_and_cover_the_piece_without_gaps() {
        let mut bytes = vec![0; 5 * 4096 + 100];
        bytes[4096 + 7] = 1;
        bytes[4 * 4096] = 1;
        let (a, b, end) = (4096, 4 * 4096, bytes.len() as u64);
        let expect =
            vec![(0..a, false), (a..2 * a, true), (2 * a..b, false), (b..b + a, true), (b + a..end, false)];
        assert_eq!(find_runs(&bytes, 0, 4096), expect);
        // From another position the grain falls elsewhere.
        let runs = find_runs(&bytes, 512, 4096);
        assert_eq!(runs[0], (0..4096 - 512, false));
        assert_eq!(runs[1], (4096 - 512..2 * 4096 - 512, true));
    }

    #[test]
    fn whole_grains_of_data_and_the_gaps_between_them_make_up_all() {
        let runs = [(0..10, false), (10..20, true), (20..70, false), (70..130, true), (130..300, false)];
        let data = data_grains(&runs, 64);
        assert_eq!(data, vec![0..192; 1]);
        assert_eq!(gaps(&data, 300), vec![192..300; 1]);
        let runs = [(0..128, false), (128..129, true), (129..300, false), (300..310, true)];
        let data = data_grains(&runs, 64);
        assert_eq!(data, [128..192, 256..320]);
        assert_eq!(gaps(&data, 310), [0..128, 192..256]);
    }
}
