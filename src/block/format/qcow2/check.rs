//! The consistency check: counts in memory who uses each cluster, and compares with the refcounts on disk.
//!
//! Reports only. Verdicts, counts and messages are those of qemu-img, so that scripts which match on them go on
//! working. The count is bounded by the length of the file: a reference behind its end is an error, not memory.

use super::driver::Qcow2;
use super::entries::{RawL2, bitmap_damage, decode_refcount_table, l2_words, raw_l1, raw_l2};
use super::extensions::{BitmapsExtension, be32, be64};
use super::geometry::{ENTRY, HostCluster, HostOffset};
use crate::block::graph::Driver;
use crate::block::graph::driver::{Check, CheckReport};
use crate::block::{Result, error::Kind};
use async_trait::async_trait;

/// More findings than these are counted but not told: an image must not fill our memory.
const MAX_MESSAGES: usize = 100_000;
/// Autoclear: the bitmaps are valid.
const BITMAPS_VALID: u64 = 1;
/// Most bitmaps of an image, as QEMU has it.
const MAX_BITMAPS: u32 = 65535;
/// Bytes of a bitmap directory entry before its name.
const BITMAP_ENTRY: u64 = 24;
/// A directory or a table of bitmaps that is longer than this is not followed.
const MAX_BITMAP_TABLE: u64 = 64 << 20;

#[async_trait(?Send)]
impl Check for Qcow2 {
    async fn check(&self) -> Result<CheckReport> {
        self.close().await?;
        let mut checker = Checker::new(self);
        checker.count_all().await?;
        checker.compare().await;
        checker.check_copied_flags().await;
        Ok(checker.report)
    }
}

struct Checker<'a> {
    image: &'a Qcow2,
    report: CheckReport,
    /// References to each cluster of the file.
    references: Vec<u32>,
    file_len: u64,
}

