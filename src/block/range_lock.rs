//! Byte-range locks within one thread, first come first served.
//!
//! A holder is shared or exclusive; two conflict when they overlap and one of them is exclusive. A later one
//! waits for every earlier one that it conflicts with, be that held or waiting itself, so nobody starves.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

/// The locks of one address space.
#[derive(Default)]
pub struct RangeLock {
    entries: RefCell<Vec<Entry>>,
    next_id: Cell<u64>,
}

struct Entry {
    id: u64,
    range: Range<u64>,
    exclusive: bool,
    /// Who waits for this entry to go.
    waiters: Vec<Waker>,
}

impl RangeLock {
    /// Waits until nothing earlier conflicts; the range is held until the guard is dropped.
    pub async fn lock(&self, range: Range<u64>, exclusive: bool) -> RangeGuard<'_> {
        let id = self.next_id.replace(self.next_id.get() + 1);
        self.entries.borrow_mut().push(Entry { id, range: range.clone(), exclusive, waiters: Vec::new() });
        let guard = RangeGuard { lock: self, id };
        poll_fn(|cx| self.poll_turn(id, &range, exclusive, cx.waker())).await;
        guard
    }

    /// Whether no one holds or awaits anything.
    pub fn is_idle(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    fn poll_turn(&self, id: u64, range: &Range<u64>, exclusive: bool, waker: &Waker) -> Poll<()> {
        let mut entries = self.entries.borrow_mut();
        let conflict = entries.iter_mut().find(|other| {
            other.id < id
                && (exclusive || other.exclusive)
                && other.range.start < range.end
                && range.start < other.range.end
        });
        match conflict {
            None => Poll::Ready(()),
            Some(other) => {
                other.waiters.push(waker.clone());
                Poll::Pending
            }
        }
    }
}

/// A range that is held.
#[must_use]
pub struct RangeGuard<'a> {
    lock: &'a RangeLock,
    id: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut entries = self.lock.entries.borrow_mut();
        let Some(at) = entries.iter().position(|entry| entry.id == self.id) else { return };
        let entry = entries.remove(at);
        drop(entries);
        entry.waiters.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn only_overlapping_exclusive_holders_wait() {
        let lock = RangeLock::default();
        let first = lock.lock(0..10, false).now_or_never().unwrap();
        assert!(lock.lock(5..6, false).now_or_never().is_some());
        assert!(lock.lock(5..6, true).now_or_never().is_none());
        assert!(lock.lock(10..20, true).now_or_never().is_some());
        drop(first);
        assert!(lock.lock(0..10, true).now_or_never().is_some());
        assert!(lock.is_idle());
    }

    #[test]
    fn a_waiting_exclusive_holder_is_not_overtaken() {
        let lock = RangeLock::default();
        let first = lock.lock(0..4, false).now_or_never().unwrap();
        let mut exclusive = Box::pin(lock.lock(0..4, true));
        assert!((&mut exclusive).now_or_never().is_none());
        let mut late = Box::pin(lock.lock(2..3, false));
        assert!((&mut late).now_or_never().is_none());
        drop(first);
        assert!((&mut late).now_or_never().is_none());
        let held = (&mut exclusive).now_or_never().unwrap();
        drop(held);
        assert!(late.now_or_never().is_some());
    }
}
