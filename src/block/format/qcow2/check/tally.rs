//! What a check has found so far: findings, and references to clusters. Knows the rules that entries of tables
//! must keep; reads nothing.

use super::super::entries::{L2Words, RawL2, bitmap_damage, has_copied, l2_words, raw_l2};
use super::super::geometry::Geometry;
use super::references::References;
use crate::block::graph::driver::{CheckReport, Repair};

/// More findings than these are counted but not told: an image must not fill our memory.
const MAX_MESSAGES: usize = 100_000;

/// How a table is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// It belongs to the live disk: statistics are about these.
    pub(super) active: bool,
    /// It is named so many times.
    pub(super) times: u64,
}

/// The numbers of findings at a moment.
#[derive(Clone, Copy)]
pub(super) struct Counters {
    corruptions: u64,
    leaks: u64,
    check_errors: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
}

/// Findings and counts.
pub(super) struct Tally {
    pub(super) geometry: Geometry,
    pub(super) report: CheckReport,
    pub(super) references: References,
    /// What may be repaired.
    pub(super) repair: Option<Repair>,
    /// Clusters of data are in a file of their own, where nothing is counted.
    pub(super) external: bool,
    pub(super) file_len: u64,
    /// Refcounts are so wrong that they must be made anew.
    pub(super) rebuild: bool,
}

