//! The order of writes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Lets each worker write when all pieces before its own are written.
#[derive(Default)]
pub(super) struct Turns {
    next: Cell<u64>,
    /// Finished before their turn.
    early: RefCell<BTreeSet<u64>>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Turns {
    pub(super) async fn wait(&self, turn: u64) {
        poll_fn(|cx| {
            if self.next.get() == turn {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().insert(turn, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(super) fn finish(&self, turn: u64) {
        self.early.borrow_mut().insert(turn);
        while self.early.borrow_mut().remove(&self.next.get()) {
            self.next.set(self.next.get() + 1);
        }
        if let Some(waker) = self.waiting.borrow_mut().remove(&self.next.get()) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_order_whatever_the_order_of_finishing() {
        let turns = Turns::default();
        turns.finish(1);
        turns.finish(2);
        assert_eq!(turns.next.get(), 0);
        turns.finish(0);
        assert_eq!(turns.next.get(), 3);
    }
}
