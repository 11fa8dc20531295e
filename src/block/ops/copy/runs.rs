//! Runs of zeros and of data in bytes that were read.

use super::super::{SECTOR, is_zero};
use std::ops::Range;

/// A run, and whether it is data.
pub(in crate::block::ops) type Run = (Range<u64>, bool);

/// Cuts `bytes`, which stand at `position`, into runs of data (true) and of zeros. The latter begin and end at multiples
/// of the largest power of two up to `sparse`; those between data are at least `sparse` bytes long, those at the ends may
/// go on beyond. All is data where `sparse` is 0.
pub(in crate::block::ops) fn find_runs(bytes: &[u8], position: u64, sparse: u64) -> Vec<Run> {
    if sparse == 0 {
        return vec![(0..bytes.len() as u64, true)];
    }
    let grain = 1 << sparse.max(SECTOR).ilog2();
    let mut runs: Vec<Run> = Vec::new();
    let (mut at, end) = (0, bytes.len() as u64);
    while at < end {
        let next = (at + grain - (position + at) % grain).min(end);
        push(&mut runs, at..next, !is_zero(&bytes[at as usize..next as usize]));
        at = next;
    }
    if !sparse.is_power_of_two() { without_short(runs, sparse) } else { runs }
}

/// Runs of zeros between data that are shorter than `sparse` bytes are data too.
fn without_short(runs: Vec<Run>, sparse: u64) -> Vec<Run> {
    let last = runs.len().saturating_sub(1);
    let mut long: Vec<Run> = Vec::new();
    for (at, (run, data)) in runs.into_iter().enumerate() {
        let is_short = at > 0 && at < last && run.end - run.start < sparse;
        push(&mut long, run, data || is_short);
    }
    long
}

/// Adds what comes next to runs of which neighbours differ.
fn push(runs: &mut Vec<Run>, next: Range<u64>, data: bool) {
    match runs.last_mut() {
        Some((run, kind)) if *kind == data => run.end = next.end,
        _ => runs.push((next, data)),
    }
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
    fn zeros_between_data_are_left_out_where_they_are_as_long_as_was_asked_for() {
        let k = 1024;
        let mut bytes = vec![0; 64 << 10];
        for start in [8, 24, 40] {
            bytes[start * 1024..(start + 4) * 1024].fill(1);
        }
        let count = |sparse| find_runs(&bytes, 0, sparse).len();
        assert_eq!((count(4 * k), count(8 * k)), (7, 7));
        // Between the data, 8 KiB are zeros in whole; what is at the ends may go on beyond.
        let expect = [(0..8 * k, false), (8 * k..48 * k, true), (48 * k..64 * k, false)];
        assert_eq!(find_runs(&bytes, 0, 12 * k), expect);
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
