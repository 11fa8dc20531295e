//! The copied flags of the live disk: set where the refcount is 1, and nowhere else. A flag that is set wrongly
//! lets a write change what a snapshot shows.

use super::super::entries::{L2Words, RawL2, has_copied, l2_words, raw_l1, raw_l2, with_copied};
use super::super::geometry::{ENTRY, Geometry, HostCluster, HostOffset};
use super::super::overlap::Metadata;
use super::Checker;
use super::references::References;
use crate::block::Result;
use crate::block::graph::driver::Repair;

/// An L2 entry whose flag is wrong.
struct WrongFlag {
    index: usize,
    raw: u64,
    refcount: u64,
}

/// The cluster of an entry that has a copied flag.
fn flagged_cluster(words: L2Words, geometry: Geometry) -> Option<HostCluster> {
    match raw_l2(words, geometry) {
        RawL2::Standard { offset, .. } if offset != 0 => Some(geometry.cluster_of(HostOffset(offset))),
        _ => None,
    }
}

/// Whether an entry needs no second look.
#[inline]
fn is_right(words: L2Words, geometry: Geometry, refcounts: &References) -> bool {
    let Some(cluster) = flagged_cluster(words, geometry) else { return true };
    cluster.0 < refcounts.len() && (refcounts.get(cluster.0) == 1) == has_copied(words.descriptor)
}

impl Checker<'_> {
    /// Checks all flags, and corrects them if that is asked for and safe.
    pub(super) async fn check_copied_flags(&mut self) -> Result<()> {
        let report = &self.tally.report;
        let repair = match self.tally.repair {
            Some(Repair::All) => true,
            Some(Repair::Leaks) => report.check_errors + report.corruptions + report.leaks == 0,
            None => false,
        };
        let l1 = self.image.active.l1.borrow().clone();
        for (index, &raw) in l1.iter().enumerate() {
            let offset = raw_l1(raw).offset;
            let cluster = self.image.geometry.cluster_of(HostOffset(offset));
            if offset == 0 {
                continue;
            }
            // A table that does not start where clusters start is none: the count said so. It stays as it is.
            let repair = repair && self.image.geometry.is_aligned(offset);
            let Some(refcount) = self.refcount(cluster).await else { continue };
            if (refcount == 1) != has_copied(raw) {
                self.tell_flag(repair, || {
                    format!("OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={raw:x} refcount={refcount}")
                });
                if repair {
                    self.correct_l1(index, with_copied(raw, refcount == 1)).await?;
                }
            }
            // Clusters of a data file have no refcounts.
            if !self.image.has_data_file() {
                self.check_table(HostOffset(offset), repair).await?;
            }
        }
        Ok(())
    }

    async fn check_table(&mut self, table: HostOffset, repair: bool) -> Result<()> {
        self.count_work();
        let (geometry, refcounts) = (self.image.geometry, &self.tally.references);
        let Ok(bytes) = self.tables.read(table.0, geometry.cluster_size()).await else { return Ok(()) };
        let suspects: Vec<(usize, L2Words)> = l2_words(bytes, geometry)
            .enumerate()
            .filter(|&(_, words)| !is_right(words, geometry, refcounts))
            .collect();
        let mut wrong = Vec::new();
        for (index, words) in suspects {
            let raw = words.descriptor;
            let Some(cluster) = flagged_cluster(words, geometry) else { continue };
            let Some(refcount) = self.refcount(cluster).await else { continue };
            if (refcount == 1) != has_copied(raw) {
                wrong.push(WrongFlag { index, raw, refcount });
            }
        }
        for WrongFlag { raw, refcount, .. } in &wrong {
            self.tell_flag(repair, || {
                format!("OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={refcount}")
            });
        }
        if repair { self.correct_l2(table, &wrong).await } else { Ok(()) }
    }

    fn tell_flag(&mut self, repair: bool, what: impl FnOnce() -> String) {
        let report = &mut self.tally.report;
        match repair {
            true => report.corruptions_fixed += 1,
            false => report.corruptions += 1,
        }
        let word = if repair { "Repairing" } else { "ERROR" };
        self.tally.say(|| format!("{word} {}", what()));
    }

    async fn correct_l1(&mut self, index: usize, raw: u64) -> Result<()> {
        let at = self.image.active.offset.get().add(index as u64 * ENTRY);
        self.write_metadata(at, &raw.to_be_bytes(), Some(Metadata::ActiveL1)).await?;
        self.image.active.l1.borrow_mut()[index] = raw;
        Ok(())
    }

    async fn correct_l2(&mut self, table: HostOffset, wrong: &[WrongFlag]) -> Result<()> {
        let size = self.image.geometry.cluster_size();
        if wrong.is_empty() {
            return Ok(());
        }
        let mut bytes = self.tables.read(table.0, size).await?.to_vec();
        for WrongFlag { index, raw, refcount } in wrong {
            let at = index * self.image.geometry.l2_entry() as usize;
            let raw = with_copied(*raw, *refcount == 1);
            bytes[at..at + ENTRY as usize].copy_from_slice(&raw.to_be_bytes());
        }
        self.write_metadata(table, &bytes, Some(Metadata::ActiveL2)).await?;
        self.image.l2.forget(table, size);
        Ok(())
    }

    /// The refcount of a cluster on disk, if it can be known.
    async fn refcount(&self, cluster: HostCluster) -> Option<u64> {
        if cluster.0 >= self.tally.references.len() {
            return self.image.refcounts.get_anyway(cluster).await.ok();
        }
        let next = self.unknown.partition_point(|range| range.end <= cluster.0);
        let unknown = self.unknown.get(next).is_some_and(|range| range.start <= cluster.0);
        (!unknown).then(|| self.tally.references.get(cluster.0))
    }
}
