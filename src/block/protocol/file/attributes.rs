//! Attributes of a new file that steer how its file system lays it out: no copy-on-write (btrfs), smallest extent
//! (XFS). They are hints: where the file system has no such thing, nothing happens.

use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of an extent where nobody says: images that grow bit by bit are not torn into as many pieces.
pub const DEFAULT_EXTENT_SIZE_HINT: u32 = 1 << 20;

/// What a new file is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAttributes {
    /// Overwrite in place (`nocow=`).
    pub nocow: bool,
    /// Smallest extent in bytes (`extent_size_hint=`); 0 leaves it to the file system.
    pub extent_size_hint: u32,
}

/// Inode flag: do not copy on write (`FS_NOCOW_FL` of linux/fs.h).
const NOCOW: libc::c_long = 0x0080_0000;
/// Flag of [`Extended`]: `extent_size` counts (`FS_XFLAG_EXTSIZE`).
const EXTENT_SIZE: u32 = 0x800;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Extended {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

const GET_FLAGS: libc::Ioctl = libc::_IOR::<libc::c_long>(b'f' as u32, 1);
const SET_FLAGS: libc::Ioctl = libc::_IOW::<libc::c_long>(b'f' as u32, 2);
const GET_EXTENDED: libc::Ioctl = libc::_IOR::<Extended>(b'X' as u32, 31);
const SET_EXTENDED: libc::Ioctl = libc::_IOW::<Extended>(b'X' as u32, 32);

/// Sets the attributes of an empty file, as far as its file system has them.
pub(super) fn set(fd: &OwnedFd, attributes: FileAttributes) {
    if attributes.nocow {
        set_nocow(fd);
    }
    if attributes.extent_size_hint > 0 {
        set_extent_size(fd, attributes.extent_size_hint);
    }
}

fn set_nocow(fd: &OwnedFd) {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel reads and writes at most the long that it is given.
    unsafe {
        if libc::ioctl(fd.as_raw_fd(), GET_FLAGS, &mut flags) == 0 {
            flags |= NOCOW;
            libc::ioctl(fd.as_raw_fd(), SET_FLAGS, &flags);
        }
    }
}

fn set_extent_size(fd: &OwnedFd, bytes: u32) {
    let mut extended = Extended::default();
    // SAFETY: the structure is the one that the kernel reads and writes.
    unsafe {
        if libc::ioctl(fd.as_raw_fd(), GET_EXTENDED, &mut extended) == 0 {
            extended.flags |= EXTENT_SIZE;
            extended.extent_size = bytes;
            libc::ioctl(fd.as_raw_fd(), SET_EXTENDED, &extended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_headers() {
        assert_eq!(std::mem::size_of::<Extended>(), 28);
        if std::mem::size_of::<libc::c_long>() == 8 && cfg!(target_arch = "x86_64") {
            assert_eq!((GET_FLAGS, SET_FLAGS), (0x8008_6601, 0x4008_6602));
            assert_eq!((GET_EXTENDED, SET_EXTENDED), (0x801c_581f, 0x401c_5820));
        }
    }
}
