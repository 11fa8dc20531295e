//! Changing which trees an image has: the live disk's and the snapshots', all in one switch of the header.
//!
//! A *tree* is an L1 table, the L2 tables that it names and the clusters that these name. A snapshot that comes
//! or goes changes the refcounts of a whole tree, and with them the copied flags of the live one: a flag beside
//! a count of 2 is an error to `check`, and worse, a promise to a writer that is no longer true. Changed in
//! place, step by step, refcounts and flags would contradict each other in between. So nothing is changed in
//! place:
//!
//! ```text
//!   old   header ─▶ L1 ─▶ L2 tables          new   header ─▶ L1' ─▶ L2 tables, copies where a flag changes
//!              ├──▶ refcount table, blocks              ├──▶ refcount table', blocks', copies where a count changes
//!              └──▶ snapshot table ─▶ …                 └──▶ snapshot table' ─▶ …
//! ```
//!
//! 1. All that is in memory is written and flushed.
//! 2. Copies are made in clusters that neither the old nor the new refcounts have in use; see
//!    [`super::shadow`] for the counts. Then a flush.
//! 3. One sector of the header switches size, L1 table, refcount table and snapshot table. Then a flush.
//! 4. Only then memory follows, and what just the old trees used is free: its counts fell with the switch.
//!
//! Whoever dies before step 3 leaves the old image, without even a leak; after it, the new one. No image that is
//! in between ever stands in the file, and version 2, which has no dirty bit, is as safe as version 3. What it
//! costs: L2 tables with flags that change and refcount blocks are written anew (160 MiB of a full disk of
//! 1 TiB), sequentially, which is what changing them in place would write in scattered order; their old
//! clusters are free afterwards. A snapshot of a disk that did not change since the last one finds no flags to
//! clear and copies refcount blocks alone.
//!
//! If the last flush fails, the header is switched back (if that fails too, memory follows the file), and
//! nothing changes before a flush has succeeded: nobody knows which of both a power failure would leave.

use super::driver::Qcow2;
use super::entries::{L1Entry, without_copied};
use super::geometry::{HostCluster, HostOffset};
use super::header::Header;
use super::image::note_metadata;
use super::shadow::{Change, Counts, Shadow};
use super::snapshot::{self, Snapshot};
use crate::block::graph::driver::SnapshotInfo;
use crate::block::{Error, Kind, Result};
use futures_util::future::try_join_all;
use std::collections::VecDeque;
use std::ops::Range;

/// L2 tables are read and written in batches of this many bytes.
const BATCH: u64 = 4 << 20;
/// L2 tables that are read at once.
const MAX_READS: u64 = 64;

/// What an image is to become.
pub(super) struct Plan {
    /// L1 entries whose references go.
    pub(super) removed: Vec<u64>,
    /// L1 entries that get one more reference each.
    pub(super) added: Vec<u64>,
    /// The live L1 table.
    pub(super) live: Vec<u64>,
    /// Size of the live disk.
    pub(super) size: u64,
    /// Snapshots that stay.
    pub(super) kept: Vec<Snapshot>,
    /// Snapshots that go.
    pub(super) dropped: Vec<Snapshot>,
    /// A snapshot that comes, of the live disk and of these L1 entries behind it.
    pub(super) new: Option<(SnapshotInfo, Vec<u64>)>,
    /// The space of what is free then goes back to the host: it is withheld until somebody gives it back.
    pub(super) punch: bool,
}

/// New tables in the file that nothing refers to yet.
struct Tables {
    live: Vec<u64>,
    live_offset: HostOffset,
    size: u64,
    snapshots: Vec<Snapshot>,
    snapshot_table: Range<u64>,
    counts: Counts,
}

impl Plan {
    /// Leaves out what goes and comes again: tables that both trees share.
    fn cancel(&mut self) {
        for (gone, come) in self.removed.iter_mut().zip(&mut self.added) {
            if without_copied(*gone) == without_copied(*come) {
                (*gone, *come) = (0, 0);
            }
        }
    }
}

impl Qcow2 {
    /// Carries out a plan, or leaves everything as it is. No request is in flight.
    pub(super) async fn switch_trees(&self, mut plan: Plan) -> Result<()> {
        self.prepare_change().await?;
        self.settle().await?;
        plan.cancel();
        let _tables = self.tables.lock().await;
        let _writing = self.writing.lock().await;
        let (mut shadow, punch) = (Shadow::new(self), plan.punch);
        // First what goes, so that no count is higher in between than before and after.
        self.count_tree(&mut shadow, &plan.removed, Change::Remove).await?;
        let freed = shadow.take_freed();
        self.count_tree(&mut shadow, &plan.added, Change::Add).await?;
        let tables = self.write_tables(&mut shadow, plan).await?;
        self.file.flush().await?;
        let durable = self.switch(&tables).await?;
        self.adopt(shadow, tables);
        self.refcounts.withheld.add(&freed, punch);
        durable
    }

