//! `log_writes`: a node that notes all that changes the file below, and makes the files that a crash could have
//! left.
//!
//! ```text
//!   log:   write 0 │ write 1 │ flush │ write 2 │ discard 3 │ flush │ write 4
//!          └── durable ──────┘       └── at a crash here: any part of these ──┘
//! ```
//! # What is assumed of the host
//!
//! * A sector ([`SECTOR`] bytes, aligned) is written as a whole or not at all. Nothing longer is.
//! * A flush makes durable what was over when it began, and nothing else. A change that was under way then is as
//!   unsure as one that came later.
//! * Of two changes that overlap, the later one was sent after the earlier one had ended (a log in which that is
//!   not so says so: [`Log::has_overtaking`]), and it wins where both are there.
//! * What a discarded range reads as is nobody's promise: replays put [`GARBAGE`] there.
//!
//! # The two ways to die
//!
//! [`Replay::killed`]: the process dies, the host lives; all that was sent is there. [`Replay::power_failure`]: the
//! host dies too. Of what no flush made durable, any set of sectors is there, whichever of them came first: so
//! writes that no flush separates are also reordered and torn in every way.

use crate::block::graph::driver::Specifics;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Event, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{Buffer, Iov, Result};
use async_trait::async_trait;
use std::cell::{Cell, Ref, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// What the host writes as a whole, in bytes.
pub const SECTOR: u64 = 512;
/// What replays put in discarded ranges.
pub const GARBAGE: u8 = 0xdd;

/// A change of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes at an offset.
    Write(u64, Vec<u8>),
    /// Zeros in a range.
    Zero(Range<u64>),
    /// A range that nobody needs any more.
    Discard(Range<u64>),
    /// Another length.
    Truncate(u64),
}

impl Change {
    /// The bytes of the file that it touches.
    fn range(&self) -> Range<u64> {
        match self {
            Change::Write(offset, bytes) => *offset..offset + bytes.len() as u64,
            Change::Zero(range) | Change::Discard(range) => range.clone(),
            Change::Truncate(size) => *size..u64::MAX,
        }
    }

    /// Does to `file` what it does to a file, in the sectors that `keep` says yes to.
    fn apply(&self, file: &mut Vec<u8>, mut keep: impl FnMut(u64) -> bool) {
        if let Change::Truncate(size) = self {
            if keep(0) {
                file.resize(*size as usize, 0);
            }
            return;
        }
        let Range { mut start, end } = self.range();
        while start < end {
            let next = (start / SECTOR + 1).saturating_mul(SECTOR).min(end);
            if keep(start / SECTOR) {
                self.apply_part(file, start..next);
            }
            start = next;
        }
    }

    fn apply_part(&self, file: &mut Vec<u8>, part: Range<u64>) {
        let (start, end) = (part.start as usize, part.end as usize);
        if let Change::Discard(_) = self {
            let end = end.min(file.len());
            file[start.min(end)..end].fill(GARBAGE);
            return;
        }
        if file.len() < end {
            file.resize(end, 0);
        }
        match self {
            Change::Write(offset, bytes) => {
                let from = start - *offset as usize;
                file[start..end].copy_from_slice(&bytes[from..from + end - start]);
            }
            _ => file[start..end].fill(0),
        }
    }
}

/// One line of the log. Moments are counted by a clock that moves with every request that begins or ends.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A change: when it was over, if it ended well.
    Change(Change, Option<u64>),
    /// A flush that ended well: when it had begun.
    Flush(u64),
}

/// What was done to a file, in the order in which it was sent; flushes stand where they ended.
#[derive(Default)]
pub struct Log {
    entries: RefCell<Vec<Entry>>,
    clock: Cell<u64>,
    under_way: RefCell<Vec<Range<u64>>>,
    overtaking: Cell<bool>,
}

