//! The refcounts as they are to be: changed copies of refcount blocks, which a switch of the header puts in the
//! place of the old ones together with the trees that they count.
//!
//! ```text
//!   refcount table ─▶ | block 0 | block 1 | block 2 |        as it is: allocations go on here
//!        new table ─▶ | copy  0 |    〃   | copy  2 |        as it will be
//! ```
//! * A block is copied when its first count changes. Copies are kept in memory up to [`MEMORY`] and then
//!   written to their new places; most images need no more than that, as a block counts 32768 clusters.
//! * A cluster that the switch frees is in use until then: allocations look at the old counts, and what they
//!   take is counted in both.
//! * A count never passes its width and never falls below 0; clusters that nobody counts gain no reference.
//!   All that is found before anything on disk refers to the copies.
//! * Nothing but the switch refers to a copy: a process that dies before it leaks clusters at worst.

use super::alloc::Reserved;
use super::driver::Qcow2;
use super::entries::{L2Words, refcount, references, set_refcount, takes_copied, with_copied};
use super::geometry::{HostCluster, HostOffset};
use super::image::REPAIR;
use super::overlap::Metadata;
use super::refcount::Run;
use crate::block::{Error, Kind, Result};
use std::collections::VecDeque;
use std::ops::Range;

/// Copies of refcount blocks in memory, in bytes.
const MEMORY: u64 = 48 << 20;
/// Copies in memory at least: what one L2 entry may need.
const MIN_COPIES: usize = 64;
/// So many runs of freed clusters are remembered, to give their space back to the host. Those that were lent, all are.
const MAX_FREED: usize = 1 << 16;
/// Neighbours are written as one, up to this many bytes.
const MERGE: usize = 4 << 20;
/// New refcount blocks stand where memory has them already.
const BLOCK: Option<Metadata> = Some(Metadata::RefcountBlock);

/// A refcount block.
enum Block {
    /// No count of it changes.
    Same,
    /// The copy.
    Copy(Box<[u8]>),
    /// The copy is at its new place.
    Spilled,
}

/// What a reference does to a count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// One more user.
    Add,
    /// One user less; the host may have the space of what nobody uses any more.
    Remove,
}

/// The block that must be in memory before a count can change.
pub(super) struct Missing(usize);

/// Refcounts that are to be.
pub(super) struct Shadow<'a> {
    image: &'a Qcow2,
    /// The refcount table on disk.
    old: Vec<u64>,
    blocks: Vec<Block>,
    /// New places of copies, by index of the block.
    places: Vec<Option<HostOffset>>,
    /// Copies in memory, the oldest first.
    loaded: VecDeque<usize>,
    /// Copies that have no place yet.
    homeless: Vec<usize>,
    /// Clusters taken since their block was spilled: to be counted there.
    owed: Vec<u64>,
    reserved: Vec<Reserved<'a>>,
    freed: Vec<Run>,
    lowest_freed: u64,
}

/// Where the new refcounts are.
pub(super) struct Counts {
    /// Place and clusters of the new refcount table.
    pub(super) place: Run,
    table: Vec<u64>,
}

