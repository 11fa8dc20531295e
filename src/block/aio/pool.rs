//! Worker threads, shared by all engines of the process: for work that blocks or burns CPU, and for every
//! request where io_uring is refused.
//!
//! Threads are started as work queues up, to [`MAX_THREADS`]; one that finds nothing to do for a while ends.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// As many requests as can be in flight at once.
const MAX_THREADS: usize = 64;
/// How long an idle thread stays.
const IDLE: Duration = Duration::from_secs(10);

pub(super) type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    state: Mutex<State>,
    ready: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static POOL: Pool =
    Pool { state: Mutex::new(State { jobs: VecDeque::new(), threads: 0, idle: 0 }), ready: Condvar::new() };

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

/// Hands all of `jobs` to the threads, under one lock.
pub(super) fn submit(jobs: &mut Vec<Job>) {
    if jobs.is_empty() {
        return;
    }
    let mut state = lock(&POOL.state);
    state.jobs.extend(jobs.drain(..));
    let short = state.jobs.len().saturating_sub(state.idle).min(MAX_THREADS - state.threads);
    for _ in 0..short {
        let started = std::thread::Builder::new().name("cowvm-pool".into()).spawn(work);
        state.threads += usize::from(started.is_ok());
    }
    if state.threads == 0 {
        // The host gives us no threads: slow is better than never.
        let left = std::mem::take(&mut state.jobs);
        drop(state);
        left.into_iter().for_each(|job| job());
    } else if state.jobs.len() > 1 {
        POOL.ready.notify_all();
    } else {
        POOL.ready.notify_one();
    }
}

fn work() {
    let mut state = lock(&POOL.state);
    loop {
        while let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = lock(&POOL.state);
        }
        state.idle += 1;
        let (guard, timeout) = POOL.ready.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
        state = guard;
        state.idle -= 1;
        if timeout.timed_out() && state.jobs.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
