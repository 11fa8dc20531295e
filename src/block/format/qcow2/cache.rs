//! Metadata in memory: a write-back cache of equal pieces of the image file, L2 slices or refcount blocks.
//!
//! * A piece is shared by `Rc`; whoever holds one keeps it in the cache, so there is never a second copy.
//! * A dirty piece is never dropped. When all are dirty or held, the cache grows past its capacity for a
//!   moment, and [`Cache::is_crowded`] tells the next writer to have them written back first. As long as all that
//!   is in use fits, nothing is written before a flush asks for it.
//! * Two tasks that miss the same piece read it once.
//!
//! Replacement is second chance: a piece that was used since the hand last passed is passed over once.

use super::extensions::be64;
use super::geometry::HostOffset;
use crate::block::Result;
use crate::block::graph::{Event, Node};
use crate::block::range_lock::RangeLock;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::rc::Rc;

/// Dirty bytes are written in units of this size, so that direct I/O needs no read-modify-write.
const DIRTY_UNIT: usize = 4096;

/// A hasher for offsets and cluster numbers: one multiplication. An image chooses its offsets, but it can only
/// slow down its own lookups.
#[derive(Default)]
pub(super) struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.chunks(8).for_each(|chunk| self.write_u64(be64(chunk)));
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(value ^ self.0) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

/// A map keyed by offsets or cluster numbers.
pub(super) type OffsetMap<K, V> = HashMap<K, V, BuildHasherDefault<OffsetHasher>>;

/// A piece of metadata, as it stands on disk.
pub(super) struct Piece {
    offset: HostOffset,
    bytes: RefCell<Box<[u8]>>,
    dirty: RefCell<Option<Range<usize>>>,
    used: Cell<bool>,
}

impl Piece {
    fn new(offset: HostOffset, bytes: Vec<u8>) -> Rc<Piece> {
        Rc::new(Piece {
            offset,
            bytes: RefCell::new(bytes.into_boxed_slice()),
            dirty: RefCell::new(None),
            used: Cell::new(true),
        })
    }

    /// Where it stands in the file.
    pub(super) fn offset(&self) -> HostOffset {
        self.offset
    }

    /// Looks at the bytes. `f` must not come back to this piece.
    pub(super) fn with<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        f(&self.bytes.borrow())
    }

    fn mark(&self, range: Range<usize>) {
        let len = self.bytes.borrow().len();
        let range = range.start / DIRTY_UNIT * DIRTY_UNIT..range.end.next_multiple_of(DIRTY_UNIT).min(len);
        let mut dirty = self.dirty.borrow_mut();
        *dirty = Some(match dirty.take() {
            Some(old) => old.start.min(range.start)..old.end.max(range.end),
            None => range,
        });
    }

    fn take_dirty(self: &Rc<Piece>) -> Option<DirtyBytes> {
        let range = self.dirty.borrow_mut().take()?;
        let (offset, bytes) = (self.offset.add(range.start as u64), self.bytes.borrow()[range].to_vec());
        Some(DirtyBytes { piece: self.clone(), offset, bytes })
    }

    fn is_dirty(&self) -> bool {
        self.dirty.borrow().is_some()
    }
}

/// A copy of bytes that are on their way to the file. It holds the piece, so that nobody reads it from the file
/// meanwhile.
pub(super) struct DirtyBytes {
    piece: Rc<Piece>,
    /// Where they belong.
    pub(super) offset: HostOffset,
    /// The bytes.
    pub(super) bytes: Vec<u8>,
}

/// The pieces in memory.
pub(super) struct Cache {
    piece_size: usize,
    capacity: Cell<usize>,
    pieces: RefCell<OffsetMap<HostOffset, Rc<Piece>>>,
    /// The clock: every piece once, the next candidate in front.
    clock: RefCell<VecDeque<HostOffset>>,
    /// Pieces that were changed since the last checkpoint.
    dirty: RefCell<HashSet<HostOffset, BuildHasherDefault<OffsetHasher>>>,
    loading: RangeLock,
    /// What the file is told when a piece is read.
    load: Event,
}

