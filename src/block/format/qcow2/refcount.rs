//! The refcount table and its blocks, and the search for free clusters in them.
//!
//! ```text
//!   refcount table (in memory as a whole)     refcount blocks (cached)
//!   | block 0 | block 1 | none | …      ──▶   | refcount of cluster 0 | 1 | 2 | …
//! ```
//! * A refcount of 0 means free. What an allocation takes is counted at once, in the cache; nothing on disk
//!   refers to it until the L2 entry is written, and that happens after the refcounts (see [`super::flush`]).
//! * New blocks, and a table that outgrew its place, exist in memory only until the next checkpoint writes
//!   them, so that an allocation writes nothing.
//! * A cluster that is freed is counted down only when its last reference has gone from the disk: see
//!   [`super::alloc`].

use super::cache::{Cache, Piece};
use super::cache_options::MIN_BLOCKS;
use super::entries::{decode_refcount_table, refcount, set_refcount, without_reserved};
use super::geometry::{ENTRY, Geometry, HOST_END, HostCluster, HostOffset};
use super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::overlap::{Metadata, Overlap};
use super::withheld::Withheld;
use crate::block::graph::{Event, Node};
use crate::block::{Error, Kind, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

/// Refcount table entries are written in groups of this many.
pub(super) const TABLE_GROUP: usize = 64;

/// A run of host clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: HostCluster,
    pub(super) count: u64,
}

/// The refcounts of an image.
pub(super) struct Refcounts {
    geometry: Geometry,
    file: Rc<Node>,
    /// All entries of the table, more than the one on disk has if it must grow.
    table: RefCell<Vec<u64>>,
    /// Groups of entries that the table on disk does not have yet.
    changed: RefCell<BTreeSet<usize>>,
    /// Where the table on disk is.
    place: Cell<(HostOffset, u32)>,
    pub(super) blocks: Cache,
    /// No cluster below is free.
    hint: Cell<u64>,
    /// The end of the file as far as anything was ever stored there: what lies behind reads as zeros.
    untouched: Cell<u64>,
    /// Counts allocations, so that a search that had to wait sees whether it was overtaken.
    allocations: Cell<u64>,
    /// Where the compressed data that came last ends, if inside of a cluster: more may follow.
    tail: Cell<Option<HostOffset>>,
    /// Free clusters that nobody may take yet.
    pub(super) withheld: Withheld,
    overlap: Rc<Overlap>,
}

impl Refcounts {
    /// Reads the refcount table that `header` describes.
    pub(super) async fn read(file: &Rc<Node>, header: &Header, overlap: &Rc<Overlap>) -> Result<Refcounts> {
        let geometry = header.geometry;
        let (offset, clusters) = (header.refcount_table_offset, header.refcount_table_clusters);
        file.debug_event(Event::ReftableLoad);
        let bytes =
            file.read_bytes(offset.0, (u64::from(clusters) << geometry.cluster_bits) as usize).await?;
        let table = bytes.chunks_exact(ENTRY as usize).map(super::extensions::be64).collect();
        Ok(Refcounts {
            geometry,
            file: file.clone(),
            table: RefCell::new(table),
            changed: RefCell::default(),
            place: Cell::new((offset, clusters)),
            blocks: Cache::new(geometry.cluster_size(), MIN_BLOCKS, Event::RefblockLoad),
            hint: Cell::new(0),
            untouched: Cell::new(geometry.clusters_for(file.size())),
            allocations: Cell::new(0),
            tail: Cell::new(None),
            withheld: Withheld::default(),
            overlap: overlap.clone(),
        })
    }

    /// All valid refcount blocks that the table names.
    pub(super) fn block_offsets(&self) -> Vec<HostOffset> {
        let table = self.table.borrow();
        table.iter().filter_map(|&raw| decode_refcount_table(raw, self.geometry).ok().flatten()).collect()
    }

    /// The table as it is in memory.
    pub(super) fn table(&self) -> Vec<u64> {
        self.table.borrow().clone()
    }