impl<'a> Checker<'a> {
    fn new(image: &'a Qcow2) -> Checker<'a> {
        let file_len = image.file.size();
        let clusters = image.geometry.clusters_for(file_len);
        let total_clusters = image.geometry.clusters_for(image.size.get());
        let report = CheckReport { total_clusters, ..CheckReport::default() };
        Checker { image, report, references: vec![0; clusters as usize], file_len }
    }

    fn corrupt(&mut self, message: String) {
        self.report.corruptions += 1;
        self.say(message);
    }

    fn say(&mut self, message: String) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message);
        }
    }

    /// Counts one reference to every cluster of a range. False if the file does not have it.
    fn count(&mut self, offset: u64, len: u64) -> bool {
        let size = self.image.geometry.cluster_size();
        if len == 0 {
            return true;
        }
        // The last cluster may end before its end.
        if offset.saturating_add(len).saturating_sub(self.file_len) >= size
            && offset.saturating_add(len) > self.file_len
        {
            self.corrupt(format!(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                 offset {offset:#x} size {len:#x}"
            ));
            return false;
        }
        for cluster in offset / size..=(offset + len - 1) / size {
            self.count_cluster(cluster);
        }
        true
    }

    fn count_cluster(&mut self, cluster: u64) {
        let max = self.image.geometry.refcount_max().min(u64::from(u32::MAX)) as u32;
        // One cluster behind the end of the file at most, as `count` saw to.
        if cluster as usize >= self.references.len() {
            self.references.resize(cluster as usize + 1, 0);
        }
        let count = &mut self.references[cluster as usize];
        if *count == max {
            let offset = cluster << self.image.geometry.cluster_bits;
            self.corrupt(format!("ERROR: overflow cluster offset={offset:#x}"));
            let advice = "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a \
                          clean copy if the image cannot be opened for writing";
            self.say(advice.into());
            return;
        }
        *count += 1;
    }

    /// Everything that refers to clusters.
    async fn count_all(&mut self) -> Result<()> {
        let image = self.image;
        self.count(0, image.geometry.cluster_size());
        let l1 = image.active.l1.borrow().clone();
        self.count_view(image.active.offset.get(), &l1, true).await?;
        let snapshots = image.snapshots.borrow().clone();
        for snapshot in &snapshots {
            let len = u64::from(snapshot.l1_entries) * ENTRY;
            match self.read_table(snapshot.l1_offset.0, len).await {
                Some(l1) => self.count_view(snapshot.l1_offset, &l1, false).await?,
                None => self.report.check_errors += 1,
            }
        }
        let table = image.snapshot_table.borrow().clone();
        self.count(table.start, table.end - table.start);
        let table = image.refcounts.table_range();
        self.count(table.start, table.end - table.start);
        if image.autoclear.get() & BITMAPS_VALID != 0 {
            self.count_bitmaps().await;
        }
        self.count_refcount_blocks();
        Ok(())
    }

    /// An L1 table and all below it. `active`: statistics are about this one.
    async fn count_view(&mut self, offset: HostOffset, l1: &[u64], active: bool) -> Result<()> {
        self.count(offset.0, l1.len() as u64 * ENTRY);
        for &raw in l1.iter().filter(|&&raw| raw != 0) {
            let entry = raw_l1(raw);
            if entry.reserved {
                self.corrupt(format!("ERROR found L1 entry with reserved bits set: {raw:x}"));
            }
            self.count(entry.offset, self.image.geometry.cluster_size());
            if !self.image.geometry.is_aligned(entry.offset) {
                self.corrupt(format!(
                    "ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted",
                    entry.offset
                ));
            }
            match self.read_table(entry.offset, self.image.geometry.cluster_size()).await {
                Some(l2) => self.count_l2(&l2, active),
                None => self.report.check_errors += 1,
            }
        }
        Ok(())
    }

    fn count_l2(&mut self, l2: &[u64], active: bool) {
        let mut expected = 0;
        for (index, words) in l2_words(l2, self.image.geometry).enumerate() {
            let (raw, damage) = (words.descriptor, bitmap_damage(words, index, self.image.geometry));
            let damaged = damage.is_some();
            damage.into_iter().for_each(|what| self.corrupt(what));
            match raw_l2(raw, self.image.geometry) {
                RawL2::Compressed { .. } if damaged => {}
                RawL2::Compressed { offset, len, copied } => {
                    self.count_compressed(offset, len, copied, active)
                }
                RawL2::Standard { offset, reserved, zero } => {
                    if reserved {
                        self.corrupt(format!("ERROR found l2 entry with reserved bits set: {raw:x}"));
                    }
                    if offset != 0 {
                        self.count_standard(offset, zero);
                    }
                    if offset != 0 && active {
                        self.report.allocated_clusters += 1;
                        self.report.fragmented_clusters += u64::from(expected != 0 && offset != expected);
                        expected = offset + self.image.geometry.cluster_size();
                    }
                }
            }
        }
    }

    fn count_standard(&mut self, offset: u64, zero: bool) {
        if !self.image.geometry.is_aligned(offset) {
            let what = if zero { "Preallocated cluster" } else { "Data cluster" };
            let message =
                format!("ERROR offset={offset:x}: {what} is not properly aligned; L2 entry corrupted.");
            self.corrupt(message);
        }
        self.count(offset, self.image.geometry.cluster_size());
    }

    fn count_compressed(&mut self, offset: u64, len: u64, copied: bool, active: bool) {
        if copied {
            let what = "copied flag must never be set for compressed clusters";
            self.corrupt(format!("ERROR: coffset=0x{offset:x}: {what}"));
        }
        self.count(offset, len);
        if active {
            self.report.allocated_clusters += 1;
            self.report.compressed_clusters += 1;
            // They stand in no order.
            self.report.fragmented_clusters += 1;
        }
    }

    /// The bitmap directory, the bitmaps' tables and their clusters (specification: "Bitmaps").
    async fn count_bitmaps(&mut self) {
        let found = BitmapsExtension::find(&self.image.header.borrow().extensions);
        let Some(bitmaps) = found else { return };
        let (offset, len) = (bitmaps.directory_offset, bitmaps.directory_size.min(MAX_BITMAP_TABLE));
        if !self.count(offset, bitmaps.directory_size) {
            return;
        }
        let Ok(directory) = self.image.file.read_bytes(offset, len as usize).await else {
            self.report.check_errors += 1;
            return;
        };
        let mut rest = &directory[..];
        for _ in 0..bitmaps.count.min(MAX_BITMAPS) {
            if (rest.len() as u64) < BITMAP_ENTRY {
                return;
            }
            let (table, entries) = (be64(rest), u64::from(be32(&rest[8..])));
            self.count_bitmap(table, (entries * ENTRY).min(MAX_BITMAP_TABLE)).await;
            let name = usize::from(rest[18]) << 8 | usize::from(rest[19]);
            let len = BITMAP_ENTRY as usize + name + be32(&rest[20..]) as usize;
            rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
    }

    async fn count_bitmap(&mut self, table: u64, len: u64) {
        if !self.count(table, len) {
            return;
        }
        match self.read_table(table, len).await {
            Some(entries) => {
                for raw in entries {
                    let offset = raw_l1(raw).offset;
                    if offset != 0 {
                        self.count(offset, self.image.geometry.cluster_size());
                    }
                }
            }
            None => self.report.check_errors += 1,
        }
    }

    fn count_refcount_blocks(&mut self) {
        let geometry = self.image.geometry;
        for (index, raw) in self.image.refcounts.table().into_iter().enumerate() {
            match decode_refcount_table(raw, geometry) {
                Ok(None) => {}
                Ok(Some(offset)) => self.count_refcount_block(index, geometry.cluster_of(offset).0),
                Err("reserved bits set") => {
                    self.corrupt(format!("ERROR refcount table entry {index} has reserved bits set"));
                }
                Err("out of range") => self.corrupt(format!("ERROR refcount block {index} is outside image")),
                Err(_) => self.corrupt(format!(
                    "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
                )),
            }
        }
    }

    fn count_refcount_block(&mut self, index: usize, cluster: u64) {
        if cluster >= self.references.len() as u64 {
            return self.corrupt(format!("ERROR refcount block {index} is outside image"));
        }
        self.count(cluster << self.image.geometry.cluster_bits, self.image.geometry.cluster_size());
        let count = self.references[cluster as usize];
        if count != 1 {
            self.corrupt(format!("ERROR refcount block {index} refcount={count}"));
        }
    }

    /// Refcounts on disk against references.
    async fn compare(&mut self) {
        // The header is there in any case.
        let mut end = 1;
        for cluster in 0..self.references.len() {
            let references = u64::from(self.references[cluster]);
            let refcount = match self.image.refcounts.get_anyway(HostCluster(cluster as u64)).await {
                Ok(refcount) => refcount,
                Err(error) => {
                    self.report.check_errors += 1;
                    let why =
                        if error.kind() == Kind::Corrupt { "Input/output error" } else { error.message() };
                    self.say(format!("Can't get refcount for cluster {cluster}: {why}"));
                    continue;
                }
            };
            if refcount > 0 || references > 0 {
                end = cluster as u64 + 1;
            }
            if refcount == references {
                continue;
            }
            let (word, counter) = if refcount < references {
                ("ERROR", &mut self.report.corruptions)
            } else {
                ("Leaked", &mut self.report.leaks)
            };
            *counter += 1;
            let message = format!("{word} cluster {cluster} refcount={refcount} reference={references}");
            self.say(message);
        }
        self.report.image_end_offset = end << self.image.geometry.cluster_bits;
    }

    /// The copied flags of the live disk must say what the refcounts say.
    async fn check_copied_flags(&mut self) {
        let image = self.image;
        let l1 = image.active.l1.borrow().clone();
        for (index, &raw) in l1.iter().enumerate() {
            let entry = raw_l1(raw);
            if entry.offset == 0 {
                continue;
            }
            let Some(refcount) = self.refcount(entry.offset).await else { continue };
            if (refcount == 1) != entry.copied {
                self.corrupt(format!(
                    "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={raw:x} refcount={refcount}"
                ));
            }
            if let Some(l2) = self.read_table(entry.offset, image.geometry.cluster_size()).await {
                self.check_copied_data(&l2).await;
            }
        }
    }

    async fn check_copied_data(&mut self, l2: &[u64]) {
        for words in l2_words(l2, self.image.geometry) {
            let raw = words.descriptor;
            let RawL2::Standard { offset, .. } = raw_l2(raw, self.image.geometry) else { continue };
            if offset == 0 {
                continue;
            }
            let Some(refcount) = self.refcount(offset).await else { continue };
            if (refcount == 1) != super::entries::has_copied(raw) {
                self.corrupt(format!(
                    "ERROR OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={refcount}"
                ));
            }
        }
    }

    async fn refcount(&self, offset: u64) -> Option<u64> {
        self.image.refcounts.get_anyway(self.image.geometry.cluster_of(HostOffset(offset))).await.ok()
    }

    /// Entries of a table, whose length was checked.
    async fn read_table(&self, offset: u64, len: u64) -> Option<Vec<u64>> {
        if len == 0 {
            return Some(Vec::new());
        }
        let bytes = self.image.file.read_bytes(offset, len as usize).await.ok()?;
        Some(bytes.chunks_exact(ENTRY as usize).map(be64).collect())
    }
}
