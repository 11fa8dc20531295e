//! The snapshot table: read anew, entry by entry, so that damage to it is a finding and not the end.
//!
//! A repair drops what is too much (entries, extra data) and completes entries that lack fields of version 3. It
//! writes the new table last, to clusters that are free by the refcounts as they were made right before, and
//! switches to it by one change of the header.

use super::super::alloc::Reserved;
use super::super::geometry::{ENTRY, HostOffset};
use super::super::header::{Header, MAX_SNAPSHOTS};
use super::super::overlap::Metadata;
use super::super::refcount::Run;
use super::super::snapshot::{self, MAX_EXTRA, MAX_TABLE, RawEntry, Snapshot};
use super::Checker;
use crate::block::{Error, Kind, Result};
use std::ops::Range;

/// So many places for a new table are tried.
const MOST_PASSED_OVER: usize = 1000;

/// What stands in the snapshot table.
#[derive(Default)]
pub(super) struct Table {
    /// How much is wrong with it.
    corruptions: u64,
    /// Its clusters are among those that were counted.
    pub(super) counted: bool,
}

/// Why the table cannot be read, and what a repair would do.
fn too_large(what: &str, cure: &str) -> Error {
    Error::new(
        Kind::TooLarge,
        format!("ERROR {what}\nYou can force-remove {cure} with qemu-img check -r all"),
    )
}

/// The table with all fields that version 3 demands. One at a time: names may take much.
fn encode_completed(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
    let mut table = Vec::new();
    for snapshot in snapshots {
        table.extend(snapshot::encode(&[snapshot.completed()])?);
    }
    Ok(table)
}