    /// Whether two entries of the table name one block: a search for free clusters in such an image could take
    /// for ever, and a cluster be given out twice.
    pub(super) fn has_shared_blocks(&self) -> bool {
        let mut blocks: Vec<u64> = self.table.borrow().iter().copied().filter(|&raw| raw != 0).collect();
        blocks.sort_unstable();
        blocks.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// The refcount of a cluster.
    pub(super) async fn get(&self, cluster: HostCluster) -> Result<u64> {
        let (block, index) = self.position(cluster.0);
        Ok(match self.block(block).await? {
            Some(piece) => self.count(&piece, index),
            None => 0,
        })
    }

    /// As [`Refcounts::get`], overlooking reserved bits of the table's entry, which `check` reports once.
    pub(super) async fn get_anyway(&self, cluster: HostCluster) -> Result<u64> {
        let (block, index) = self.position(cluster.0);
        let raw = without_reserved(self.entry(block));
        Ok(match self.decode(block as usize, raw)? {
            Some(offset) => self.count(&*self.blocks.load(&self.file, offset).await?, index),
            None => 0,
        })
    }

    /// Entries of the table.
    pub(super) fn table_len(&self) -> u64 {
        self.table.borrow().len() as u64
    }

    /// A refcount block as it is in memory, if there is one.
    pub(super) async fn block_bytes(&self, index: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.block(index).await?.map(|piece| piece.with(<[u8]>::to_vec)))
    }

    /// Takes up to `want` free clusters that follow one another, with a refcount of 1 each. The run ends where
    /// a refcount block ends. Also says whether all of it lies where nothing was ever stored.
    pub(super) async fn allocate(&self, want: u64) -> Result<(Run, bool)> {
        loop {
            let hint = self.hint.get();
            self.check_end(Run { first: HostCluster(hint), count: 1 })?;
            let (block, index) = self.position(hint);
            let Some(piece) = self.block(block).await? else {
                self.create_block(block, hint)?;
                continue;
            };
            match self.take_free(&piece, hint, want) {
                Some((at, count)) => {
                    let run = Run { first: HostCluster(hint - index as u64 + at as u64), count };
                    return Ok((run, self.taken(run, Some(hint))));
                }
                // Someone may have freed clusters during the await: only ever skip what was searched.
                None if self.hint.get() == hint => self.hint.set((block + 1) * self.geometry.block_entries()),
                None => {}
            }
        }
    }

    /// Takes exactly `want` clusters that follow one another, behind all that is in use.
    pub(super) async fn allocate_contiguous(&self, want: u64) -> Result<Run> {
        loop {
            let before = self.allocations.get();
            let end = self.end_in_use().await?;
            let (range, missing) = self.blocks_behind(end, want);
            let mut held = Vec::new();
            for block in range {
                held.extend(self.block(block).await?);
            }
            // Nobody may have taken anything during the awaits; from here on there are none.
            if self.allocations.get() == before {
                let run = Run { first: HostCluster(end), count: want };
                self.take_behind(run, &missing)?;
                return Ok(run);
            }
        }
    }

    /// The blocks that cover `want` clusters from `end` on and the new blocks behind them, and which are new.
    fn blocks_behind(&self, end: u64, want: u64) -> (Range<u64>, Vec<u64>) {
        let per_block = self.geometry.block_entries();
        let mut extra = 0;
        loop {
            let range = end / per_block..(end + want + extra).div_ceil(per_block);
            let missing: Vec<u64> = range.clone().filter(|&block| self.entry(block) == 0).collect();
            if missing.len() as u64 == extra {
                return (range, missing);
            }
            extra = missing.len() as u64;
        }
    }

    /// Counts a run, and behind it the new blocks that it needs. All blocks are in memory.
    fn take_behind(&self, run: Run, missing: &[u64]) -> Result<()> {
        let end = run.first.0 + run.count;
        self.check_end(Run { first: run.first, count: run.count + missing.len() as u64 })?;
        for (&block, cluster) in missing.iter().zip(end..) {
            self.check_block(block, HostCluster(cluster))?;
        }
        for (&block, cluster) in missing.iter().zip(end..) {
            self.install_block(block, HostCluster(cluster));
        }
        for cluster in run.first.0..end + missing.len() as u64 {
            let (block, index) = self.position(cluster);
            if let Some(piece) = self.blocks.get(HostOffset(self.entry(block))) {
                self.set(&piece, index, 1);
            }
        }
        self.taken(Run { first: run.first, count: run.count + missing.len() as u64 }, None);
        Ok(())
    }

    /// Where compressed data may follow other, if it may.
    pub(super) fn tail(&self) -> Option<HostOffset> {
        self.tail.get()
    }

    /// Lets compressed data follow at `end`.
    pub(super) fn set_tail(&self, end: HostOffset) {
        self.tail.set(Some(end).filter(|end| !self.geometry.is_aligned(end.0)));
    }

