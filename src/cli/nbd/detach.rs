//! `--fork`: the server goes to the background once it is running. The parent waits until then, hands on what the child
//! says meanwhile, and ends with the child's verdict.
//!
//! The process forks before it has any other thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

/// What the child of a fork still owes its parent.
pub(super) struct Detached(());

/// Where the process goes on.
pub(super) enum Side {
    /// In the background.
    Child(Detached),
    /// In the foreground, when the child is running, or has failed and said why.
    Parent(bool),
}

/// Forks.
///
/// # Errors
/// When the host refuses.
pub(super) fn fork() -> io::Result<Side> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh descriptors that nobody else owns.
    let (read, write) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: there is no other thread yet whose locks the child could find taken.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: plain system calls; standard error becomes the pipe.
            unsafe {
                libc::setsid();
                libc::dup2(write.as_raw_fd(), libc::STDERR_FILENO);
            }
            Ok(Side::Child(Detached(())))
        }
        _ => {
            drop(write);
            Ok(Side::Parent(hand_on(read)?))
        }
    }
}

/// Hands on what the child says, until it closes the pipe. Whoever is running well says nothing.
fn hand_on(mut read: File) -> io::Result<bool> {
    let mut said = Vec::new();
    read.read_to_end(&mut said)?;
    io::stderr().write_all(&said)?;
    Ok(said.is_empty())
}

impl Detached {
    /// The server is running: lets the parent go.
    ///
    /// # Errors
    /// When the host has no /dev/null.
    pub(super) fn release(self) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        std::env::set_current_dir("/")?;
        for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            // SAFETY: plain system calls on descriptors that are open.
            unsafe { libc::dup2(null.as_raw_fd(), stream) };
        }
        Ok(())
    }
}
