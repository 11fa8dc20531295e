//! Writing metadata back: the order on disk, and the checkpoint that keeps it.
//!
//! At every instant the file holds an image whose tables refer only to clusters that are counted and written:
//!
//! 1. data, and new L2 tables, are written before anything in memory refers to them;
//! 2. refcount blocks, then (after a flush) the refcount table that names new ones;
//! 3. a flush;
//! 4. L2 slices, then (after a flush) the L1 entries that name new tables;
//! 5. a flush, where durability is asked for;
//! 6. only now are clusters that step 4 stopped using counted down (see [`super::alloc`]).
//!
//! With lazy refcounts, step 2 waits until the image is closed or the cache is full of blocks. Before the first
//! checkpoint that leaves refcounts behind, the dirty bit is set and flushed: whoever finds it set counts anew
//! before writing anything (see [`super::check`]). It is taken back when all refcounts are on disk.
//!
//! A [`Checkpoint`] copies all that is dirty at one instant, so that requests go on meanwhile: what they change
//! after that instant comes with the next one. Dying in between leaks clusters at worst.

use super::alloc::{Free, Reserved};
use super::cache::DirtyBytes;
use super::data::DataFile;
use super::driver::{Access, Qcow2};
use super::geometry::HostOffset;
use super::header::{CORRUPT, DIRTY, Header};
use super::overlap::Metadata;
use crate::block::graph::Event;
use crate::block::{Error, Kind, Result};

/// Adjacent pieces are written as one, up to this many bytes.
const MERGE: usize = 1 << 20;

/// Copies of bytes with their place in the file.
type Writes = Vec<(HostOffset, Vec<u8>)>;

/// All metadata that was dirty at one instant. Unless it comes to its end, it is dirty again: also when the
/// request that writes it is given up half-way.
struct Checkpoint<'a> {
    image: &'a Qcow2,
    blocks: Vec<DirtyBytes>,
    slices: Vec<DirtyBytes>,
    l1: Writes,
    /// What no table refers to once this is written.
    frees: Vec<Free>,
    finished: bool,
}

impl Checkpoint<'_> {
    fn finish(mut self) {
        self.finished = true;
        self.image.frees.push_written(std::mem::take(&mut self.frees));
    }
}

impl Drop for Checkpoint<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.image.refcounts.blocks.restore(&self.blocks);
        self.image.refcounts.restore_table();
        self.image.l2.restore(&self.slices);
        self.image.active.restore();
        self.image.frees.restore_fresh(std::mem::take(&mut self.frees));
    }
}

/// Whether refcounts are written before what relies on them, or left for later with the dirty bit set.
#[derive(Clone, Copy)]
enum RefcountsAre {
    Written,
    Left,
}

/// What becomes of the refcount table.
enum Table<'a> {
    /// Groups of entries change in place.
    Groups(Writes),
    /// It outgrew its place and moves.
    Moves(Reserved<'a>, Vec<u8>),
}

impl Qcow2 {
    /// Makes all completed writes durable.
    pub(super) async fn flush_all(&self) -> Result<()> {
        self.flush_with(self.when_refcounts()).await
    }

    async fn flush_with(&self, refcounts: RefcountsAre) -> Result<()> {
        if self.is_broken() {
            return Err(Error::new(
                Kind::Corrupt,
                "the image is marked as corrupt; its metadata is not written",
            ));
        }
        self.file.debug_event(Event::FlushToOs);
        self.write_back_with(refcounts).await?;
        self.file.debug_event(Event::FlushToDisk);
        self.flush_file().await?;
        self.release().await;
        Ok(())
    }

    /// Leaves nothing in memory that is not in the file. No request is in flight.
    pub(super) async fn close_all(&self) -> Result<()> {
        if !self.is_writable() {
            return Ok(());
        }
        self.settle().await?;
        let stored = self.store_bitmaps().await;
        self.give_back_unread().await;
        self.settle().await?;
        self.set_dirty(false).await?;
        stored
    }

    /// Brings file and memory together: all that changed is durable, refcounts too, all that was freed is free.
    pub(super) async fn settle(&self) -> Result<()> {
        self.empty_memory().await?;
        if self.frees.try_again() {
            self.empty_memory().await?;
        }
        self.return_space().await;
        self.end_with_sector().await?;
        self.flush_with(RefcountsAre::Written).await?;
        self.frees.forget_stuck();
        Ok(())
    }

    /// Flushes until nothing is left to be written or counted down.
    async fn empty_memory(&self) -> Result<()> {
        while !(self.frees.is_empty() && self.refcounts.is_clean() && self.l2.is_clean()) {
            self.flush_with(RefcountsAre::Written).await?;
            // Whoever still reads what was freed must come to an end.
            self.engine.yield_now().await;
        }
        Ok(())
    }

    /// Sets the dirty bit, or takes it back, durably.
    async fn set_dirty(&self, dirty: bool) -> Result<()> {
        let is_dirty = self.header.borrow().incompatible & DIRTY != 0;
        if is_dirty == dirty || self.access.get() == Access::Repair {
            return Ok(());
        }
        let mark = |header: &mut Header| {
            header.incompatible = (header.incompatible & !DIRTY) | (u64::from(dirty) * DIRTY);
        };
        self.change_header_durably(mark).await
    }