impl<'a> Shadow<'a> {
    /// The counts as they are. Nothing is dirty.
    pub(super) fn new(image: &'a Qcow2) -> Shadow<'a> {
        Shadow {
            image,
            old: image.refcounts.table(),
            blocks: Vec::new(),
            places: Vec::new(),
            loaded: VecDeque::new(),
            homeless: Vec::new(),
            owed: Vec::new(),
            reserved: Vec::new(),
            freed: Vec::new(),
            lowest_freed: u64::MAX,
        }
    }

    /// Changes the counts of all that an L2 table refers to.
    pub(super) async fn count_table(&mut self, table: &[u8], change: Change) -> Result<()> {
        let mut done = 0;
        while let Err(missing) = self.count_entries(table, &mut done, change)? {
            self.load(missing).await?;
        }
        Ok(())
    }

    /// As [`Shadow::count_table`], from entry `done` on, until a block is missing.
    fn count_entries(
        &mut self,
        table: &[u8],
        done: &mut usize,
        change: Change,
    ) -> Result<std::result::Result<(), Missing>> {
        let size = self.image.geometry.l2_entry() as usize;
        for entry in table[*done * size..].chunks_exact(size) {
            let clusters = references(L2Words::read(entry), self.image.geometry).map_err(malformed)?;
            if let Err(missing) = self.have(&clusters) {
                return Ok(Err(missing));
            }
            for cluster in clusters {
                self.change(cluster, change)?;
            }
            *done += 1;
        }
        Ok(Ok(()))
    }

    /// Makes the copied flags of an L2 table say what the counts say. Whether one changed.
    pub(super) async fn set_flags(&mut self, table: &mut [u8]) -> Result<bool> {
        let (mut done, mut changed) = (0, false);
        while let Err(missing) = self.flag_entries(table, &mut done, &mut changed)? {
            self.load(missing).await?;
        }
        Ok(changed)
    }

    /// As [`Shadow::set_flags`], from entry `done` on, until a block is missing.
    fn flag_entries(
        &self,
        table: &mut [u8],
        done: &mut usize,
        changed: &mut bool,
    ) -> Result<std::result::Result<(), Missing>> {
        let size = self.image.geometry.l2_entry() as usize;
        for entry in table[*done * size..].chunks_exact_mut(size) {
            let words = L2Words::read(entry);
            let old = words.descriptor;
            *done += 1;
            if !takes_copied(old) {
                continue;
            }
            let cluster = references(words, self.image.geometry).map_err(malformed)?.start;
            match self.known(cluster) {
                Ok(Some(count)) => {
                    let new = with_copied(old, count == 1);
                    if new != old {
                        L2Words { descriptor: new, ..words }.write(entry);
                        *changed = true;
                    }
                }
                // The count is what it was, and so is the flag.
                Ok(None) => {}
                Err(missing) => {
                    *done -= 1;
                    return Ok(Err(missing));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Changes the count of one cluster.
    pub(super) async fn count(&mut self, cluster: HostCluster, change: Change) -> Result<()> {
        self.load_all(&(cluster.0..cluster.0 + 1)).await?;
        self.change(cluster.0, change)
    }

    /// What was freed so far, as far as it is remembered.
    pub(super) fn take_freed(&mut self) -> Vec<Run> {
        std::mem::take(&mut self.freed)
    }

    /// Gives up a table: nothing refers to it after the switch.
    pub(super) async fn give_up(&mut self, bytes: Range<u64>) -> Result<()> {
        let geometry = self.image.geometry;
        for cluster in geometry.clusters_of(bytes) {
            self.count(HostCluster(cluster), Change::Remove).await?;
        }
        Ok(())
    }

    async fn give_up_run(&mut self, run: Run) -> Result<()> {
        let bits = self.image.geometry.cluster_bits;
        self.give_up(run.first.0 << bits..(run.first.0 + run.count) << bits).await
    }

    /// The count that a cluster will have.
    pub(super) async fn get(&mut self, cluster: HostCluster) -> Result<u64> {
        loop {
            match self.known(cluster.0) {
                Ok(Some(count)) => return Ok(count),
                Ok(None) => return self.image.refcounts.get(cluster).await,
                Err(missing) => self.load(missing).await?,
            }
        }
    }

    /// Takes up to `want` clusters that follow one another, for what the switch will refer to once.
    pub(super) async fn reserve(&mut self, want: u64) -> Result<Run> {
        let reserved = self.image.reserve(want).await?;
        Ok(self.note(reserved))
    }

    /// Takes clusters that follow one another for a table of `bytes` bytes.
    pub(super) async fn reserve_table(&mut self, bytes: u64) -> Result<Run> {
        let want = self.image.geometry.clusters_for(bytes);
        let first_free = self.reserve(want).await?;
        if first_free.count == want {
            return Ok(first_free);
        }
        // The copies may count it already: the switch frees it, nobody before.
        self.give_up_run(first_free).await?;
        let reserved = self.image.reserve_contiguous(want).await?;
        Ok(self.note(reserved))
    }

    /// Counts what was taken, and new refcount blocks that it needed, in the copies that exist.
    fn note(&mut self, reserved: Reserved<'a>) -> Run {
        let (run, bits) = (reserved.run, self.image.geometry.cluster_bits);
        let new_blocks = self.image.refcounts.changed_entries();
        self.reserved.push(reserved);
        for cluster in run.first.0..run.first.0 + run.count {
            self.note_cluster(cluster);
        }
        for (index, raw) in new_blocks {
            if self.old.get(index).is_none_or(|&old| old == 0) && self.place(index).is_none() {
                // Nothing on disk refers to it: it is written where it is.
                self.places[index] = Some(HostOffset(raw));
                self.note_cluster(raw >> bits);
            }
        }
        run
    }

    fn note_cluster(&mut self, cluster: u64) {
        let (block, index) = self.position(cluster);
        match self.blocks.get_mut(block) {
            Some(Block::Copy(bytes)) => {
                set_refcount(bytes, self.image.geometry.refcount_order, index, 1);
            }
            Some(Block::Spilled) => self.owed.push(cluster),
            // Its copy will be made of what is in memory.
            Some(Block::Same) | None => {}
        }
    }

    fn position(&self, cluster: u64) -> (usize, usize) {
        let per_block = self.image.geometry.block_entries();
        ((cluster / per_block) as usize, (cluster % per_block) as usize)
    }

    /// The new place of a block, which may be behind all that were ever looked at.
    fn place(&mut self, block: usize) -> Option<HostOffset> {
        if block >= self.places.len() {
            self.places.resize(block + 1, None);
        }
        self.places[block]
    }

    /// The count that a cluster will have, if it is one that changes.
    fn known(&self, cluster: u64) -> std::result::Result<Option<u64>, Missing> {
        let (block, index) = self.position(cluster);
        match self.blocks.get(block) {
            Some(Block::Copy(bytes)) => Ok(Some(refcount(bytes, self.image.geometry.refcount_order, index))),
            Some(Block::Spilled) => Err(Missing(block)),
            Some(Block::Same) | None => Ok(None),
        }
    }

    /// Whether the counts of `clusters` can change.
    fn have(&self, clusters: &Range<u64>) -> std::result::Result<(), Missing> {
        let blocks = self.image.geometry.block_entries();
        for block in clusters.start / blocks..clusters.end.div_ceil(blocks) {
            if !clusters.is_empty() && !matches!(self.blocks.get(block as usize), Some(Block::Copy(_))) {
                return Err(Missing(block as usize));
            }
        }
        Ok(())
    }

    fn change(&mut self, cluster: u64, change: Change) -> Result<()> {
        let (block, index) = self.position(cluster);
        let order = self.image.geometry.refcount_order;
        let Some(Block::Copy(bytes)) = self.blocks.get_mut(block) else { return Err(uncounted(cluster)) };
        let old = refcount(bytes, order, index);
        if old == 0 {
            return Err(uncounted(cluster));
        }
        if change == Change::Add {
            if old == self.image.geometry.refcount_max() {
                return Err(overflow(cluster));
            }
            set_refcount(bytes, order, index, old + 1);
            return Ok(());
        }
        set_refcount(bytes, order, index, old - 1);
        if old == 1 {
            self.note_freed(cluster);
        }
        Ok(())
    }

    fn note_freed(&mut self, cluster: u64) {
        self.lowest_freed = self.lowest_freed.min(cluster);
        let run = Run { first: HostCluster(cluster), count: 1 };
        let full = self.freed.len() >= MAX_FREED && !self.image.refcounts.withheld.is_lent(run);
        match self.freed.last_mut() {
            Some(last) if last.first.0 + last.count == cluster => last.count += 1,
            // Beyond, the host keeps the space; the clusters are free all the same.
            _ if full => {}
            _ => self.freed.push(run),
        }
    }

    async fn load_all(&mut self, clusters: &Range<u64>) -> Result<()> {
        while let Err(missing) = self.have(clusters) {
            self.load(missing).await?;
        }
        Ok(())
    }

    /// Brings the copy of a block into memory.
    pub(super) async fn load(&mut self, Missing(block): Missing) -> Result<()> {
        if block as u64 >= self.image.refcounts.table_len() {
            return Err(uncounted_block(block));
        }
        let capacity = ((MEMORY >> self.image.geometry.cluster_bits) as usize).max(MIN_COPIES);
        while self.loaded.len() >= capacity {
            self.spill().await?;
        }
        let place = self.place(block);
        if block >= self.blocks.len() {
            self.blocks.resize_with(block + 1, || Block::Same);
        }
        let bytes = match self.blocks[block] {
            Block::Copy(_) => return Ok(()),
            Block::Spilled => {
                let at = place.ok_or_else(|| uncounted_block(block))?;
                self.image.file.read_bytes(at.0, self.image.geometry.cluster_size() as usize).await?
            }
            Block::Same => {
                let bytes = self.image.refcounts.block_bytes(block as u64).await?;
                self.homeless.extend(place.is_none().then_some(block));
                bytes.ok_or_else(|| uncounted_block(block))?
            }
        };
        self.blocks[block] = Block::Copy(bytes.into_boxed_slice());
        self.loaded.push_back(block);
        for cluster in std::mem::take(&mut self.owed) {
            self.note_cluster(cluster);
        }
        Ok(())
    }

    /// Writes the oldest copy to its new place.
    async fn spill(&mut self) -> Result<()> {
        let Some(block) = self.loaded.pop_front() else { return Ok(()) };
        if self.place(block).is_none() {
            let run = self.reserve(1).await?;
            self.places[block] = Some(self.image.geometry.start_of(run.first));
        }
        if let (Some(at), Block::Copy(bytes)) = (self.place(block), &self.blocks[block]) {
            self.image.write_unreferenced(at, bytes, BLOCK).await?;
        }
        self.blocks[block] = Block::Spilled;
        Ok(())
    }
}

/// The end: everything finds its place.
impl Shadow<'_> {
    /// Writes all copies and a refcount table that names them. Nothing on disk refers to it yet.
    pub(super) async fn write(&mut self) -> Result<Counts> {
        self.give_up(self.image.refcounts.table_range()).await?;
        let place = self.place_all().await?;
        let table = self.table();
        let mut bytes: Vec<u8> = table.iter().flat_map(|raw| raw.to_be_bytes()).collect();
        bytes.resize((place.count << self.image.geometry.cluster_bits) as usize, 0);
        self.write_copies().await?;
        self.image.write_unreferenced(self.image.geometry.start_of(place.first), &bytes, None).await?;
        Ok(Counts { place, table })
    }

    /// Finds places for all copies and the table. What is taken for them, and what they leave, changes counts
    /// again, until nothing is left to do.
    async fn place_all(&mut self) -> Result<Run> {
        let mut room: Option<Run> = None;
        loop {
            self.place_blocks().await?;
            let needed = self.image.refcounts.table_clusters();
            match room {
                Some(run) if run.count >= needed => return Ok(run),
                Some(run) => self.give_up_run(run).await?,
                None => {}
            }
            room = Some(self.reserve_table(needed << self.image.geometry.cluster_bits).await?);
        }
    }

    async fn place_blocks(&mut self) -> Result<()> {
        loop {
            // Where clusters were taken for the switch, the counts in memory are ahead of the disk.
            for block in self.image.refcounts.dirty_blocks() {
                let is_new = !matches!(self.blocks.get(block), Some(Block::Copy(_) | Block::Spilled));
                if is_new {
                    self.load(Missing(block)).await?;
                }
            }
            let homeless = std::mem::take(&mut self.homeless);
            if homeless.is_empty() {
                return Ok(());
            }
            self.find_places(&homeless).await?;
            for block in homeless {
                let old = self.old.get(block).copied().unwrap_or(0);
                let cluster = self.image.geometry.cluster_of(HostOffset(old));
                self.count(cluster, Change::Remove).await?;
            }
        }
    }

    async fn find_places(&mut self, blocks: &[usize]) -> Result<()> {
        let mut rest: Vec<usize> = blocks.to_vec();
        rest.retain(|&block| self.place(block).is_none());
        let mut rest = &rest[..];
        while !rest.is_empty() {
            let run = self.reserve(rest.len() as u64).await?;
            let (now, later) = rest.split_at(run.count as usize);
            for (&block, cluster) in now.iter().zip(run.first.0..) {
                self.places[block] = Some(self.image.geometry.start_of(HostCluster(cluster)));
            }
            rest = later;
        }
        Ok(())
    }

    /// The new refcount table.
    fn table(&self) -> Vec<u64> {
        let current = self.image.refcounts.table();
        let place = |block| self.places.get(block).copied().flatten();
        let copied = |block| matches!(self.blocks.get(block), Some(Block::Copy(_) | Block::Spilled));
        let entry = |(block, &raw): (usize, &u64)| match place(block) {
            Some(at) if copied(block) => at.0,
            _ => raw,
        };
        current.iter().enumerate().map(entry).collect()
    }

    /// Writes the copies that are in memory, in the order of the file.
    async fn write_copies(&mut self) -> Result<()> {
        let mut copies: Vec<(HostOffset, &[u8])> = Vec::new();
        for (block, place) in self.blocks.iter().zip(&self.places) {
            if let (Block::Copy(bytes), Some(at)) = (block, place) {
                copies.push((*at, bytes));
            }
        }
        copies.sort_unstable_by_key(|(at, _)| *at);
        self.image.write_runs(&copies, BLOCK).await
    }

    /// The switch is done: what was taken is in use.
    pub(super) fn finish(self, counts: Counts) {
        self.reserved.into_iter().for_each(Reserved::keep);
        let place = self.image.geometry.start_of(counts.place.first);
        self.image.refcounts.switched(counts.table, place, counts.place.count as u32, self.lowest_freed);
    }
}

impl Qcow2 {
    /// Writes to clusters that nothing on disk refers to. In memory, they may be known as of a kind.
    pub(super) async fn write_unreferenced(
        &self,
        at: HostOffset,
        bytes: &[u8],
        own: Option<Metadata>,
    ) -> Result<()> {
        self.overlap.check(at, bytes.len() as u64, own)?;
        self.file.write_bytes(at.0, bytes).await
    }

    /// As [`Qcow2::write_unreferenced`], for pieces in the order of the file; neighbours together.
    pub(super) async fn write_runs(
        &self,
        pieces: &[(HostOffset, &[u8])],
        own: Option<Metadata>,
    ) -> Result<()> {
        let mut rest = pieces;
        while let Some((&(start, first), mut tail)) = rest.split_first() {
            let mut bytes = first.to_vec();
            while let Some((&(at, next), after)) = tail.split_first()
                && at == start.add(bytes.len() as u64)
                && bytes.len() + next.len() <= MERGE
            {
                bytes.extend(next);
                tail = after;
            }
            self.write_unreferenced(start, &bytes, own).await?;
            rest = tail;
        }
        Ok(())
    }
}

fn malformed(what: &str) -> Error {
    Error::new(Kind::Corrupt, what).remedy(REPAIR)
}

fn uncounted(cluster: u64) -> Error {
    Error::new(Kind::Corrupt, format!("cluster {cluster} is in use but not counted")).remedy(REPAIR)
}

fn uncounted_block(block: usize) -> Error {
    let what = format!("clusters are in use that no refcount block counts (reftable index: {block:#x})");
    Error::new(Kind::Corrupt, what).remedy(REPAIR)
}

fn overflow(cluster: u64) -> Error {
    let what = format!("the refcount of cluster {cluster} cannot get any higher");
    Error::new(Kind::InvalidArgument, what)
        .remedy("delete a snapshot, or convert the image to one with wider refcounts (refcount_bits)")
}