impl Checker<'_> {
    /// Reads the table, as a repair would leave it. What the image knows of its snapshots comes from here.
    ///
    /// # Errors
    /// [`Kind::InvalidFormat`] and [`Kind::TooLarge`] where the table cannot be read and may not be repaired.
    pub(super) async fn check_snapshot_table(&mut self) -> Result<()> {
        let header = self.image.header.borrow().clone();
        let start = header.snapshots_offset.0;
        let count = self.snapshots_to_read(&header)?;
        let mut at = start;
        let mut snapshots = Vec::new();
        for index in 0..count {
            let entry = RawEntry::read(&self.image.file, at).await?;
            self.check_extra_data(index, entry.extra_len)?;
            if at + entry.len - start > MAX_TABLE {
                self.drop_entries_behind(count - index)?;
                break;
            }
            at += entry.len;
            snapshots.push(entry.snapshot(&header));
        }
        if header.is_v3() {
            self.check_completeness(&snapshots);
        }
        self.take_snapshots(snapshots, &header, start..at);
        Ok(())
    }

    fn snapshots_to_read(&mut self, header: &Header) -> Result<u32> {
        let over = header.snapshot_count.saturating_sub(MAX_SNAPSHOTS);
        if over > 0 && !self.tally.repairs_all() {
            return Err(too_large("snapshot table too large", &format!("all {over} overhanging snapshots")));
        }
        if over > 0 {
            self.tally.say(|| format!("Discarding {over} overhanging snapshots"));
            self.snapshots.corruptions += u64::from(over);
        }
        match header.check_snapshot_table(header.snapshot_count - over) {
            Ok(()) => Ok(header.snapshot_count - over),
            Err(_) => Err(Error::new(Kind::InvalidFormat, "ERROR snapshot table offset invalid")),
        }
    }

    fn check_extra_data(&mut self, index: u32, len: u32) -> Result<()> {
        if len as usize <= MAX_EXTRA {
            return Ok(());
        }
        let what = format!("too much extra metadata in snapshot table entry {index}");
        if !self.tally.repairs_all() {
            let what = format!("failed to read the snapshot table: T{}", &what[1..]);
            return Err(too_large(&what, "this extra metadata"));
        }
        self.tally.say(|| format!("Discarding {what} ({len} > {MAX_EXTRA})"));
        self.snapshots.corruptions += 1;
        Ok(())
    }

    fn drop_entries_behind(&mut self, count: u32) -> Result<()> {
        if !self.tally.repairs_all() {
            let what = "failed to read the snapshot table: Snapshot table is too big";
            return Err(too_large(what, &format!("all {count} overhanging snapshots")));
        }
        self.tally.say(|| format!("Discarding {count} overhanging snapshots (snapshot table is too big)"));
        self.snapshots.corruptions += u64::from(count);
        Ok(())
    }

    fn check_completeness(&mut self, snapshots: &[Snapshot]) {
        let word = if self.tally.repairs_all() { "Repairing" } else { "ERROR" };
        for (index, snapshot) in snapshots.iter().enumerate() {
            if !snapshot.is_complete() {
                self.snapshots.corruptions += 1;
                self.tally.say(|| format!("{word} snapshot table entry {index} is incomplete"));
            }
        }
    }

    fn take_snapshots(&self, snapshots: Vec<Snapshot>, header: &Header, table: Range<u64>) {
        let valid = snapshots.iter().filter(|snapshot| snapshot.check_l1(header).is_ok());
        let l1_tables = valid.map(|snapshot| {
            snapshot.l1_offset.0..snapshot.l1_offset.0 + u64::from(snapshot.l1_entries) * ENTRY
        });
        self.image.overlap.set_inactive_l1(l1_tables);
        let in_file = table.start..table.end.min(self.tally.file_len).max(table.start);
        self.image.overlap.set_range(Metadata::SnapshotTable, in_file);
        self.image.snapshots.replace(snapshots);
        self.image.snapshot_table.replace(table);
    }

    /// Writes the table as it is to be, if it is to be different.
    pub(super) async fn restore_snapshot_table(&mut self) -> Result<()> {
        let corruptions = self.snapshots.corruptions;
        if !self.tally.repairs_all() {
            self.tally.report.corruptions += corruptions;
            return Ok(());
        }
        if corruptions > 0 {
            self.write_snapshot_table().await?;
            self.tally.report.corruptions_fixed += corruptions;
        }
        Ok(())
    }

    async fn write_snapshot_table(&self) -> Result<()> {
        let image = self.image;
        let count = image.snapshots.borrow().len() as u32;
        let table = encode_completed(&image.snapshots.borrow())?;
        let room = match table.len() as u64 {
            0 => None,
            len => Some(self.write_to_free_space(&table, image.geometry.clusters_for(len)).await?),
        };
        let offset = room.as_ref().map_or(HostOffset(0), |room| image.geometry.start_of(room.run.first));
        let switch = |header: &mut Header| {
            header.snapshots_offset = offset;
            header.snapshot_count = count;
        };
        image.change_header_durably(switch).await?;
        if let Some(room) = room {
            room.keep();
        }
        let new = offset.0..offset.0 + table.len() as u64;
        image.overlap.set_range(Metadata::SnapshotTable, new.clone());
        self.give_up_old_table(image.snapshot_table.replace(new)).await
    }

    /// Writes to clusters that nothing refers to; they are counted, and all of it is durable.
    async fn write_to_free_space(&self, bytes: &[u8], clusters: u64) -> Result<Reserved<'_>> {
        let room = self.reserve_clear(clusters).await?;
        self.image.settle().await?;
        let offset = self.image.geometry.start_of(room.run.first);
        self.image.file.write_bytes(offset.0, bytes).await?;
        self.image.file.flush().await?;
        Ok(room)
    }

    /// Takes clusters that follow one another where no table stands, not even one that is damaged: the old one is
    /// in use until the switch.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] where metadata claims place after place, even behind the end of the file.
    async fn reserve_clear(&self, clusters: u64) -> Result<Reserved<'_>> {
        let (geometry, mut passed_over) = (self.image.geometry, Vec::new());
        let mut room = self.image.reserve(clusters).await?;
        while passed_over.len() < MOST_PASSED_OVER {
            let offset = geometry.start_of(room.run.first);
            let clear = self.image.overlap.check(offset, clusters << geometry.cluster_bits, None).is_ok();
            if clear && room.run.count >= clusters {
                return Ok(room);
            }
            passed_over.push(room);
            // Behind all that is counted: only a lie has a table there.
            room = self.image.reserve_contiguous(clusters).await?;
        }
        Err(Error::new(Kind::NoSpace, "there is no place for the snapshot table"))
    }

    async fn give_up_old_table(&self, old: Range<u64>) -> Result<()> {
        if self.snapshots.counted && !old.is_empty() {
            let first = self.image.geometry.cluster_of(HostOffset(old.start));
            let count = self.image.geometry.clusters_for(old.end - old.start);
            self.image.frees.push_written([Run { first, count }.into()]);
        }
        self.image.settle().await
    }
}