    /// Changes the counts of all that a tree refers to.
    async fn count_tree(&self, shadow: &mut Shadow<'_>, l1: &[u64], change: Change) -> Result<()> {
        let mut walk = Walk::new(self, l1);
        while let Some(table) = walk.next().await? {
            shadow.count(self.geometry.cluster_of(table.offset), change).await?;
            // Clusters of a data file are not counted.
            if !self.has_data_file() {
                shadow.count_table(&table.bytes, change).await?;
            }
        }
        Ok(())
    }

    async fn write_tables(&self, shadow: &mut Shadow<'_>, plan: Plan) -> Result<Tables> {
        let holders = if plan.new.is_some() { 2 } else { 1 };
        // Clusters of a data file have no counts, and their flags never change.
        let mut live = match self.has_data_file() {
            true => plan.live,
            false => self.relink(shadow, plan.live, holders).await?,
        };
        for raw in &mut live {
            *raw = self.flagged(shadow, *raw).await?;
        }
        let live_offset = self.write_l1(shadow, &live).await?;
        let mut snapshots = plan.kept;
        if let Some((info, behind)) = plan.new {
            let mut l1 = live[..self.geometry.l1_entries_for(plan.size) as usize].to_vec();
            l1.extend(behind);
            let offset = self.write_l1(shadow, &l1).await?;
            snapshots.push(Snapshot::new(info, offset, l1.len() as u32, plan.size)?);
        }
        let snapshot_table = self.write_snapshot_table(shadow, &snapshots).await?;
        shadow.give_up(self.active.range()).await?;
        let old_table = self.snapshot_table.borrow().clone();
        shadow.give_up(old_table).await?;
        for snapshot in &plan.dropped {
            shadow.give_up(snapshot.l1_range()).await?;
        }
        let counts = shadow.write().await?;
        Ok(Tables { live, live_offset, size: plan.size, snapshots, snapshot_table, counts })
    }

    /// The live L1 table with copies of all L2 tables in which a copied flag is not what it must be. `holders`
    /// L1 tables refer to a copy; they refer to the table that was copied no more.
    async fn relink(&self, shadow: &mut Shadow<'_>, mut live: Vec<u64>, holders: u64) -> Result<Vec<u64>> {
        let old = live.clone();
        let mut walk = Walk::new(self, &old);
        let mut copies: Vec<Table> = Vec::new();
        while let Some(mut table) = walk.next().await? {
            if shadow.set_flags(&mut table.bytes).await? {
                copies.push(table);
            }
            if copies.len() as u64 >= Walk::batch(self) {
                self.write_copies(shadow, std::mem::take(&mut copies), &mut live, holders).await?;
            }
        }
        self.write_copies(shadow, copies, &mut live, holders).await?;
        Ok(live)
    }

    async fn write_copies(
        &self,
        shadow: &mut Shadow<'_>,
        copies: Vec<Table>,
        live: &mut [u64],
        holders: u64,
    ) -> Result<()> {
        let mut rest = &copies[..];
        while !rest.is_empty() {
            let run = shadow.reserve(rest.len() as u64).await?;
            let (now, later) = rest.split_at(run.count as usize);
            let place = |cluster| self.geometry.start_of(HostCluster(cluster));
            let pieces: Vec<_> =
                (run.first.0..).map(place).zip(now.iter().map(|table| &table.bytes[..])).collect();
            self.write_runs(&pieces, None).await?;
            for (table, (at, _)) in now.iter().zip(&pieces) {
                live[table.index] = L1Entry::Table { offset: *at, copied: true }.encode();
                self.move_references(shadow, table.offset, *at, holders).await?;
            }
            rest = later;
        }
        Ok(())
    }

    /// `holders` references go from one L2 table to its copy, which was counted once when it was taken.
    async fn move_references(
        &self,
        shadow: &mut Shadow<'_>,
        from: HostOffset,
        to: HostOffset,
        holders: u64,
    ) -> Result<()> {
        let (from, to) = (self.geometry.cluster_of(from), self.geometry.cluster_of(to));
        for _ in 0..holders {
            shadow.count(from, Change::Remove).await?;
        }
        for _ in 1..holders {
            shadow.count(to, Change::Add).await?;
        }
        Ok(())
    }

    /// An L1 entry with the copied flag as the counts will have it.
    async fn flagged(&self, shadow: &mut Shadow<'_>, raw: u64) -> Result<u64> {
        match l1_entry(self, raw)? {
            L1Entry::Unallocated => Ok(0),
            L1Entry::Table { offset, .. } => {
                let copied = shadow.get(self.geometry.cluster_of(offset)).await? == 1;
                Ok(L1Entry::Table { offset, copied }.encode())
            }
        }
    }

