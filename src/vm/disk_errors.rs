//! Requests to disks that failed, on their way to the main thread.

use crate::block::drive::{Action, DiskError};
use crate::vm::run_state::{Request, RunState};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// How many wait at most: what a guest that repeats a hopeless request adds beyond that is dropped.
const LIMIT: usize = 64;

/// The errors that the main thread has not heard of yet.
pub struct DiskErrors {
    run_state: Arc<RunState>,
    queue: Mutex<VecDeque<DiskError>>,
}

impl DiskErrors {
    /// No errors; the first that is to stop the guest asks `run_state` for it.
    pub fn new(run_state: Arc<RunState>) -> DiskErrors {
        DiskErrors { run_state, queue: Mutex::default() }
    }

    /// A request has failed. Returns at once, on any thread.
    pub fn push(&self, error: DiskError) {
        let stop = error.action == Action::Stop;
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() < LIMIT {
            queue.push_back(error);
        }
        drop(queue);
        match stop {
            true => self.run_state.request(Request::DiskError),
            false => self.run_state.announce(),
        }
    }

    /// Main thread: what has failed since the last call.
    pub fn take(&self) -> VecDeque<DiskError> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