    /// Counts one more user of the cluster that the tail is in. `None` if it is in use no more, or cannot have
    /// another.
    pub(super) async fn share_tail(&self) -> Result<Option<HostOffset>> {
        let Some(tail) = self.tail.get() else { return Ok(None) };
        let (block, index) = self.position(self.geometry.cluster_of(tail).0);
        let piece = self.block(block).await?;
        let count = piece.as_ref().map_or(0, |piece| self.count(piece, index));
        // During the await the cluster may have been freed, and even taken for something else.
        match piece.filter(|_| self.tail.get() == Some(tail)) {
            Some(piece) if count > 0 && count < self.geometry.refcount_max() => {
                self.set(&piece, index, count + 1);
                Ok(Some(tail))
            }
            _ => {
                self.tail.set(None);
                Ok(None)
            }
        }
    }

    /// Takes one reference of a cluster away. If none is left it can be taken, but for one that was lent, which is
    /// withheld until its pages are back and then, with `punch`, its space goes to the host.
    pub(super) async fn decrement(&self, cluster: HostCluster, punch: bool) -> Result<()> {
        let (block, index) = self.position(cluster.0);
        let piece = self.block(block).await?;
        let count = piece.as_ref().map_or(0, |piece| self.count(piece, index));
        let (Some(piece), Some(left)) = (piece, count.checked_sub(1)) else {
            return Err(Error::new(Kind::Corrupt, format!("cluster {} is freed but not in use", cluster.0)));
        };
        self.set(&piece, index, left);
        let run = Run { first: cluster, count: 1 };
        match left {
            0 if self.withheld.is_lent(run) => self.withheld.add(&[run], punch),
            0 => self.note_free(cluster),
            _ => {}
        }
        Ok(())
    }

    /// A cluster, and maybe others behind it, can be taken from now on.
    pub(super) fn note_free(&self, cluster: HostCluster) {
        self.hint.set(self.hint.get().min(cluster.0));
    }

    /// Sets the count of a cluster that is in use and that nothing refers to yet.
    pub(super) async fn set_count(&self, cluster: HostCluster, count: u64) -> Result<()> {
        let (block, index) = self.position(cluster.0);
        if let Some(piece) = self.block(block).await? {
            self.set(&piece, index, count);
        }
        Ok(())
    }

    /// The first cluster behind all that have a refcount or are withheld.
    pub(super) async fn end_in_use(&self) -> Result<u64> {
        Ok(self.end_counted().await?.max(self.withheld.end()))
    }

    async fn end_counted(&self) -> Result<u64> {
        let (blocks, per_block) = (self.table.borrow().len() as u64, self.geometry.block_entries());
        for block in (0..blocks).rev() {
            let Some(piece) = self.block(block).await? else { continue };
            if is_blank(&piece) {
                continue;
            }
            if let Some(at) = (0..per_block as usize).rfind(|&at| self.count(&piece, at) != 0) {
                return Ok(block * per_block + at as u64 + 1);
            }
        }
        Ok(0)
    }

    /// How many clusters that the block at `index` of the table covers have a refcount.
    pub(super) async fn in_use(&self, index: u64) -> Result<u64> {
        let Some(piece) = self.block(index).await?.filter(|piece| !is_blank(piece)) else { return Ok(0) };
        let entries = 0..self.geometry.block_entries() as usize;
        Ok(entries.filter(|&at| self.count(&piece, at) != 0).count() as u64)
    }

    /// The refcount block at `index` of the table, if there is one.
    async fn block(&self, index: u64) -> Result<Option<Rc<Piece>>> {
        match self.decode(index as usize, self.entry(index))? {
            Some(offset) => self.blocks.load(&self.file, offset).await.map(Some),
            None => Ok(None),
        }
    }

    fn entry(&self, block: u64) -> u64 {
        self.table.borrow().get(block as usize).copied().unwrap_or(0)
    }

    fn decode(&self, index: usize, raw: u64) -> Result<Option<HostOffset>> {
        decode_refcount_table(raw, self.geometry).map_err(|what| {
            Error::new(Kind::Corrupt, format!("Refblock offset {raw:#x} {what} (reftable index: {index:#x})"))
        })
    }

    /// Block and index in it of a cluster's refcount.
    fn position(&self, cluster: u64) -> (u64, usize) {
        let per_block = self.geometry.block_entries();
        (cluster / per_block, (cluster % per_block) as usize)
    }

    fn count(&self, piece: &Piece, index: usize) -> u64 {
        piece.with(|bytes| refcount(bytes, self.geometry.refcount_order, index))
    }

    fn set(&self, piece: &Piece, index: usize, value: u64) {
        self.blocks.change(piece, |bytes| set_refcount(bytes, self.geometry.refcount_order, index, value));
    }

