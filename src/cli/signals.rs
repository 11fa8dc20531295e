//! The signals that end the process, as a file descriptor of the event loop.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use vmm_sys_util::signal::create_sigset;

const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Readable when one of the signals has arrived.
pub(super) struct Signals(File);

impl Signals {
    /// Takes the signals over. To be called before any thread starts: threads inherit that they are blocked.
    ///
    /// # Errors
    /// When the host refuses.
    pub(super) fn take_over() -> io::Result<Signals> {
        let set = create_sigset(&ENDING)?;
        // SAFETY: the set is valid; no old one is asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the set is valid, and a new descriptor is asked for.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Signals(unsafe { File::from_raw_fd(fd) }))
    }

    /// The number of a signal that has arrived.
    pub(super) fn next(&mut self) -> Option<u32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        // The first member is the number (signalfd(2)).
        info.first_chunk().copied().map(u32::from_ne_bytes)
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
