//! Refcounts on disk against the references that were counted, a refcount block at a time.

use super::super::entries::{decode_refcount_table, refcount, set_refcount, without_reserved};
use super::super::geometry::HostOffset;
use super::super::overlap::Metadata;
use super::Checker;
use super::references::CHUNK;
use crate::block::Result;
use crate::block::graph::driver::Repair;
use std::ops::Range;

/// What became of a refcount that is not the number of references.
enum Verdict {
    /// It may be made right.
    Repairing,
    /// Too low.
    Error,
    /// Too high.
    Leaked,
}

/// Judges a refcount that differs.
fn judge(refcount: u64, references: u64, repair: Option<Repair>) -> Verdict {
    match (refcount < references, repair) {
        // Nothing is known to be right about such a refcount block, if there is one.
        (true, Some(Repair::All)) if refcount > 0 => Verdict::Repairing,
        (true, _) => Verdict::Error,
        (false, Some(_)) => Verdict::Repairing,
        (false, None) => Verdict::Leaked,
    }
}

/// As C's `%#x`: no prefix for 0.
fn c_hex(number: u64) -> String {
    if number == 0 { "0".into() } else { format!("{number:#x}") }
}

impl Checker<'_> {
    /// Compares all refcounts, and repairs what `repair` says. Afterwards the references counted are what stands
    /// on disk, if `adopt` is true: copied flags must agree with that.
    pub(super) async fn compare(&mut self, repair: Option<Repair>, adopt: bool) -> Result<()> {
        // The header is there in any case.
        self.end = 1;
        self.unknown.clear();
        let per_block = self.image.geometry.block_entries();
        let (clusters, table) = (self.tally.references.len(), self.image.refcounts.table());
        for index in 0..clusters.div_ceil(per_block) {
            let raw = table.get(index as usize).copied().unwrap_or(0);
            let covered = index * per_block..((index + 1) * per_block).min(clusters);
            match decode_refcount_table(without_reserved(raw), self.image.geometry) {
                Ok(Some(block)) => {
                    self.count_work();
                    self.compare_block(block, covered, repair, adopt).await?;
                }
                Ok(None) => self.compare_nothing(covered, adopt),
                Err(what) => self.cannot_compare(covered, raw, what, index),
            }
        }
        Ok(())
    }

    /// Clusters without a refcount block.
    fn compare_nothing(&mut self, clusters: Range<u64>, adopt: bool) {
        let mut at = clusters.start;
        while at < clusters.end {
            let behind = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            if self.tally.references.counts(at).is_some() {
                (at..behind).for_each(|cluster| {
                    self.compare_cluster(cluster, 0, None, adopt);
                });
            }
            at = behind;
        }
    }

    async fn compare_block(
        &mut self,
        block: HostOffset,
        clusters: Range<u64>,
        repair: Option<Repair>,
        adopt: bool,
    ) -> Result<()> {
        let (order, size) = (self.image.geometry.refcount_order, self.image.geometry.cluster_size());
        let Ok(bytes) = self.tables.read(block.0, size).await else {
            self.cannot_read(clusters, "Input/output error");
            return Ok(());
        };
        let differs = match self.tally.references.equal_to(bytes, order, clusters.clone()) {
            Ok(used) => {
                self.end = self.end.max(used);
                return Ok(());
            }
            Err(first) => first,
        };
        let mut bytes = bytes.to_vec();
        let mut changed = false;
        for (cluster, index) in clusters.clone().zip(0..).skip((differs - clusters.start) as usize) {
            let old = refcount(&bytes, order, index);
            if let Some(new) = self.compare_cluster(cluster, old, repair, adopt) {
                set_refcount(&mut bytes, order, index, new);
                changed = true;
            }
        }
        if changed {
            self.write_metadata(block, &bytes, Some(Metadata::RefcountBlock)).await?;
            self.image.refcounts.blocks.forget(block, size);
        }
        Ok(())
    }

    /// Compares one. Returns what it is to become.
    fn compare_cluster(
        &mut self,
        cluster: u64,
        refcount: u64,
        repair: Option<Repair>,
        adopt: bool,
    ) -> Option<u64> {
        let references = self.tally.references.get(cluster);
        if refcount > 0 || references > 0 {
            self.end = self.end.max(cluster + 1);
        }
        if refcount == references {
            return None;
        }
        self.tally.rebuild |= refcount == 0;
        let verdict = judge(refcount, references, repair);
        let report = &mut self.tally.report;
        let (word, counter) = match verdict {
            Verdict::Repairing if refcount < references => ("Repairing", &mut report.corruptions_fixed),
            Verdict::Repairing => ("Repairing", &mut report.leaks_fixed),
            Verdict::Error => ("ERROR", &mut report.corruptions),
            Verdict::Leaked => ("Leaked", &mut report.leaks),
        };
        *counter += 1;
        self.tally.say(|| format!("{word} cluster {cluster} refcount={refcount} reference={references}"));
        match verdict {
            Verdict::Repairing => return Some(references),
            _ if adopt => self.tally.references.set(cluster, refcount),
            _ => {}
        }
        None
    }

    /// Clusters whose entry in the refcount table makes no sense.
    fn cannot_compare(&mut self, clusters: Range<u64>, raw: u64, what: &str, index: u64) {
        let offset = without_reserved(raw);
        if what == "unaligned" && !std::mem::replace(&mut self.told_corrupt, true) {
            self.tally.say(|| {
                format!(
                    "qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned (reftable index: {}); \
                     further non-fatal corruption events will be suppressed",
                    c_hex(index)
                )
            });
        }
        self.cannot_read(clusters, "Input/output error");
    }

    fn cannot_read(&mut self, clusters: Range<u64>, why: &str) {
        for cluster in clusters.clone() {
            self.tally.report.check_errors += 1;
            self.tally.say(|| format!("Can't get refcount for cluster {cluster}: {why}"));
        }
        self.unknown.push(clusters);
    }
}