    fn when_refcounts(&self) -> RefcountsAre {
        match self.lazy_refcounts && !self.refcounts.blocks.is_crowded() {
            true => RefcountsAre::Left,
            false => RefcountsAre::Written,
        }
    }

    /// Before a request that changes something: see to what must come first. Cheap where nothing must.
    pub(super) async fn prepare_change(&self) -> Result<()> {
        if !self.is_writable() {
            return Err(Error::new(Kind::ReadOnly, "the image is read-only"));
        }
        self.settle_header().await?;
        self.clear_autoclear().await?;
        if self.bitmaps.must_track() {
            self.track_bitmaps().await?;
        }
        if self.overlap.lacks_inactive_l2() {
            self.note_inactive_l2().await?;
        }
        if self.unsettled.get() {
            self.file.flush().await?;
            self.unsettled.set(false);
        }
        if self.frees.is_crowded() {
            self.flush_all().await?;
        }
        if self.l2.is_crowded() || self.refcounts.blocks.is_crowded() {
            self.write_back().await?;
        }
        Ok(())
    }

    /// Whoever relies on an autoclear feature that is not upheld here must see it gone before anything changes.
    pub(super) async fn clear_autoclear(&self) -> Result<()> {
        if self.autoclear.get() == 0 {
            return Ok(());
        }
        self.change_header_durably(|header| header.autoclear = header.upheld()).await?;
        self.autoclear.set(0);
        Ok(())
    }

    /// Whether [`Qcow2::prepare_change`] has anything to do.
    pub(super) fn must_prepare(&self) -> bool {
        !self.is_writable()
            || self.autoclear.get() != 0
            || self.unsettled.get()
            || self.owes_header()
            || self.bitmaps.must_track()
            || self.overlap.lacks_inactive_l2()
            || self.frees.is_crowded()
            || self.l2.is_crowded()
            || self.refcounts.blocks.is_crowded()
    }

    /// Writes all metadata that is dirty now, in order; the last step is not yet durable.
    pub(super) async fn write_back(&self) -> Result<()> {
        self.write_back_with(self.when_refcounts()).await
    }

    async fn write_back_with(&self, refcounts: RefcountsAre) -> Result<()> {
        self.settle_header().await?;
        match refcounts {
            RefcountsAre::Left => self.write_all_but_refcounts().await,
            RefcountsAre::Written => self.write_in_order().await,
        }
    }

    async fn write_all_but_refcounts(&self) -> Result<()> {
        let _turn = self.writing.lock().await;
        if !self.refcounts.is_clean() {
            self.set_dirty(true).await?;
        }
        // No await since then: what the checkpoint shows is counted on disk, or the dirty bit is.
        let checkpoint = self.checkpoint_of(Vec::new());
        self.write_checkpoint(checkpoint, Table::Groups(Vec::new())).await
    }

    async fn write_in_order(&self) -> Result<()> {
        let mut room: Option<Reserved<'_>> = None;
        loop {
            if let Some((needed, wanted)) = self.refcounts.outgrown()
                && room.as_ref().is_none_or(|room| room.run.count < needed)
            {
                room = Some(self.reserve_contiguous(wanted).await?);
                continue;
            }
            let _turn = self.writing.lock().await;
            let enough = room.as_ref().map_or(0, |room| room.run.count);
            if self.refcounts.outgrown().is_some_and(|(needed, _)| needed > enough) {
                continue;
            }
            let (checkpoint, table) = self.checkpoint(room);
            return self.write_checkpoint(checkpoint, table).await;
        }
    }

