//! The run state: whether the guest runs, and what the guest itself asks of the machine.
//!
//! ```text
//!                   stop                    guest: reset, power-off, failure
//!   running ───────────────────▶ paused        │
//!      ▲  ▲           cont          │          ▼
//!      │  └─────────────────────────┘      request ──▶ main thread ──▶ reset (paused meanwhile), end
//!      └── start
//! ```
//!
//! Invariant: while the main thread is between [`RunState::pause`] and [`RunState::resume`], no vCPU executes
//! guest code or touches a device: all are parked in [`RunState::enter`].

use crate::devices::legacy::PowerControl;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What the guest, by itself, makes the machine do. The later in this list, the more urgent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// A request to a disk failed and waits: the guest is to be stopped.
    DiskError,
    /// A system reset.
    Reset,
    /// The guest has switched the machine off.
    PowerOff,
    /// A vCPU cannot go on; the text says why.
    Failure(String),
}

/// The state that all vCPU threads and the main thread share.
pub struct RunState {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Vcpus leave guest mode while it is set. A copy of the condition, to be read without the lock.
    leave: AtomicBool,
    requested: EventFd,
}

struct Inner {
    gate: Gate,
    /// vCPU threads that are inside [`RunState::enter`].
    parked: usize,
    request: Option<Request>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Shut,
    Open,
    Ended,
}

impl RunState {
    /// Paused, with nothing requested.
    ///
    /// # Errors
    /// When the host has no file descriptor left.
    pub fn new() -> io::Result<RunState> {
        Ok(RunState {
            inner: Mutex::new(Inner { gate: Gate::Shut, parked: 0, request: None }),
            changed: Condvar::new(),
            leave: AtomicBool::new(true),
            requested: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Readable when there is a request.
    pub fn requested(&self) -> &EventFd {
        &self.requested
    }

    /// vCPU: waits until the guest may run; false when it never will again.
    pub fn enter(&self) -> bool {
        let mut inner = self.lock();
        inner.parked += 1;
        self.changed.notify_all();
        while inner.gate == Gate::Shut || inner.gate == Gate::Open && inner.request.is_some() {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.parked -= 1;
        inner.gate == Gate::Open
    }

    /// vCPU: whether it has to go to [`RunState::enter`].
    pub fn must_leave(&self) -> bool {
        self.leave.load(Ordering::SeqCst)
    }

    /// Asks the main thread for something. Vcpus stop at their next look until it is done.
    pub fn request(&self, request: Request) {
        let mut inner = self.lock();
        if inner.request.as_ref().is_none_or(|earlier| *earlier < request) {
            inner.request = Some(request);
        }
        self.leave.store(true, Ordering::SeqCst);
        // The counter cannot overflow: nobody writes 2^64 requests.
        let _ = self.requested.write(1);
    }

    /// Wakes the main thread: there is news, though nothing to be done.
    pub fn announce(&self) {
        // As above.
        let _ = self.requested.write(1);
    }

    /// Main thread: takes the request. The guest stays stopped until [`RunState::resume`].
    pub fn take_request(&self) -> Option<Request> {
        // Empty when the request was taken before.
        let _ = self.requested.read();
        let mut inner = self.lock();
        let request = inner.request.take();
        if request.is_some() {
            inner.gate = Gate::Shut;
        }
        request
    }

    /// Main thread: shuts the gate, `kick`s, and waits until all `vcpus` threads are parked.
    pub fn pause(&self, vcpus: usize, kick: impl FnOnce()) {
        let mut inner = self.lock();
        inner.gate = Gate::Shut;
        self.leave.store(true, Ordering::SeqCst);
        drop(inner);
        kick();
        inner = self.lock();
        while inner.parked < vcpus {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Main thread, while it does what was requested anyway: drops a second request for the same.
    pub fn forget(&self, request: &Request) {
        self.lock().request.take_if(|pending| pending == request);
    }

    /// Main thread: what is asked for and was not taken yet.
    pub fn pending(&self) -> Option<Request> {
        self.lock().request.clone()
    }

    /// Main thread, when the machine has become another: what the guest asked for since is void, and what the other one
    /// had asked for is not.
    pub fn replace_request(&self, request: Option<Request>) {
        self.lock().request = None;
        if let Some(request) = request {
            self.request(request);
        }
    }

    /// Main thread: lets the guest run.
    pub fn resume(&self) {
        let mut inner = self.lock();
        inner.gate = Gate::Open;
        self.leave.store(inner.request.is_some(), Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Main thread: sends all vCPU threads home.
    pub fn end(&self) {
        self.lock().gate = Gate::Ended;
        self.leave.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PowerControl for RunState {
    fn reset(&self) {
        self.request(Request::Reset);
    }

    fn power_off(&self) {
        self.request(Request::PowerOff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    /// A thread that counts instead of running a guest.
    fn vcpu(state: &Arc<RunState>, count: &Arc<AtomicU64>) -> std::thread::JoinHandle<()> {
        let (state, count) = (state.clone(), count.clone());
        std::thread::spawn(move || {
            while state.enter() {
                while !state.must_leave() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
    }

    #[test]
    fn nothing_runs_between_pause_and_resume() {
        let (state, count) = (Arc::new(RunState::new().unwrap()), Arc::new(AtomicU64::new(0)));
        let threads = [vcpu(&state, &count), vcpu(&state, &count)];
        for _ in 0..100 {
            state.pause(2, || ());
            let before = count.load(Ordering::SeqCst);
            std::thread::yield_now();
            assert_eq!(count.load(Ordering::SeqCst), before);
            state.resume();
            while count.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
        }
        state.end();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn the_most_urgent_request_wins_and_is_taken_once() {
        let state = RunState::new().unwrap();
        state.resume();
        state.power_off();
        state.reset();
        assert!(state.must_leave());
        assert_eq!(state.take_request(), Some(Request::PowerOff));
        assert_eq!(state.take_request(), None);
    }

    #[test]
    fn a_request_holds_the_vcpus_until_the_main_thread_has_served_it() {
        let (state, count) = (Arc::new(RunState::new().unwrap()), Arc::new(AtomicU64::new(0)));
        let thread = vcpu(&state, &count);
        state.request(Request::Reset);
        state.resume();
        assert!(state.must_leave());
        assert_eq!(state.take_request(), Some(Request::Reset));
        state.pause(1, || ());
        assert_eq!(count.load(Ordering::SeqCst), 0);
        state.end();
        thread.join().unwrap();
    }
}