impl Cache {
    /// A cache of `capacity` (at least 2) pieces of `piece_size` bytes; `load` is told to the file when one is read.
    pub(super) fn new(piece_size: u64, capacity: usize, load: Event) -> Cache {
        Cache {
            piece_size: piece_size as usize,
            capacity: Cell::new(capacity),
            pieces: RefCell::default(),
            clock: RefCell::default(),
            dirty: RefCell::default(),
            loading: RangeLock::default(),
            load,
        }
    }

    /// Lets the cache hold `capacity` pieces from now on.
    pub(super) fn set_capacity(&self, capacity: usize) {
        self.capacity.set(capacity);
    }

    /// Looks at a piece if it is in memory.
    pub(super) fn peek<T>(&self, offset: HostOffset, f: impl FnOnce(&Piece) -> T) -> Option<T> {
        let pieces = self.pieces.borrow();
        let piece = pieces.get(&offset)?;
        piece.used.set(true);
        Some(f(piece))
    }

    /// A piece, if it is in memory.
    pub(super) fn get(&self, offset: HostOffset) -> Option<Rc<Piece>> {
        let piece = self.pieces.borrow().get(&offset).cloned()?;
        piece.used.set(true);
        Some(piece)
    }

    /// A piece, read from `file` if it is not in memory.
    pub(super) async fn load(&self, file: &Node, offset: HostOffset) -> Result<Rc<Piece>> {
        if let Some(piece) = self.get(offset) {
            return Ok(piece);
        }
        let _turn = self.loading.lock(offset.0..offset.0 + 1, true).await;
        if let Some(piece) = self.get(offset) {
            return Ok(piece);
        }
        file.debug_event(self.load);
        let bytes = file.read_bytes(offset.0, self.piece_size).await?;
        Ok(self.insert(Piece::new(offset, bytes)))
    }

    /// A new piece of zeros, dirty as a whole. What was cached of that place is forgotten.
    pub(super) fn create(&self, offset: HostOffset) -> Rc<Piece> {
        self.forget(offset, self.piece_size as u64);
        let piece = self.insert(Piece::new(offset, vec![0; self.piece_size]));
        self.mark(&piece, 0..self.piece_size);
        piece
    }

    /// Changes bytes of a piece; `f` returns which.
    pub(super) fn change(&self, piece: &Piece, f: impl FnOnce(&mut [u8]) -> Range<usize>) {
        let changed = f(&mut piece.bytes.borrow_mut());
        self.mark(piece, changed);
    }

    /// Copies all that is dirty, in the order of the file; it counts as clean from now on.
    pub(super) fn take_dirty(&self) -> Vec<DirtyBytes> {
        let mut dirty: Vec<HostOffset> = self.dirty.borrow_mut().drain().collect();
        dirty.sort_unstable();
        let pieces = self.pieces.borrow();
        dirty.iter().filter_map(|offset| pieces.get(offset)?.take_dirty()).collect()
    }

    /// Takes back what could not be written.
    pub(super) fn restore(&self, unwritten: &[DirtyBytes]) {
        for part in unwritten {
            let start = (part.offset.0 - part.piece.offset.0) as usize;
            self.mark(&part.piece, start..start + part.bytes.len());
        }
    }

    fn mark(&self, piece: &Piece, range: Range<usize>) {
        piece.mark(range);
        self.dirty.borrow_mut().insert(piece.offset);
    }

    /// Whether so much is dirty that a writer should have it written back before it dirties more.
    pub(super) fn is_crowded(&self) -> bool {
        let capacity = self.capacity.get();
        self.pieces.borrow().len() > capacity && self.dirty.borrow().len() > capacity / 2
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.borrow().is_empty()
    }

    /// Drops what is cached of a range of the file, changes and all: its content has no meaning any more.
    pub(super) fn forget(&self, offset: HostOffset, len: u64) {
        let mut found = false;
        for at in (offset.0..offset.0 + len).step_by(self.piece_size) {
            found |= self.pieces.borrow_mut().remove(&HostOffset(at)).is_some();
            self.dirty.borrow_mut().remove(&HostOffset(at));
        }
        if found {
            self.clock.borrow_mut().retain(|at| !(offset.0..offset.0 + len).contains(&at.0));
        }
    }

    /// Drops everything, changes and all.
    pub(super) fn clear(&self) {
        self.pieces.take();
        self.clock.take();
        self.dirty.take();
    }