impl Tally {
    /// Tells a finding.
    pub(super) fn say(&mut self, message: impl FnOnce() -> String) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message());
        }
    }

    /// Tells a finding that is a corruption, `times` times over.
    pub(super) fn corrupt(&mut self, times: u64, message: impl FnOnce() -> String) {
        self.report.corruptions = self.report.corruptions.saturating_add(times);
        self.say(message);
    }

    /// How many findings there are.
    pub(super) fn counters(&self) -> Counters {
        let CheckReport { corruptions, leaks, check_errors, corruptions_fixed, leaks_fixed, .. } =
            self.report;
        Counters { corruptions, leaks, check_errors, corruptions_fixed, leaks_fixed }
    }

    /// Goes back to the numbers of an earlier moment. What was told stays told.
    pub(super) fn restore(&mut self, counters: Counters) {
        let Counters { corruptions, leaks, check_errors, corruptions_fixed, leaks_fixed } = counters;
        let report = &mut self.report;
        (report.corruptions, report.leaks, report.check_errors) = (corruptions, leaks, check_errors);
        (report.corruptions_fixed, report.leaks_fixed) = (corruptions_fixed, leaks_fixed);
    }

    /// What is no longer wrong counts as repaired.
    pub(super) fn note_fixed(&mut self, before: &Counters) {
        let report = &mut self.report;
        report.corruptions_fixed += before.corruptions.saturating_sub(report.corruptions);
        report.leaks_fixed += before.leaks.saturating_sub(report.leaks);
    }

    /// Nothing is counted and nothing is wrong yet, of a file of `file_len` bytes; what was told stays told.
    pub(super) fn start_again(&mut self, file_len: u64) {
        self.file_len = file_len;
        self.references = References::new(self.geometry.clusters_for(file_len), self.geometry.refcount_max());
        self.rebuild = false;
        let report = &mut self.report;
        (report.corruptions, report.leaks, report.check_errors) = (0, 0, 0);
        (report.allocated_clusters, report.fragmented_clusters, report.compressed_clusters) = (0, 0, 0);
    }

    /// Whether everything is to be repaired.
    pub(super) fn repairs_all(&self) -> bool {
        self.repair == Some(Repair::All)
    }

    /// Counts references to every cluster of a range. False if the file does not have it.
    pub(super) fn count(&mut self, offset: u64, len: u64, times: u64) -> bool {
        let (size, bits) = (self.geometry.cluster_size(), self.geometry.cluster_bits);
        if len == 0 {
            return true;
        }
        let end = offset.saturating_add(len);
        // The last cluster may be there in part.
        if end >= self.file_len.saturating_add(size) {
            self.corrupt(times, || {
                format!(
                    "ERROR: counting reference for region exceeding the end of the file by one cluster or \
                     more: offset {offset:#x} size {len:#x}"
                )
            });
            return false;
        }
        for cluster in offset >> bits..=(end - 1) >> bits {
            self.count_cluster(cluster, times);
        }
        true
    }

    #[inline]
    fn count_cluster(&mut self, cluster: u64, times: u64) {
        if cluster >= self.references.len() {
            // One behind the end of the file at most.
            self.references.grow(cluster + 1);
        }
        let over = self.references.add(cluster, times);
        if over > 0 {
            let offset = cluster << self.geometry.cluster_bits;
            self.corrupt(over, || {
                format!(
                    "ERROR: overflow cluster offset={offset:#x}\nUse qemu-img amend to increase the refcount \
                     entry width or qemu-img convert to create a clean copy if the image cannot be opened for \
                     writing"
                )
            });
        }
    }

    /// Counts what an L2 table refers to. Returns the entries that a repair is to take the cluster out of: they
    /// have no data, and the cluster that they keep is not one.
    pub(super) fn count_l2(&mut self, table: &[u8], look: Look) -> Vec<(usize, L2Words)> {
        let mut dropped = Vec::new();
        let mut expected = 0;
        let words = l2_words(table, self.geometry).enumerate().filter(|(_, words)| !words.is_empty());
        for (index, words) in words {
            let damage = bitmap_damage(words, index, self.geometry, self.external);
            match raw_l2(words, self.geometry) {
                RawL2::Compressed { .. } if self.external => {
                    let raw = words.descriptor;
                    self.corrupt(look.times, || {
                        format!("ERROR compressed cluster {index} with data file, entry=0x{raw:x}")
                    });
                }
                RawL2::Compressed { offset, len, copied } => {
                    match damage {
                        Some(damage) => self.corrupt(look.times, || damage),
                        None => self.count_compressed(offset, len, copied, look),
                    };
                }
                RawL2::Standard { offset, reserved, zero } => {
                    if reserved {
                        self.corrupt(look.times, || {
                            format!("ERROR found l2 entry with reserved bits set: {:x}", words.descriptor)
                        });
                    }
                    if let Some(damage) = damage {
                        self.corrupt(look.times, || damage);
                    }
                    // The copied flag tells the first cluster of a data file from none.
                    if offset == 0 && !(self.external && has_copied(words.descriptor)) {
                        continue;
                    }
                    if !self.geometry.is_aligned(offset) && self.judge_unaligned(offset, zero, look) {
                        dropped.push((index, words));
                        continue;
                    }
                    self.count_standard(offset, &mut expected, look);
                }
            }
        }
        dropped
    }

    /// An entry whose cluster does not start where clusters start. Returns whether a repair drops it.
    fn judge_unaligned(&mut self, offset: u64, zero: bool, look: Look) -> bool {
        let repairs = zero && self.repairs_all();
        let (word, what) = match (repairs, zero) {
            (true, _) => ("Repairing", "Preallocated cluster"),
            (false, true) => ("ERROR", "Preallocated cluster"),
            (false, false) => ("ERROR", "Data cluster"),
        };
        let message =
            || format!("{word} offset={offset:x}: {what} is not properly aligned; L2 entry corrupted.");
        match repairs {
            true => self.say(message),
            false => self.corrupt(look.times, message),
        }
        repairs
    }

    #[inline]
    fn count_standard(&mut self, offset: u64, expected: &mut u64, look: Look) {
        if look.active {
            self.report.allocated_clusters += look.times;
            if *expected != 0 && offset != *expected {
                self.report.fragmented_clusters += look.times;
            }
            *expected = offset + self.geometry.cluster_size();
        }
        if !self.external {
            self.count(offset, self.geometry.cluster_size(), look.times);
        }
    }

    fn count_compressed(&mut self, offset: u64, len: u64, copied: bool, look: Look) {
        if copied {
            self.corrupt(look.times, || {
                format!("ERROR: coffset=0x{offset:x}: copied flag must never be set for compressed clusters")
            });
        }
        self.count(offset, len, look.times);
        if look.active {
            self.report.allocated_clusters += look.times;
            self.report.compressed_clusters += look.times;
            // They stand in no order.
            self.report.fragmented_clusters += look.times;
        }
    }
}