    /// Finds the first free cluster of a block from cluster `from` on, and counts it and up to `want` in all.
    fn take_free(&self, piece: &Piece, from: u64, want: u64) -> Option<(usize, u64)> {
        let (order, entries) = (self.geometry.refcount_order, self.geometry.block_entries() as usize);
        let (block_start, any_withheld) = (from - from % entries as u64, !self.withheld.is_empty());
        let (start, end) = piece.with(|bytes| {
            let withheld = |at: usize| any_withheld && self.withheld.contains(block_start + at as u64);
            let free = |&at: &usize| refcount(bytes, order, at) == 0 && !withheld(at);
            let start = ((from - block_start) as usize..entries).find(free)?;
            let limit = entries.min(start.saturating_add(want as usize));
            let end = (start..limit).find(|at| !free(at)).unwrap_or(limit);
            Some((start, end))
        })?;
        (start..end).for_each(|at| self.set(piece, at, 1));
        Some((start, (end - start) as u64))
    }

    /// After an allocation: the next search goes on behind it, if this one began at the first place that may be
    /// free, `searched_from`, and nothing was freed meanwhile. Whether nothing was ever stored there.
    fn taken(&self, run: Run, searched_from: Option<u64>) -> bool {
        let end = run.first.0 + run.count;
        if searched_from == Some(self.hint.get()) {
            self.hint.set(end);
        }
        self.allocations.set(self.allocations.get() + 1);
        // Who gets the tail's cluster gets it as a free one: the compressed data in it is gone.
        let clusters = run.first.0..end;
        if self.tail.get().is_some_and(|tail| clusters.contains(&self.geometry.cluster_of(tail).0)) {
            self.tail.set(None);
        }
        let untouched = run.first.0 >= self.untouched.get();
        self.untouched.set(self.untouched.get().max(end));
        untouched
    }

    /// A new refcount block in the first cluster that it covers, which is free as all of them are.
    fn create_block(&self, block: u64, hint: u64) -> Result<()> {
        let cluster = block * self.geometry.block_entries();
        self.check_block(block, HostCluster(cluster))?;
        self.install_block(block, HostCluster(cluster));
        if let Some(piece) = self.blocks.get(self.geometry.start_of(HostCluster(cluster))) {
            self.set(&piece, 0, 1);
        }
        self.taken(Run { first: HostCluster(cluster), count: 1 }, Some(hint).filter(|&hint| hint == cluster));
        Ok(())
    }

    /// Refuses clusters that no table could refer to.
    fn check_end(&self, run: Run) -> Result<()> {
        if run.first.0 + run.count > HOST_END >> self.geometry.cluster_bits {
            return Err(Error::new(Kind::NoSpace, "the image file cannot grow any further"));
        }
        Ok(())
    }

    /// Whether a new block can go into the table, and its cluster be written.
    fn check_block(&self, block: u64, cluster: HostCluster) -> Result<()> {
        if (block + 1) * ENTRY > MAX_REFCOUNT_TABLE_BYTES {
            return Err(Error::new(Kind::NoSpace, "the image file cannot grow any further"));
        }
        self.check_end(Run { first: cluster, count: 1 })?;
        self.overlap.check(self.geometry.start_of(cluster), self.geometry.cluster_size(), None)
    }

    /// Puts an empty block into the table, in memory.
    fn install_block(&self, block: u64, cluster: HostCluster) {
        let offset = self.geometry.start_of(cluster);
        self.file.debug_event(Event::RefblockAlloc);
        let mut table = self.table.borrow_mut();
        if block as usize >= table.len() {
            table.resize(block as usize + 1, 0);
        }
        table[block as usize] = offset.0;
        self.changed.borrow_mut().insert(block as usize / TABLE_GROUP);
        self.overlap.add(Metadata::RefcountBlock, cluster);
        self.blocks.create(offset);
    }
}

/// Whether a block counts nothing at all, which is quick to see.
fn is_blank(piece: &Piece) -> bool {
    piece.with(|bytes| bytes.iter().all(|&byte| byte == 0))
}

/// What the checkpoint needs of the table.
impl Refcounts {
    /// If the table outgrew its place on disk: how many clusters a new one needs, and with room to grow.
    pub(super) fn outgrown(&self) -> Option<(u64, u64)> {
        let bytes = self.table.borrow().len() as u64 * ENTRY;
        let clusters = self.geometry.clusters_for(bytes);
        if clusters <= u64::from(self.place.get().1) {
            return None;
        }
        let most = self.geometry.clusters_for(MAX_REFCOUNT_TABLE_BYTES);
        Some((clusters, (clusters + clusters / 2 + 1).min(most)))
    }

