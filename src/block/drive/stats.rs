//! What a drive has done so far.
//!
//! Counted by the drive's thread alone, so that a count is a plain load and store; read by any thread.

use super::errors::Operation;
use crate::block::Result;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The counters of one drive.
#[derive(Default)]
pub(super) struct Stats {
    counters: [Counter; 4],
}

#[derive(Default)]
struct Counter {
    operations: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    failures: AtomicU64,
}

/// How much of one operation a drive has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that succeeded.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The time that they took, together.
    pub nanoseconds: u64,
    /// Requests that failed.
    pub failures: u64,
}

impl Stats {
    /// Counts a request that began at `since`.
    pub(super) fn count(&self, operation: Operation, bytes: u64, since: Instant, done: &Result<()>) {
        let counter = &self.counters[operation as usize];
        if done.is_err() {
            return add(&counter.failures, 1);
        }
        add(&counter.operations, 1);
        add(&counter.bytes, bytes);
        add(&counter.nanoseconds, u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn of(&self, operation: Operation) -> Count {
        let counter = &self.counters[operation as usize];
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Count {
            operations: load(&counter.operations),
            bytes: load(&counter.bytes),
            nanoseconds: load(&counter.nanoseconds),
            failures: load(&counter.failures),
        }
    }
}

/// There is one writer, so nothing is lost between the two.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}
