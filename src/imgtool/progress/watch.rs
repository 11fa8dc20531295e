//! A thread that looks at the progress while the command works, or waits for the host: it writes the lines of JSON, and
//! answers SIGUSR1. The signal is blocked everywhere, so that no system call of the work is interrupted by it.

use super::lines::Lines;
use super::words;
use crate::util::text::say;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use vmm_sys_util::signal::{block_signal, create_sigset};

/// How often a line is written.
const INTERVAL: Duration = Duration::from_millis(250);

/// What was reported last.
pub(super) struct Watched {
    done: AtomicU64,
    total: AtomicU64,
    complete: AtomicBool,
    /// `None` when the command is over, or nobody wants lines.
    lines: Mutex<Option<Lines>>,
}

impl Watched {
    /// Begins to look. No other thread may be there yet.
    pub(super) fn start(lines: Option<Lines>) -> Arc<Watched> {
        let watched = Arc::new(Watched {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            lines: Mutex::new(lines),
        });
        watched.write_line(false);
        // It may be blocked already; and without the thread, progress is what we can do without.
        let _ = block_signal(libc::SIGUSR1);
        let looking = watched.clone();
        let _ = thread::Builder::new().name("progress".into()).spawn(move || looking.look());
        watched
    }

    pub(super) fn report(&self, done: u64, total: u64) {
        self.total.store(total, Relaxed);
        self.done.store(done.min(total), Relaxed);
    }

    /// All bytes are done.
    pub(super) fn finish(&self) {
        self.done.store(self.total.load(Relaxed), Relaxed);
    }

    /// The last line will say that the command has succeeded.
    pub(super) fn complete(&self) {
        self.complete.store(true, Relaxed);
    }

    /// Writes the last line.
    pub(super) fn end(&self) {
        self.write_line(true);
        self.lines().take();
    }

    /// Never ends: the process does.
    fn look(&self) {
        loop {
            if wait_for_signal(INTERVAL) {
                let (done, total) = (self.done.load(Relaxed), self.total.load(Relaxed));
                say(&words::of(done as f64 * 100.0 / total.max(1) as f64));
            }
            self.write_line(false);
        }
    }

    fn write_line(&self, over: bool) {
        let (done, total) = (self.done.load(Relaxed), self.total.load(Relaxed));
        if let Some(lines) = &mut *self.lines() {
            lines.write(done, total, over, over && self.complete.load(Relaxed));
        }
    }

    fn lines(&self) -> MutexGuard<'_, Option<Lines>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for SIGUSR1 for so long; whether it came.
fn wait_for_signal(limit: Duration) -> bool {
    let Ok(set) = create_sigset(&[libc::SIGUSR1]) else {
        thread::sleep(limit);
        return false;
    };
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    let mut info = MaybeUninit::uninit();
    // SAFETY: all three live on the stack, and nobody reads what is written to `info`.
    unsafe { libc::sigtimedwait(&set, info.as_mut_ptr(), &timeout) == libc::SIGUSR1 }
}
