//! What the clusters of the disk are, that the guest did not write: runs of clusters that follow each other both on
//! the disk and in a file.

use super::tree::{Chain, Id};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a cluster shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    /// Entries of the directory of this number, from this cluster of them on.
    Directory { number: u32, index: u32 },
    /// A host file, from this cluster of it on.
    File { id: Id, index: u32 },
}

impl Shows {
    /// What the cluster `by` further shows.
    fn advanced(self, by: u32) -> Shows {
        match self {
            Shows::Directory { number, index } => Shows::Directory { number, index: index + by },
            Shows::File { id, index } => Shows::File { id, index: index + by },
        }
    }
}

/// Runs by their first cluster; they do not overlap. All other clusters are zeros.
#[derive(Default)]
pub(super) struct Runs {
    runs: BTreeMap<u32, (u32, Shows)>,
}

impl Runs {
    /// Runs that do not overlap: first cluster, how many, what they show.
    pub(super) fn of(all: impl IntoIterator<Item = (u32, u32, Shows)>) -> Runs {
        Runs { runs: all.into_iter().map(|(start, len, shows)| (start, (len, shows))).collect() }
    }

    /// What `cluster` shows, and for how many clusters that goes on.
    pub(super) fn at(&self, cluster: u32) -> (Option<Shows>, u32) {
        if let Some((start, (len, shows))) = self.runs.range(..=cluster).next_back()
            && cluster - start < *len
        {
            return (Some(shows.advanced(cluster - start)), len - (cluster - start));
        }
        let next = self.runs.range(cluster..).next().map_or(u32::MAX, |(start, _)| *start);
        (None, next - cluster)
    }

    /// Whether `cluster` shows anything, and for how many clusters before `end` that goes on.
    pub(super) fn extent(&self, cluster: u32, end: u32) -> (bool, u32) {
        let (shows, count) = self.at(cluster);
        if shows.is_none() {
            return (false, count.min(end - cluster));
        }
        let mut at = cluster.saturating_add(count);
        if at < end {
            for (start, (len, _)) in self.runs.range(at..end) {
                if *start != at {
                    break;
                }
                at = at.saturating_add(*len);
            }
        }
        (true, at.min(end) - cluster)
    }

    /// The files that any of some clusters show.
    pub(super) fn files_in(&self, clusters: Range<u32>) -> impl Iterator<Item = Id> {
        let before = self.runs.range(..=clusters.start).next_back();
        let before = before.filter(|(start, (len, _))| *start + len > clusters.start);
        // The first one may begin where the range does: it may come twice.
        before.into_iter().chain(self.runs.range(clusters)).filter_map(|(_, (_, shows))| match shows {
            Shows::File { id, .. } => Some(*id),
            Shows::Directory { .. } => None,
        })
    }

    /// Lets clusters show something.
    pub(super) fn set(&mut self, start: u32, len: u32, shows: Shows) {
        self.remove(start, len);
        self.runs.insert(start, (len, shows));
    }

    /// Makes those of some clusters zeros that show a file.
    pub(super) fn forget(&mut self, file: Id, chain: &Chain) {
        for (start, len) in chain {
            let (mut at, end) = (*start, start.saturating_add(*len));
            while at < end {
                let (shows, count) = self.at(at);
                let count = count.min(end - at);
                if matches!(shows, Some(Shows::File { id, .. }) if id == file) {
                    self.remove(at, count);
                }
                at += count;
            }
        }
    }

    /// Makes clusters zeros.
    pub(super) fn remove(&mut self, start: u32, len: u32) {
        let end = start.saturating_add(len);
        let touched: Vec<u32> = self
            .runs
            .range(..end)
            .rev()
            .map(|(at, (len, _))| (*at, *len))
            .take_while(|(at, len)| at + len > start)
            .map(|(at, _)| at)
            .collect();
        for at in touched {
            let Some((len, shows)) = self.runs.remove(&at) else { continue };
            if at < start {
                self.runs.insert(at, (start - at, shows));
            }
            if at + len > end {
                self.runs.insert(end, (at + len - end, shows.advanced(end - at)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_where_others_come() {
        let mut runs = Runs::default();
        let file = |id, index| Shows::File { id, index };
        runs.set(10, 10, file(1, 0));
        runs.set(20, 5, file(2, 0));
        runs.set(13, 9, file(3, 7));
        assert_eq!(runs.at(9), (None, 1));
        assert_eq!(runs.at(11), (Some(file(1, 1)), 2));
        assert_eq!(runs.at(14), (Some(file(3, 8)), 8));
        assert_eq!(runs.at(23), (Some(file(2, 3)), 2));
        runs.remove(15, 2);
        assert_eq!(runs.at(15), (None, 2));
        assert_eq!(runs.at(17), (Some(file(3, 11)), 5));
        assert_eq!(runs.at(25).0, None);
        assert_eq!(
            [10, 15, 18, 25].map(|at| runs.extent(at, 30)),
            [(true, 5), (false, 2), (true, 7), (false, 5)]
        );
    }
}