    /// Drops the pieces that are clean, that nobody holds and that were not used since the last time, or since
    /// the hand passed them.
    pub(super) fn drop_unused(&self) {
        let mut pieces = self.pieces.borrow_mut();
        pieces
            .retain(|_, piece| piece.used.replace(false) || piece.is_dirty() || Rc::strong_count(piece) > 1);
        pieces.shrink_to_fit();
        let mut clock = self.clock.borrow_mut();
        clock.retain(|offset| pieces.contains_key(offset));
        clock.shrink_to_fit();
    }

    /// How many pieces are in memory.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pieces.borrow().len()
    }

    /// Whether a piece was changed since the last checkpoint.
    pub(super) fn is_dirty(&self, offset: HostOffset) -> bool {
        self.dirty.borrow().contains(&offset)
    }

    fn insert(&self, piece: Rc<Piece>) -> Rc<Piece> {
        while self.pieces.borrow().len() >= self.capacity.get() && self.evict_one() {}
        self.clock.borrow_mut().push_back(piece.offset);
        self.pieces.borrow_mut().insert(piece.offset, piece.clone());
        piece
    }

    /// Drops a piece that is clean, that nobody holds and that was not used lately.
    fn evict_one(&self) -> bool {
        let (mut pieces, mut clock) = (self.pieces.borrow_mut(), self.clock.borrow_mut());
        if self.dirty.borrow().len() >= pieces.len() {
            return false;
        }
        // Twice round: the first takes the second chances away.
        for _ in 0..2 * clock.len() {
            let Some(offset) = clock.pop_front() else { return false };
            let Some(piece) = pieces.get(&offset) else { continue };
            if Rc::strong_count(piece) == 1 && !piece.is_dirty() && !piece.used.replace(false) {
                pieces.remove(&offset);
                return true;
            }
            clock.push_back(offset);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(cache: &Cache, offset: u64) -> Rc<Piece> {
        cache.insert(Piece::new(HostOffset(offset), vec![0; 512]))
    }

    fn set(cache: &Cache, piece: &Piece, at: usize, byte: u8) {
        cache.change(piece, |bytes| {
            bytes[at] = byte;
            at..at + 1
        });
    }

    #[test]
    fn clean_unused_pieces_leave_first_and_dirty_or_held_ones_never() {
        let cache = Cache::new(512, 4, Event::None);
        let held = insert(&cache, 0);
        let dirty = insert(&cache, 512);
        set(&cache, &dirty, 24, 7);
        drop(dirty);
        for at in 2..100 {
            insert(&cache, at * 512);
        }
        assert!(cache.pieces.borrow().len() <= 5);
        assert!(cache.get(HostOffset(0)).is_some());
        assert_eq!(cache.peek(HostOffset(512), |piece| piece.with(|bytes| bytes[24])), Some(7));
        assert_eq!(held.with(|bytes| bytes[0]), 0);
    }

    #[test]
    fn pieces_unused_since_the_last_time_are_dropped_and_dirty_or_held_ones_never() {
        let cache = Cache::new(512, 8, Event::None);
        let held = insert(&cache, 0);
        set(&cache, &insert(&cache, 512), 24, 7);
        (2..5).for_each(|at| drop(insert(&cache, at * 512)));
        cache.drop_unused();
        assert_eq!(cache.len(), 5);
        cache.get(HostOffset(3 * 512)).unwrap();
        cache.drop_unused();
        let left = |at: &u64| cache.pieces.borrow().contains_key(&HostOffset(at * 512));
        assert_eq!((0..5).filter(left).collect::<Vec<u64>>(), [0, 1, 3]);
        assert_eq!(cache.clock.borrow().len(), 3);
        drop((held, cache.take_dirty()));
        cache.drop_unused();
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn a_checkpoint_takes_each_dirty_range_once_in_file_order() {
        let cache = Cache::new(8192, 8, Event::None);
        for at in [3u64, 1, 2] {
            let piece = cache.insert(Piece::new(HostOffset(at * 8192), vec![0; 8192]));
            set(&cache, &piece, 4800, at as u8);
        }
        let taken: Vec<u64> = cache.take_dirty().iter().map(|part| part.offset.0).collect();
        assert_eq!(taken, [8192 + 4096, 2 * 8192 + 4096, 3 * 8192 + 4096]);
        assert!(cache.take_dirty().is_empty() && cache.is_clean());
    }
}
