//! What a drive has done so far.
//!
//! Counted by the drive's thread alone, so that a count is a plain load and store; read by any thread.
//!
//! Time is measured by the kernel's coarse clock, which moves with its tick (1 to 10 ms) and costs some 10 ns to read
//! where the exact one costs 150: twice a request, that would be a quarter of what a cached one takes. A request is
//! mostly counted with 0 or with one tick; the sum is right, as each tick falls into whichever requests are
//! under way then.

use super::errors::Operation;
use crate::block::Result;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// A moment of the coarse clock, in nanoseconds.
#[derive(Clone, Copy)]
pub(super) struct Moment(u64);

impl Moment {
    pub(super) fn now() -> Moment {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call fills the structure; every Linux that KVM is in has this clock.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
        Moment(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
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
    pub(super) fn count(&self, operation: Operation, bytes: u64, since: Moment, done: &Result<()>) {
        let counter = &self.counters[operation as usize];
        if done.is_err() {
            return add(&counter.failures, 1);
        }
        add(&counter.operations, 1);
        add(&counter.bytes, bytes);
        add(&counter.nanoseconds, Moment::now().0.saturating_sub(since.0));
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
