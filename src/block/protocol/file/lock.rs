//! Image locks, shared with QEMU.
//!
//! An image is locked by open-file-description locks on single bytes of the file, all of them shared locks:
//! byte `100 + p` says "I use permission p", byte `200 + p` says "nobody else may use p". After taking its own,
//! a process looks whether anybody holds a byte that contradicts them. The kernel drops them with the file.

use crate::block::{Error, Kind, Result};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// First byte of "I use".
const USES: i64 = 100;
/// First byte of "others must not use".
const FORBIDS: i64 = 200;

/// The permissions that we take part in, with the numbers and names that QEMU gives them.
const READ: (i64, &str) = (0, "consistent read");
const WRITE: (i64, &str) = (1, "write");
const RESIZE: (i64, &str) = (3, "resize");

/// What a process wants to do with an image, and what others may do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// It changes the file's length.
    pub resize: bool,
    /// Others may write and resize.
    pub share_writes: bool,
}

pub(super) fn acquire(fd: &OwnedFd, filename: &str, access: Access) -> Result<()> {
    let mut uses = vec![READ];
    uses.extend(access.write.then_some(WRITE));
    uses.extend(access.resize.then_some(RESIZE));
    let forbids: &[_] = if access.share_writes { &[] } else { &[WRITE, RESIZE] };
    for &(bit, name) in &uses {
        take(fd, USES + bit).map_err(|error| refused(filename, &format!("\"{name}\""), error))?;
    }
    for &(bit, name) in forbids {
        take(fd, FORBIDS + bit).map_err(|error| refused(filename, &format!("shared \"{name}\""), error))?;
    }
    for (bit, name) in uses {
        if is_held(fd, FORBIDS + bit)? {
            return Err(locked(filename, &format!("\"{name}\"")));
        }
    }
    for &(bit, name) in forbids {
        if is_held(fd, USES + bit)? {
            return Err(locked(filename, &format!("shared \"{name}\"")));
        }
    }
    Ok(())
}

/// Gives up all locks.
pub(super) fn release(fd: &OwnedFd) -> io::Result<()> {
    let all = libc::flock { l_len: FORBIDS, ..byte(libc::F_UNLCK, USES) };
    // SAFETY: the structure is valid for the call.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &all) };
    match io::Error::last_os_error() {
        error if done < 0 && !has_no_locks(&error) => Err(error),
        _ => Ok(()),
    }
}

fn locked(filename: &str, what: &str) -> Error {
    let message = format!("Failed to get {what} lock\nIs another process using the image [{filename}]?");
    Error::new(Kind::Locked, message)
        .path(filename)
        .remedy("end that program, or add -U (--force-share) to look at the image read-only meanwhile")
}

fn refused(filename: &str, what: &str, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => locked(filename, what),
        _ => Error::from_io(error).context(format!("Failed to get {what} lock")).path(filename),
    }
}

fn byte(kind: i32, at: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: at, l_len: 1, l_pid: 0 }
}

/// Takes a shared lock. A file system without locks is used without.
fn take(fd: &OwnedFd, at: i64) -> io::Result<()> {
    // SAFETY: the structure is valid for the call.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &byte(libc::F_RDLCK, at)) };
    match io::Error::last_os_error() {
        error if done < 0 && !has_no_locks(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether another process holds the byte.
fn is_held(fd: &OwnedFd, at: i64) -> Result<bool> {
    let mut answer = byte(libc::F_WRLCK, at);
    // SAFETY: as above; the kernel writes its answer into the structure.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &mut answer) };
    match io::Error::last_os_error() {
        error if done < 0 && !has_no_locks(&error) => Err(error.into()),
        _ => Ok(done == 0 && i32::from(answer.l_type) != libc::F_UNLCK),
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}
