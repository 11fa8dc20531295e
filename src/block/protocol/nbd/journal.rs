//! Changes that a server has acknowledged and that no flush has covered yet.
//!
//! A server that dies may lose them: what sat in its own caches is gone, though it had said that the writes were
//! done. The client therefore keeps a copy until a flush that began later has succeeded, and makes them again, in
//! their order, on the next connection, before anything else is sent there.

use super::requests::Ask;
use crate::block::Buffer;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Most bytes that are kept, those for which room is held among them; then a flush makes room.
const MAX_BYTES: usize = 64 << 20;
/// What an entry counts for beside its data, in bytes.
const OVERHEAD: usize = 256;
/// Data is kept in buffers of whole pages, in bytes.
const PAGE: usize = 4096;

/// The changes in the order of their replies.
#[derive(Default)]
pub(super) struct Journal {
    entries: VecDeque<Ask>,
    /// Number of the first entry; they are numbered from 0 over the life of the client.
    first: u64,
    bytes: usize,
    /// For changes that are not acknowledged yet.
    reserved: usize,
    waiting: Vec<Waker>,
}

impl Journal {
    /// Keeps a change.
    pub(super) fn push(&mut self, ask: &Ask) {
        let copy = ask.memory.as_ref().map(|memory| {
            let copy = Buffer::new(memory.len()).iov(memory.len());
            copy.copy_from_iov(0, memory);
            copy
        });
        self.bytes += size(ask);
        self.entries.push_back(Ask { memory: copy, ..ask.clone() });
    }

    /// The number that the next entry gets: a flush that is made now covers all before it.
    pub(super) fn mark(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// A flush that was made at `mark` has succeeded.
    pub(super) fn flushed(&mut self, mark: u64) {
        while self.first < mark
            && let Some(entry) = self.entries.pop_front()
        {
            self.first += 1;
            self.bytes -= size(&entry);
        }
    }

    /// Whether a flush covers everything.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Some of the entries from that number on, `most` of them at most and none over another; the number behind them.
    pub(super) fn batch(&self, number: u64, most: usize) -> (u64, Vec<Ask>) {
        let start = number.max(self.first);
        let mut batch: Vec<Ask> = Vec::new();
        for entry in self.entries.range(((start - self.first) as usize).min(self.entries.len())..).take(most)
        {
            if batch.iter().any(|other| overlap(other, entry)) {
                break;
            }
            batch.push(entry.clone());
        }
        (start + batch.len() as u64, batch)
    }
}

fn overlap(one: &Ask, other: &Ask) -> bool {
    one.offset < other.offset + other.len && other.offset < one.offset + one.len
}

fn size(ask: &Ask) -> usize {
    size_of_data(ask.memory.as_ref().map_or(0, crate::block::Iov::len))
}

fn size_of_data(len: usize) -> usize {
    OVERHEAD + len.next_multiple_of(PAGE)
}

/// Room for a change that is under way; dropping it gives it back.
#[must_use]
pub(super) struct Room<'a> {
    journal: &'a RefCell<Journal>,
    bytes: usize,
}

impl Room<'_> {
    /// Room for `len` bytes, if there is any. One change always finds room.
    pub(super) fn take(journal: &RefCell<Journal>, len: usize) -> Option<Room<'_>> {
        let bytes = size_of_data(len);
        let mut state = journal.borrow_mut();
        let held = state.bytes + state.reserved;
        if held > 0 && held + bytes > MAX_BYTES {
            return None;
        }
        state.reserved += bytes;
        Some(Room { journal, bytes })
    }

    /// Waits until some is given back.
    pub(super) async fn given_back(journal: &RefCell<Journal>) {
        let before = journal.borrow().reserved;
        poll_fn(|cx| {
            let mut state = journal.borrow_mut();
            if state.reserved < before || before == 0 {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.journal.borrow_mut();
            state.reserved -= self.bytes;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::nbd::Command;

    fn write(byte: u8) -> Ask {
        let memory = Some(Buffer::from_bytes(&[byte; 10]).iov(10));
        Ask { command: Command::Write, flags: 0, offset: 0, len: 10, memory }
    }

    #[test]
    fn a_flush_covers_what_was_there_when_it_began() {
        let mut journal = Journal::default();
        journal.push(&write(1));
        let mark = journal.mark();
        journal.push(&write(2));
        journal.flushed(mark);
        let (end, batch) = journal.batch(0, 9);
        assert_eq!((end, batch[0].memory.as_ref().unwrap().to_vec()), (2, vec![2; 10]));
        journal.flushed(journal.mark());
        assert!(journal.is_empty() && journal.batch(0, 9).1.is_empty());
        assert_eq!(journal.bytes, 0);
        journal.flushed(mark);
    }

    #[test]
    fn what_is_kept_does_not_change_with_the_guests_memory() {
        let (mut journal, ask) = (Journal::default(), write(1));
        journal.push(&ask);
        ask.memory.unwrap().fill(0, 10, 9);
        assert_eq!(journal.batch(0, 1).1[0].memory.as_ref().unwrap().to_vec(), [1; 10]);
    }

    #[test]
    fn what_is_made_again_together_does_not_overlap() {
        let mut journal = Journal::default();
        for (offset, byte) in [(0, 1), (10, 2), (5, 3), (20, 4)] {
            journal.push(&Ask { offset, ..write(byte) });
        }
        let ends: Vec<u64> = [0, 2, 3].map(|start| journal.batch(start, 9).0).into();
        assert_eq!(ends, [2, 4, 4]);
        assert_eq!(journal.batch(0, 1).0, 1);
    }

    #[test]
    fn room_is_bounded_with_what_is_under_way_and_one_change_always_finds_some() {
        let journal = RefCell::new(Journal::default());
        let rooms: Vec<Room<'_>> = std::iter::from_fn(|| Room::take(&journal, 1 << 20)).collect();
        assert_eq!(rooms.len(), 63);
        drop(rooms);
        let all = Room::take(&journal, 2 * MAX_BYTES);
        assert!(all.is_some() && Room::take(&journal, 0).is_none());
        drop(all);
        assert_eq!(journal.borrow().reserved, 0);
    }
}