    fn checkpoint<'a>(&'a self, room: Option<Reserved<'a>>) -> (Checkpoint<'a>, Table<'a>) {
        let table = match room.filter(|_| self.refcounts.outgrown().is_some()) {
            Some(room) => {
                let bytes = self.refcounts.take_table(room.run.count);
                Table::Moves(room, bytes)
            }
            None => Table::Groups(self.refcounts.take_changed()),
        };
        (self.checkpoint_of(self.refcounts.blocks.take_dirty()), table)
    }

    fn checkpoint_of(&self, blocks: Vec<DirtyBytes>) -> Checkpoint<'_> {
        Checkpoint {
            image: self,
            blocks,
            slices: self.l2.take_dirty(),
            l1: self.active.take_changed(),
            frees: self.frees.take_fresh(),
            finished: false,
        }
    }

    async fn write_checkpoint(&self, checkpoint: Checkpoint<'_>, table: Table<'_>) -> Result<()> {
        let mut done = self.write_refcounts(&checkpoint.blocks, table).await;
        if done.is_ok() {
            done = self.write_mappings(&checkpoint.slices, &checkpoint.l1).await;
        }
        match done {
            Ok(()) => {
                checkpoint.finish();
                Ok(())
            }
            Err(error) => {
                drop(checkpoint);
                Err(self.corrupted(error).await)
            }
        }
    }

    async fn write_refcounts(&self, blocks: &[DirtyBytes], table: Table<'_>) -> Result<()> {
        self.file.debug_event(Event::RefblockUpdate);
        self.write_merged(blocks, Metadata::RefcountBlock).await?;
        match table {
            Table::Groups(groups) if groups.is_empty() => Ok(()),
            Table::Groups(groups) => {
                self.file.flush().await?;
                self.file.debug_event(Event::ReftableUpdate);
                self.write_all(&groups, Metadata::RefcountTable).await
            }
            Table::Moves(room, bytes) => self.move_refcount_table(room, &bytes).await,
        }
    }

    /// Writes the refcount table to its new place, then switches the header to it: the old or the new one.
    async fn move_refcount_table(&self, room: Reserved<'_>, bytes: &[u8]) -> Result<()> {
        let offset = self.geometry.start_of(room.run.first);
        self.overlap.check(offset, bytes.len() as u64, None)?;
        self.file.debug_event(Event::RefblockAllocWriteTable);
        self.file.write_bytes(offset.0, bytes).await?;
        self.file.flush().await?;
        self.file.debug_event(Event::RefblockAllocSwitchTable);
        let clusters = room.run.count as u32;
        let switch = |header: &mut Header| {
            header.refcount_table_offset = offset;
            header.refcount_table_clusters = clusters;
        };
        if let Err(error) = self.change_header(switch).await {
            if self.owes_header() {
                // The header on disk may name the new place: nothing else goes there.
                room.keep();
            }
            return Err(error);
        }
        room.keep();
        let old = self.refcounts.moved(offset, clusters);
        self.overlap.set_range(Metadata::RefcountTable, self.refcounts.table_range());
        self.free_table(old);
        self.file.flush().await
    }

    async fn write_mappings(&self, slices: &[DirtyBytes], l1: &Writes) -> Result<()> {
        if slices.is_empty() && l1.is_empty() {
            return Ok(());
        }
        self.flush_file().await?;
        self.file.debug_event(Event::L2Update);
        self.write_merged(slices, Metadata::ActiveL2).await?;
        if l1.is_empty() {
            return Ok(());
        }
        self.file.flush().await?;
        self.file.debug_event(Event::L1Update);
        self.write_all(l1, Metadata::ActiveL1).await
    }

    /// Flushes the data file and then the file; what the tables stopped using before is free for good then.
    async fn flush_file(&self) -> Result<()> {
        if let Some(DataFile { node: Some(data), .. }) = &self.data_file {
            data.flush().await?;
        }
        let frees = self.frees.take_written();
        match self.file.flush().await {
            Ok(()) => {
                self.frees.push_durable(frees);
                Ok(())
            }
            Err(error) => {
                self.frees.push_written(frees);
                Err(error)
            }
        }
    }

    /// Writes pieces, neighbours together.
    async fn write_merged(&self, parts: &[DirtyBytes], kind: Metadata) -> Result<()> {
        let mut rest = parts;
        while let Some((first, mut tail)) = rest.split_first() {
            let mut bytes = first.bytes.clone();
            while let Some((next, after)) = tail.split_first()
                && next.offset == first.offset.add(bytes.len() as u64)
                && bytes.len() + next.bytes.len() <= MERGE
            {
                bytes.extend(&next.bytes);
                tail = after;
            }
            self.write_metadata(first.offset, &bytes, kind).await?;
            rest = tail;
        }
        Ok(())
    }

    async fn write_all(&self, writes: &Writes, kind: Metadata) -> Result<()> {
        for (offset, bytes) in writes {
            self.write_metadata(*offset, bytes, kind).await?;
        }
        Ok(())
    }

    async fn write_metadata(&self, offset: HostOffset, bytes: &[u8], kind: Metadata) -> Result<()> {
        self.overlap.check(offset, bytes.len() as u64, Some(kind))?;
        self.file.write_bytes(offset.0, bytes).await
    }

    /// Whether the image was found corrupt since it was opened.
    fn is_broken(&self) -> bool {
        self.header.borrow().incompatible & CORRUPT != 0 && self.access.get() == Access::Ended
    }

    /// The outcome of a change, after [`Qcow2::corrupted`] has seen what error there is.
    pub(super) async fn judged<T>(&self, done: Result<T>) -> Result<T> {
        match done {
            Ok(value) => Ok(value),
            Err(error) => Err(Box::pin(self.corrupted(error)).await),
        }
    }

    /// If an error says that the image contradicts itself, and it is open for writing: marks it as corrupt and
    /// lets nobody write any more. Returns the error. One that names a file came from another image of the chain.
    pub(super) async fn corrupted(&self, error: Error) -> Error {
        if error.kind() != Kind::Corrupt || error.file().is_some() || !self.is_writable() {
            return error;
        }
        self.access.set(Access::Ended);
        let mark = |header: &mut Header| header.incompatible |= CORRUPT;
        if self.v3.get() {
            // If this fails too, there is nothing else that could be done.
            let _ = self.change_header(mark).await;
            let _ = self.file.flush().await;
        }
        mark(&mut self.header.borrow_mut());
        error.context("Marking image as corrupt")
    }
}
