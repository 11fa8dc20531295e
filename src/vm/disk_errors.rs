//! What happens on the threads of disks, on its way to the main thread: requests that failed, doors that moved.

use crate::block::drive::{Action, DiskError};
use crate::vm::machine::Event;
use crate::vm::run_state::{Request, RunState};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// How many wait at most: what a guest that repeats a hopeless request adds beyond that is dropped.
const LIMIT: usize = 64;

/// What the main thread has not heard of yet.
pub struct DiskErrors {
    run_state: Arc<RunState>,
    queue: Mutex<VecDeque<Event>>,
}

impl DiskErrors {
    /// No errors; the first that is to stop the guest asks `run_state` for it.
    pub fn new(run_state: Arc<RunState>) -> DiskErrors {
        DiskErrors { run_state, queue: Mutex::default() }
    }

    /// A request has failed. Returns at once, on any thread.
    pub fn push(&self, error: DiskError) {
        let stop = error.action == Action::Stop;
        self.note(Event::DiskError(error));
        match stop {
            true => self.run_state.request(Request::DiskError),
            false => self.run_state.announce(),
        }
    }

    /// The door of a drive was opened or closed. Returns at once, on any thread.
    pub fn tray_moved(&self, drive: &str, open: bool) {
        self.note(Event::TrayMoved { drive: drive.to_owned(), open });
        self.run_state.announce();
    }

    /// Main thread: what has happened since the last call.
    pub fn take(&self) -> VecDeque<Event> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() < LIMIT {
            queue.push_back(event);
        }
    }
}