    async fn write_l1(&self, shadow: &mut Shadow<'_>, l1: &[u64]) -> Result<HostOffset> {
        let bytes: Vec<u8> = l1.iter().flat_map(|raw| raw.to_be_bytes()).collect();
        Ok(HostOffset(self.write_table(shadow, &bytes).await?.start))
    }

    async fn write_snapshot_table(
        &self,
        shadow: &mut Shadow<'_>,
        snapshots: &[Snapshot],
    ) -> Result<Range<u64>> {
        self.write_table(shadow, &snapshot::encode(snapshots)?).await
    }

    /// Writes a table to a new place; an empty one has none.
    async fn write_table(&self, shadow: &mut Shadow<'_>, bytes: &[u8]) -> Result<Range<u64>> {
        if bytes.is_empty() {
            return Ok(0..0);
        }
        let run = shadow.reserve_table(bytes.len() as u64).await?;
        let offset = self.geometry.start_of(run.first);
        // Readers take whole sectors.
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(512), 0);
        self.write_unreferenced(offset, &padded, None).await?;
        Ok(offset.0..offset.0 + bytes.len() as u64)
    }

    /// Switches the header to the new tables. An error: the header is the old one. Else memory must follow, and
    /// the result within says whether the switch is durable.
    async fn switch(&self, tables: &Tables) -> Result<Result<()>> {
        let old = self.header.borrow().clone();
        self.unsettled.set(true);
        self.change_header(|header| tables.enter(header, self)).await?;
        let Err(error) = self.file.flush().await else {
            self.unsettled.set(false);
            return Ok(Ok(()));
        };
        let back = self.change_header(|header| *header = old).await;
        if back.is_ok() { Err(error) } else { Ok(Err(error.undecided())) }
    }

    /// Memory follows the switch.
    fn adopt(&self, shadow: Shadow<'_>, tables: Tables) {
        shadow.finish(tables.counts);
        self.active.l1.replace(tables.live);
        self.active.offset.set(tables.live_offset);
        self.active.disk_size.set(tables.size);
        self.size.set(tables.size);
        self.l2.clear();
        self.size_caches(tables.size);
        self.unwritten.set(None);
        note_metadata(
            &self.overlap,
            self.geometry,
            &self.active,
            &self.refcounts,
            &tables.snapshots,
            tables.snapshot_table.clone(),
        );
        self.snapshots.replace(tables.snapshots);
        self.snapshot_table.replace(tables.snapshot_table);
    }
}

impl Tables {
    /// The fields of the header that change: all of them in its first sector.
    fn enter(&self, header: &mut Header, image: &Qcow2) {
        header.size = self.size;
        header.l1_entries = self.live.len() as u32;
        header.l1_offset = self.live_offset;
        header.refcount_table_offset = image.geometry.start_of(self.counts.place.first);
        header.refcount_table_clusters = self.counts.place.count as u32;
        header.snapshot_count = self.snapshots.len() as u32;
        header.snapshots_offset = HostOffset(self.snapshot_table.start);
    }
}

/// An L2 table of a tree.
struct Table {
    /// Its place in the L1 table.
    index: usize,
    offset: HostOffset,
    bytes: Vec<u8>,
}

/// The L2 tables of a tree, in the order of the L1 table; many are read at once.
struct Walk<'a> {
    image: &'a Qcow2,
    l1: &'a [u64],
    next: usize,
    ready: VecDeque<Table>,
}

impl<'a> Walk<'a> {
    fn new(image: &'a Qcow2, l1: &'a [u64]) -> Walk<'a> {
        Walk { image, l1, next: 0, ready: VecDeque::new() }
    }

    /// How many tables are read at once.
    fn batch(image: &Qcow2) -> u64 {
        (BATCH >> image.geometry.cluster_bits).clamp(1, MAX_READS)
    }

    async fn next(&mut self) -> Result<Option<Table>> {
        if self.ready.is_empty() {
            let mut wanted = Vec::new();
            while self.next < self.l1.len() && (wanted.len() as u64) < Walk::batch(self.image) {
                if let L1Entry::Table { offset, .. } = l1_entry(self.image, self.l1[self.next])? {
                    wanted.push(read_table(self.image, self.next, offset));
                }
                self.next += 1;
            }
            self.ready.extend(try_join_all(wanted).await?);
        }
        Ok(self.ready.pop_front())
    }
}

async fn read_table(image: &Qcow2, index: usize, offset: HostOffset) -> Result<Table> {
    let bytes = image.file.read_bytes(offset.0, image.geometry.cluster_size() as usize).await?;
    Ok(Table { index, offset, bytes })
}

fn l1_entry(image: &Qcow2, raw: u64) -> Result<L1Entry> {
    L1Entry::decode(raw, image.geometry)
        .map_err(|what| Error::new(Kind::Corrupt, format!("L2 table offset {raw:#x} {what}")))
}
