//! Worker threads, shared by all engines of the process: one pool for work that burns CPU, one for work that blocks and
//! for every request where io_uring is refused.
//!
//! * Threads are started as work queues up, to the pool's most; one that finds nothing to do for a while ends.
//! * One thread less computes than there are processors: whose work it is has one too, and takes a part of what it shares
//!   while more waits than the threads need ([`Pool::has_plenty`]). With as many threads as processors, that one would
//!   run when the scheduler comes around to it, and they would be out of work until then.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::available_parallelism;
use std::time::Duration;

/// How long an idle thread stays.
const IDLE: Duration = Duration::from_secs(10);
/// Jobs for each thread to go on with: it will not run out of them while a job is done elsewhere.
const PLENTY: usize = 2;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Threads for one kind of work.
pub(super) struct Pool {
    /// Most threads.
    most: LazyLock<usize>,
    state: Mutex<State>,
    ready: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// For work that waits: as many threads as requests can be in flight at once.
pub(super) static BLOCKING: Pool = Pool::new(|| 64);
/// For work that computes.
pub(super) static COMPUTING: Pool =
    Pool::new(|| available_parallelism().map_or(1, |processors| (processors.get() - 1).max(1)));

/// The result of a job, and who waits for it.
struct Outcome<T> {
    value: Option<std::thread::Result<T>>,
    waker: Option<Waker>,
}

/// Splits `work` into a job for the pool and a future of its result.
pub(super) fn job<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> (Job, impl Future<Output = T>) {
    let outcome = Arc::new(Mutex::new(Outcome { value: None, waker: None }));
    let there = outcome.clone();
    let job = Box::new(move || {
        // A panic belongs to whoever waits for the result, not to this thread.
        let value = catch_unwind(AssertUnwindSafe(work));
        let mut outcome = lock(&there);
        outcome.value = Some(value);
        let waker = outcome.waker.take();
        drop(outcome);
        if let Some(waker) = waker {
            waker.wake();
        }
    });
    let result = poll_fn(move |cx| {
        let mut outcome = lock(&outcome);
        match outcome.value.take() {
            Some(Ok(value)) => Poll::Ready(value),
            Some(Err(panic)) => resume_unwind(panic),
            None => {
                outcome.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    });
    (job, result)
}

impl Pool {
    const fn new(most: fn() -> usize) -> Pool {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0 };
        Pool { most: LazyLock::new(most), state: Mutex::new(state), ready: Condvar::new() }
    }

    /// Hands `jobs` to the threads, under one lock.
    pub(super) fn submit(&'static self, jobs: impl IntoIterator<Item = Job>) {
        let mut state = lock(&self.state);
        let before = state.jobs.len();
        state.jobs.extend(jobs);
        let wanted = (state.jobs.len() - before).min(state.idle);
        let room = self.most.saturating_sub(state.threads);
        for _ in 0..state.jobs.len().saturating_sub(state.idle).min(room) {
            let started = std::thread::Builder::new().name("cowvm-pool".into()).spawn(|| self.work());
            state.threads += usize::from(started.is_ok());
        }
        if state.threads == 0 {
            // The host gives us no threads: slow is better than never.
            let left = std::mem::take(&mut state.jobs);
            drop(state);
            return left.into_iter().for_each(|job| job());
        }
        drop(state);
        (0..wanted).for_each(|_| self.ready.notify_one());
    }

    /// Whether more jobs wait than the threads need.
    pub(super) fn has_plenty(&self) -> bool {
        lock(&self.state).jobs.len() >= *self.most * PLENTY
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = lock(&self.state);
            }
            state.idle += 1;
            let (guard, timeout) =
                self.ready.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
