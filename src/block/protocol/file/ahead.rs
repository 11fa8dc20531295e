//! Space that a file gets before it grows into it.
//!
//! ```text
//!   0            length                      end
//!   | data       | allocated, not of the file |
//! ```
//! An image that takes cluster after cluster makes its file longer with each write, and the file system looks for a
//! block, counts it and notes it in its journal each time. ext4 takes 10 to 20 per cent less time for 64 KiB where the
//! blocks are there already. Other file systems do the same of themselves (XFS), or would lose by it (btrfs no longer
//! compresses what it has reserved).
//!
//! The file is no longer for it; what was not needed goes back when the file is closed. A process that is killed leaves
//! at most [`MOST`] bytes of it behind, for the next one that lets the file grow.

use super::{FileDriver, set_len};
use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use std::cell::Cell;
use std::os::fd::OwnedFd;

/// How much a file grows before it gets any, in bytes: small images stay as they are.
const LEAST: u64 = 1 << 20;
/// What a file gets at once at most, in bytes: 0.1 ms of the host's time.
const MOST: u64 = 64 << 20;

/// What one file has ahead of its end.
pub(super) struct Ahead {
    /// By how much the file grew, in bytes.
    grown: Cell<u64>,
    /// Where the space ends; 0 if there was none.
    end: Cell<u64>,
    /// The file system is one that it is good for, and has room.
    useful: Cell<bool>,
}

impl Ahead {
    pub(super) fn new(fd: &OwnedFd) -> Ahead {
        let useful = fstatfs(fd).is_ok_and(|host| host.f_type == libc::EXT4_SUPER_MAGIC);
        Ahead { grown: Cell::new(0), end: Cell::new(0), useful: Cell::new(useful) }
    }

    /// What to allocate when a file of `size` bytes grows to `end`: as much as it grew so far.
    fn wanted(&self, size: u64, end: u64) -> Option<u64> {
        let grown = self.grown.get() + end - size;
        self.grown.set(grown);
        let wanted = self.useful.get() && grown >= LEAST && end > self.end.get();
        wanted.then(|| end - size + grown.min(MOST))
    }
}

impl FileDriver {
    /// The file is about to grow to `end`, without a gap: that might be meant to stay a hole.
    pub(super) fn allocate_ahead(&self, end: u64) {
        let size = self.size.get();
        let wanted = || self.ahead.wanted(size, end);
        if let Some(len) = (end > size && self.device.is_none()).then(wanted).flatten() {
            let done = fallocate(self.file.fd(), FallocateFlags::KEEP_SIZE, size, len);
            // Whether there is room for what is written, the write itself finds out.
            self.ahead.useful.set(done.is_ok());
            self.ahead.end.set(size + len);
        }
    }

    /// Gives back what is left of it.
    pub(super) fn give_back_ahead(&self) {
        if self.ahead.end.take() > self.size.get() {
            // Blocks behind the end of a file go when its length is set. Where that fails they stay for the next growth.
            let _ = set_len(self.file.fd(), self.size.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Buffer;
    use crate::block::aio::{Backend, Engine};
    use crate::block::graph::Driver;
    use crate::block::options::OpenOptions;
    use std::fs::metadata;
    use std::os::unix::fs::MetadataExt;

    const PIECE: u64 = 64 << 10;

    /// Appends `pieces` to a new file; what it takes on the host before and after it is closed, in bytes.
    fn append(pieces: u64) -> (u64, u64) {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = folder.path().join("file");
        let engine = Engine::new(Backend::Auto).unwrap();
        let file = FileDriver::create(&engine, path.to_str().unwrap(), &OpenOptions::default()).unwrap();
        let bytes = Buffer::new(PIECE as usize).iov(PIECE as usize);
        bytes.fill(0, PIECE as usize, 7);
        let all = async {
            for piece in 0..pieces {
                file.write(piece * PIECE, &bytes).await.unwrap();
            }
            file.flush().await.unwrap();
        };
        engine.block_on(all).unwrap();
        assert_eq!(metadata(&path).unwrap().len(), pieces * PIECE, "no longer than what was written");
        let open = file.allocated_size().unwrap();
        drop(file);
        (open, metadata(&path).unwrap().blocks() * 512)
    }

    #[test]
    fn a_growing_file_has_space_ahead_until_it_is_closed() {
        let (open, closed) = append(72);
        let written = 72 * PIECE;
        assert!(closed < written + PIECE, "{closed} bytes after the end");
        let here = rustix::fs::statfs(".").unwrap();
        if here.f_type == libc::EXT4_SUPER_MAGIC {
            assert!(open > written + LEAST, "{open} bytes while it was open");
        }
    }

    #[test]
    fn a_small_file_has_none() {
        assert!(append(8).0 < 9 * PIECE);
    }
}
