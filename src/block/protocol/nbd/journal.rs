//! Changes that a server has acknowledged and that no flush has covered yet.
//!
//! A server that dies may lose them: what sat in its own caches is gone, though it had said that the writes were
//! done. The client therefore keeps a copy until a flush that began later has succeeded, and makes them again, in
//! their order, on the next connection, before anything else is sent there.

use super::requests::Ask;
use crate::block::Buffer;
use std::collections::VecDeque;

/// Most bytes that are kept; then a flush makes room.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// What an entry without data counts for, in bytes.
const OVERHEAD: usize = 256;

/// The changes in the order of their replies.
#[derive(Default)]
pub(super) struct Journal {
    entries: VecDeque<Ask>,
    /// Number of the first entry; they are numbered from 0 over the life of the client.
    first: u64,
    bytes: usize,
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

    /// Whether `len` bytes more are too many.
    pub(super) fn is_full(&self, len: usize) -> bool {
        !self.entries.is_empty() && self.bytes + len + OVERHEAD > MAX_BYTES
    }

    /// Whether a flush covers everything.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of a number, and of the first one that there is if that is later.
    pub(super) fn entry(&self, number: u64) -> Option<(u64, Ask)> {
        let number = number.max(self.first);
        let entry = self.entries.get((number - self.first) as usize)?;
        Some((number, entry.clone()))
    }
}

fn size(ask: &Ask) -> usize {
    OVERHEAD + ask.memory.as_ref().map_or(0, crate::block::Iov::len)
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
        let (number, entry) = journal.entry(0).unwrap();
        assert_eq!((number, entry.memory.unwrap().to_vec()), (1, vec![2; 10]));
        journal.flushed(journal.mark());
        assert!(journal.is_empty() && journal.entry(0).is_none());
        assert_eq!(journal.bytes, 0);
        journal.flushed(mark);
    }

    #[test]
    fn what_is_kept_does_not_change_with_the_guests_memory() {
        let (mut journal, ask) = (Journal::default(), write(1));
        journal.push(&ask);
        ask.memory.unwrap().fill(0, 10, 9);
        assert_eq!(journal.entry(0).unwrap().1.memory.unwrap().to_vec(), [1; 10]);
    }
}