    /// The bytes of the table, padded to `clusters`; nothing of it counts as changed from now on.
    pub(super) fn take_table(&self, clusters: u64) -> Vec<u8> {
        self.changed.borrow_mut().clear();
        let mut bytes: Vec<u8> = self.table.borrow().iter().flat_map(|raw| raw.to_be_bytes()).collect();
        bytes.resize((clusters << self.geometry.cluster_bits) as usize, 0);
        bytes
    }

    /// Groups of entries that changed since the last time, with their place on disk.
    pub(super) fn take_changed(&self) -> Vec<(HostOffset, Vec<u8>)> {
        let groups = std::mem::take(&mut *self.changed.borrow_mut());
        groups.iter().map(|&group| (self.group_offset(group), self.group_bytes(group))).collect()
    }

    /// The blocks of the groups that the table on disk does not have yet, by index.
    pub(super) fn changed_entries(&self) -> Vec<(usize, u64)> {
        let table = self.table.borrow();
        let entries = |&group: &usize| group * TABLE_GROUP..((group + 1) * TABLE_GROUP).min(table.len());
        let changed = self.changed.borrow();
        let blocks = changed.iter().flat_map(entries).map(|index| (index, table[index]));
        blocks.filter(|&(_, raw)| raw != 0).collect()
    }

    /// The blocks, by index, that are not on disk as they are in memory.
    pub(super) fn dirty_blocks(&self) -> Vec<usize> {
        if self.blocks.is_clean() {
            return Vec::new();
        }
        let table = self.table.borrow();
        (0..table.len()).filter(|&index| self.blocks.is_dirty(HostOffset(table[index]))).collect()
    }

    /// How many clusters a table with all entries takes, at least as many as now.
    pub(super) fn table_clusters(&self) -> u64 {
        self.outgrown().map_or(u64::from(self.place.get().1), |(_, wanted)| wanted)
    }

    /// The header names another table now, with other blocks, all of which are on disk. No cluster below
    /// `lowest_freed` became free.
    pub(super) fn switched(&self, table: Vec<u64>, offset: HostOffset, clusters: u32, lowest_freed: u64) {
        self.table.replace(table);
        self.changed.borrow_mut().clear();
        self.place.set((offset, clusters));
        self.blocks.clear();
        self.hint.set(self.hint.get().min(lowest_freed));
    }

    /// Notes that all of the table must be written (again).
    pub(super) fn restore_table(&self) {
        let groups = self.table.borrow().len().div_ceil(TABLE_GROUP);
        self.changed.borrow_mut().extend(0..groups);
    }

    /// Whether the table on disk lags behind.
    pub(super) fn is_clean(&self) -> bool {
        self.changed.borrow().is_empty() && self.blocks.is_clean()
    }

    /// Another table, with other blocks, is on disk now.
    pub(super) fn replace(&self, offset: HostOffset, clusters: u32, table: Vec<u64>) {
        self.table.replace(table);
        self.changed.take();
        self.place.set((offset, clusters));
        self.blocks.clear();
        self.hint.set(0);
        self.untouched.set(self.geometry.clusters_for(self.file.size()));
        self.overlap.set_range(Metadata::RefcountTable, self.table_range());
        let blocks = self.block_offsets().into_iter().map(|offset| self.geometry.cluster_of(offset));
        self.overlap.set_refcount_blocks(blocks);
    }

    /// The table on disk is somewhere else now. Returns where it was.
    pub(super) fn moved(&self, offset: HostOffset, clusters: u32) -> Run {
        let (old, count) = self.place.replace((offset, clusters));
        Run { first: self.geometry.cluster_of(old), count: u64::from(count) }
    }

    /// The range of the file that the table takes.
    pub(super) fn table_range(&self) -> Range<u64> {
        let (offset, clusters) = self.place.get();
        offset.0..offset.0 + (u64::from(clusters) << self.geometry.cluster_bits)
    }

    fn group_offset(&self, group: usize) -> HostOffset {
        self.place.get().0.add((group * TABLE_GROUP) as u64 * ENTRY)
    }

    fn group_bytes(&self, group: usize) -> Vec<u8> {
        let table = self.table.borrow();
        let entries =
            (group * TABLE_GROUP..(group + 1) * TABLE_GROUP).map(|at| table.get(at).copied().unwrap_or(0));
        entries.flat_map(u64::to_be_bytes).collect()
    }
}