impl Log {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries.
    pub fn entries(&self) -> Ref<'_, [Entry]> {
        Ref::map(self.entries.borrow(), Vec::as_slice)
    }

    /// Whether a change began while another that it overlaps was under way: then which of them wins is not
    /// defined, and replays know just one answer.
    pub fn has_overtaking(&self) -> bool {
        self.overtaking.get()
    }

    /// Forgets everything. Nothing may be under way.
    pub fn clear(&self) {
        self.entries.borrow_mut().clear();
        self.overtaking.set(false);
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// Notes a change that begins, does it by `doing`, and notes that it is over.
    async fn change(&self, change: Change, doing: impl Future<Output = Result<()>>) -> Result<()> {
        let range = change.range();
        let index = self.len();
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        let overtakes = self.under_way.borrow().iter().any(overlaps);
        self.overtaking.set(self.overtaking.get() || overtakes);
        self.under_way.borrow_mut().push(range.clone());
        self.tick();
        self.entries.borrow_mut().push(Entry::Change(change, None));
        let done = doing.await;
        let now = self.tick();
        let mut under_way = self.under_way.borrow_mut();
        if let Some(at) = under_way.iter().position(|other| *other == range) {
            under_way.swap_remove(at);
        }
        if let Some(Entry::Change(_, end)) = self.entries.borrow_mut().get_mut(index) {
            *end = done.is_ok().then_some(now);
        }
        done
    }

    async fn flush(&self, doing: impl Future<Output = Result<()>>) -> Result<()> {
        let began = self.tick();
        doing.await?;
        self.entries.borrow_mut().push(Entry::Flush(began));
        Ok(())
    }
}

/// The file as it goes through a log, entry by entry.
pub struct Replay<'a> {
    entries: &'a [Entry],
    at: usize,
    killed: Vec<u8>,
    durable: Vec<u8>,
    /// What no flush has made durable yet.
    unsure: Vec<usize>,
}

impl<'a> Replay<'a> {
    /// A replay of `entries` over a file that was `initial`, before the first entry.
    pub fn new(entries: &'a [Entry], initial: &[u8]) -> Replay<'a> {
        Replay { entries, at: 0, killed: initial.to_vec(), durable: initial.to_vec(), unsure: Vec::new() }
    }

    /// How many entries were done.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Does the next entry; false at the end.
    pub fn advance(&mut self) -> bool {
        match self.entries.get(self.at) {
            None => return false,
            Some(Entry::Change(change, _)) => {
                change.apply(&mut self.killed, |_| true);
                self.unsure.push(self.at);
            }
            Some(Entry::Flush(began)) => self.make_durable(*began),
        }
        self.at += 1;
        true
    }

    fn make_durable(&mut self, began: u64) {
        for index in std::mem::take(&mut self.unsure) {
            match &self.entries[index] {
                Entry::Change(change, Some(end)) if *end < began => change.apply(&mut self.durable, |_| true),
                _ => self.unsure.push(index),
            }
        }
    }

    /// Whether something would be lost in a power failure now.
    pub fn is_unsure(&self) -> bool {
        !self.unsure.is_empty()
    }

    /// What a process that dies now leaves.
    pub fn killed(&self) -> &[u8] {
        &self.killed
    }

    /// What a power failure now could leave: of what is not durable, the sectors that `keep` says yes to. It is
    /// asked with the number of the entry and that of the sector; a truncation is one sector, number 0.
    pub fn power_failure(&self, mut keep: impl FnMut(usize, u64) -> bool) -> Vec<u8> {
        let mut file = self.durable.clone();
        for &index in &self.unsure {
            if let Entry::Change(change, _) = &self.entries[index] {
                change.apply(&mut file, |sector| keep(index, sector));
            }
        }
        file
    }
}

/// The filter over one file.
pub struct LogWrites {
    file: Rc<Node>,
    log: Rc<Log>,
}

impl LogWrites {
    /// A filter over `file` that writes to `log`.
    pub fn new(file: Rc<Node>, log: Rc<Log>) -> LogWrites {
        LogWrites { file, log }
    }
}

#[async_trait(?Send)]
impl Driver for LogWrites {
    fn format_name(&self) -> &'static str {
        "log_writes"
    }

    fn size(&self) -> u64 {
        self.file.size()
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        vec![(ChildRole::File, self.file.clone())]
    }

