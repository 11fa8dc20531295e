//! Memory that the requests of clients may hold until their replies are sent.
//!
//! Every connection may always hold one piece of [`PIECE`] bytes, whatever the others do; beyond it has
//! [`OWN`] bytes at most, from a pool that all connections of the process share.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

/// The unit in which long requests are done, in bytes.
pub(super) const PIECE: usize = 4 << 20;
/// Most that a connection holds, in bytes.
const OWN: usize = 64 << 20;
/// What a request without data counts for, in bytes.
const LEAST: usize = 16 << 10;

/// What is left for all connections of the process beyond their first pieces, in bytes.
static POOL: AtomicUsize = AtomicUsize::new(512 << 20);

/// What one connection holds.
#[derive(Default)]
pub(super) struct Budget {
    held: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

/// A part of the budget; dropping it gives it back.
#[must_use]
pub(super) struct Permit {
    budget: Rc<Budget>,
    bytes: usize,
    pooled: bool,
}

impl Budget {
    /// Waits for `bytes`, [`PIECE`] at most: they will be had once the replies before are sent.
    pub(super) async fn acquire(self: &Rc<Self>, bytes: usize) -> Permit {
        let bytes = bytes.clamp(LEAST, PIECE);
        poll_fn(|cx| match self.take(bytes) {
            Some(permit) => Poll::Ready(permit),
            None => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// As many bytes as that, if they are to be had now.
    pub(super) fn take(self: &Rc<Self>, bytes: usize) -> Option<Permit> {
        let held = self.held.get();
        let first = held == 0 && bytes <= PIECE;
        let pooled = !first;
        if pooled && (held + bytes > OWN || !take_from_pool(bytes)) {
            return None;
        }
        self.held.set(held + bytes);
        Some(Permit { budget: self.clone(), bytes, pooled })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.pooled {
            POOL.fetch_add(self.bytes, Ordering::Relaxed);
        }
        self.budget.held.set(self.budget.held.get() - self.bytes);
        self.budget.waiting.take().into_iter().for_each(Waker::wake);
    }
}

fn take_from_pool(bytes: usize) -> bool {
    POOL.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_always_gets_its_first_piece_and_never_more_than_its_share() {
        let budget = Rc::new(Budget::default());
        let first = budget.take(PIECE).unwrap();
        let more: Vec<Permit> = std::iter::from_fn(|| budget.take(PIECE)).collect();
        assert_eq!(more.len(), OWN / PIECE - 1);
        assert!(Rc::new(Budget::default()).take(PIECE).is_some());
        drop((first, more));
        assert_eq!(budget.held.get(), 0);
        assert!(budget.take(OWN + 1).is_none());
    }
}
