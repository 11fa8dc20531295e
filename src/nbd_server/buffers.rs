//! Memory of a connection's data, used again: a fresh buffer of this size costs the host as much as reading into it.
//! What all connections keep is bounded; who finds nothing left of it keeps nothing.
//!
//! Invariant: a buffer is given out again only when nobody has a list over it any more. What it held before is
//! overwritten as a whole before any of it is sent.

use crate::block::{Buffer, Iov};
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shorter ones come from the heap, in bytes.
const LEAST: usize = 64 << 10;
/// Most that are kept.
const KEPT: usize = 64;
/// Most bytes that are kept.
const KEPT_BYTES: usize = 16 << 20;

/// What is left to be kept by all connections of the process, in bytes.
static LEFT: AtomicUsize = AtomicUsize::new(256 << 20);

/// The buffers of a connection.
#[derive(Default)]
pub(super) struct Buffers {
    kept: RefCell<Vec<(usize, Buffer)>>,
}

impl Buffers {
    /// `len` bytes, whatever is in them.
    pub(super) fn take(&self, len: usize) -> Iov {
        if len < LEAST {
            return Buffer::new(len).iov(len);
        }
        let size = len.next_power_of_two();
        let mut kept = self.kept.borrow_mut();
        let free = kept.iter_mut().position(|(of, buffer)| *of == size && buffer.bytes().is_some());
        if let Some(at) = free {
            return kept[at].1.iov(len);
        }
        let buffer = Buffer::new(size);
        let iov = buffer.iov(len);
        if kept.len() < KEPT && bytes(&kept) + size <= KEPT_BYTES && take_left(size) {
            kept.push((size, buffer));
        }
        iov
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        LEFT.fetch_add(bytes(self.kept.get_mut()), Ordering::Relaxed);
    }
}

fn bytes(kept: &[(usize, Buffer)]) -> usize {
    kept.iter().map(|(size, _)| size).sum()
}

fn take_left(size: usize) -> bool {
    LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(size)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_when_nobody_has_it_any_more() {
        let buffers = Buffers::default();
        let first = buffers.take(LEAST);
        first.fill(0, LEAST, 7);
        let second = buffers.take(LEAST);
        assert!(second.is_zero());
        drop(first);
        assert_eq!(buffers.take(LEAST).to_vec(), vec![7; LEAST]);
        assert_eq!(buffers.kept.borrow().len(), 2);
        assert!(buffers.take(100).is_zero());
    }
}