    fn limits(&self) -> Limits {
        self.file.driver().limits()
    }

    fn read_only(&self) -> bool {
        self.file.driver().read_only()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.file.read(offset, into).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        // The bytes as they are now: a guest may change them while they are written.
        let bytes = Buffer::from_bytes(&from.to_vec()).iov(from.len());
        let change = Change::Write(offset, bytes.to_vec());
        self.log.change(change, self.file.write(offset, &bytes)).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let change = Change::Zero(offset..offset + len);
        self.log.change(change, self.file.write_zeroes(offset, len, may_unmap)).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let change = Change::Discard(offset..offset + len);
        self.log.change(change, self.file.discard(offset, len)).await
    }

    async fn flush(&self) -> Result<()> {
        self.log.flush(self.file.flush()).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::of_file(&self.file, offset, len))
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.log.change(Change::Truncate(size), self.file.truncate(size, preallocation)).await
    }

    fn debug_event(&self, event: Event) {
        self.file.debug_event(event);
    }

    fn allocated_size(&self) -> Option<u64> {
        self.file.driver().allocated_size()
    }

    fn specifics(&self) -> Option<Specifics> {
        self.file.driver().specifics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8, end: Option<u64>) -> Entry {
        Entry::Change(Change::Write(offset, vec![byte; 512]), end)
    }

    /// Everything that a power failure could leave after `entries`.
    fn outcomes(entries: &[Entry], initial: &[u8]) -> Vec<Vec<u8>> {
        let mut replay = Replay::new(entries, initial);
        while replay.advance() {}
        let mut all: Vec<Vec<u8>> = (0..64u32)
            .map(|choice| {
                let mut bits = (0..6).map(|bit| choice >> bit & 1 == 1).cycle();
                replay.power_failure(|_, _| bits.next().unwrap())
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn a_flush_makes_durable_what_was_over_when_it_began() {
        let initial = [0; 1024];
        // The second write ended while the flush was under way.
        let entries = [write(0, 1, Some(2)), write(512, 2, Some(5)), Entry::Flush(4)];
        let first = [[1; 512], [0; 512]].concat();
        let both = [[1; 512], [2; 512]].concat();
        assert_eq!(outcomes(&entries, &initial), [first, both]);
        let failed = [write(0, 1, None), Entry::Flush(4)];
        assert_eq!(outcomes(&failed, &initial[..512]).len(), 2);
    }

    #[test]
    fn writes_that_no_flush_separates_are_dropped_torn_and_in_any_order() {
        let torn = [Entry::Change(Change::Write(256, vec![1; 1024]), Some(2))];
        // Three sectors are touched: one from its middle on, one as a whole, one up to its middle.
        assert_eq!(outcomes(&torn, &[0; 2048]).len(), 8);
        let two = [write(0, 1, Some(2)), write(512, 2, Some(4))];
        let (only_first, only_second) = (vec![1; 512], [[0; 512], [2; 512]].concat());
        let seen = outcomes(&two, &[]);
        assert!(seen.contains(&only_first) && seen.contains(&only_second) && seen.len() == 4);
        let twice = [write(0, 1, Some(2)), write(0, 2, Some(4))];
        assert_eq!(outcomes(&twice, &[0; 512]), [[0; 512], [1; 512], [2; 512]]);
    }

    #[test]
    fn zeros_discards_and_lengths_are_replayed() {
        let changes = [Change::Zero(512..1024), Change::Discard(1024..4096), Change::Truncate(1536)];
        let entries: Vec<Entry> = changes.into_iter().map(|change| Entry::Change(change, Some(1))).collect();
        let mut replay = Replay::new(&entries, &[7; 2048]);
        assert!(replay.advance() && replay.advance());
        assert_eq!(replay.killed(), [vec![7; 512], vec![0; 512], vec![GARBAGE; 1024]].concat());
        assert!(replay.advance() && !replay.advance());
        assert_eq!((replay.killed().len(), replay.power_failure(|_, _| false)), (1536, vec![7; 2048]));
    }
}
