//! SIGINT, SIGTERM and SIGHUP of a command that has something to clean up: it is dropped, and then the process dies of
//! the signal as it would have at once.

use crate::block::aio::Engine;
use futures_util::future::{Either, select};
use std::future::Future;
use std::io;
use std::mem::zeroed;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::pin;
use std::ptr::null_mut;
use std::rc::Rc;

/// What ends a command.
const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The signals, held back until somebody looks at them.
pub(super) struct Interrupts {
    held: libc::sigset_t,
    arrived: Rc<OwnedFd>,
}

impl Interrupts {
    /// Holds them back from this thread and all that it starts; those that are ignored stay so.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub(super) fn hold() -> io::Result<Interrupts> {
        // SAFETY: all-zero bytes are a valid set, which sigemptyset makes one; plain system calls on it.
        let (held, fd) = unsafe {
            let mut held: libc::sigset_t = zeroed();
            libc::sigemptyset(&mut held);
            for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
                libc::sigaddset(&mut held, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &held, null_mut());
            (held, libc::signalfd(-1, &held, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let arrived = Rc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Interrupts { held, arrived })
    }

    /// Runs `work` to its end, or to the first signal: then `work` is dropped, and so is the process.
    pub(super) async fn run<T>(&self, engine: &Engine, work: impl Future<Output = T>) -> T {
        let mut work = Box::pin(work);
        let ended = match select(work.as_mut(), pin!(engine.readable(&self.arrived))).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right((arrived, _)) => Err(arrived),
        };
        match ended {
            Ok(done) => done,
            Err(Ok(())) => {
                drop(work);
                self.deliver();
            }
            // Nobody tells of signals any more; they stay held.
            Err(Err(_)) => work.await,
        }
    }

    /// Lets the signal that waits kill the process.
    fn deliver(&self) -> ! {
        // SAFETY: a plain system call; what it lets through ends the process, as nothing handles it.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &self.held, null_mut()) };
        std::process::exit(1);
    }
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: all-zero bytes are a valid `sigaction`, and a plain system call fills it.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}
