//! What a file gets before it grows into it: blocks, or length.
//!
//! ```text
//!   0            length                      end
//!   | data       | allocated, not of the file |    blocks, for writes that follow one another
//!   | data                   | a hole         |    length, for threads that write several places at once
//! ```
//! An image that takes cluster after cluster makes its file longer with each write, and the file system looks for a
//! block, counts it and notes it each time. ext4 takes 10 to 20 per cent less time for 64 KiB where the blocks are there
//! already, and as much less for two threads that write behind the end where the end is behind them. What is
//! left out of what threads write stays a hole: blocks they get of themselves, where they know to need them
//! ([`BulkFile::write_new`](crate::block::aio::BulkFile::write_new)). Other file systems do the same of themselves (XFS),
//! or would lose by it (btrfs no longer compresses what it has reserved).
//!
//! What was not needed goes back: length at a flush, blocks when the file is closed. A process that is killed leaves at
//! most [`MOST`] bytes behind, which are no part of any image.

use super::{FileDriver, set_len};
use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

/// How much a file grows before it gets any, in bytes: small images stay as they are.
const LEAST: u64 = 1 << 20;
/// What a file gets at once at most, in bytes: 0.1 ms of the host's time.
const MOST: u64 = 64 << 20;

/// What one file has ahead of its end.
pub(super) struct Ahead {
    /// By how much the file grew, in bytes.
    grown: Cell<u64>,
    /// Where it ends when the writes that go on at its end are through.
    reach: Cell<u64>,
    /// Where its blocks and its length end on the host; 0 if that was never ahead.
    blocks: Cell<u64>,
    length: Cell<u64>,
    /// The file system is one that it is good for, and has room; `None` until somebody asks.
    useful: Cell<Option<bool>>,
}

impl Ahead {
    pub(super) fn new() -> Ahead {
        let none = || Cell::new(0);
        Ahead { grown: none(), reach: none(), blocks: none(), length: none(), useful: Cell::new(None) }
    }

    /// The writes so far say no more where the file ends.
    pub(super) fn forget_writes(&self) {
        self.reach.set(0);
    }

    /// How much more than from `start` to `end` the file `fd` grows on the host: as much as it grew so far.
    fn more(&self, fd: &OwnedFd, start: u64, end: u64) -> Option<u64> {
        let grown = self.grown.get() + end.saturating_sub(start);
        self.grown.set(grown);
        (end > start && grown >= LEAST && self.is_useful(fd)).then(|| grown.min(MOST))
    }

    fn is_useful(&self, fd: &OwnedFd) -> bool {
        let useful = self.useful.get();
        let useful =
            useful.unwrap_or_else(|| fstatfs(fd).is_ok_and(|host| host.f_type == libc::EXT4_SUPER_MAGIC));
        self.useful.set(Some(useful));
        useful
    }
}

impl FileDriver {
    /// The file is about to be written from `start` to `end`. Where it grows by that, it gets blocks, unless there is a gap
    /// before `start`, which might be meant to stay a hole.
    pub(super) fn allocate_ahead(&self, start: u64, end: u64) {
        if start != self.ahead.reach.get().max(self.size.get()) {
            return;
        }
        self.ahead.reach.set(end);
        let more = self.ahead.more(self.file.fd(), start, end);
        if let Some(more) = more.filter(|_| end > self.ahead.blocks.get()) {
            let done = fallocate(self.file.fd(), FallocateFlags::KEEP_SIZE, start, end - start + more);
            // Whether there is room for what is written, the write itself finds out.
            self.ahead.useful.set(Some(done.is_ok()));
            self.ahead.blocks.set(end + more);
        }
    }

    /// Threads are about to let the file grow to `end`.
    pub(super) fn lengthen_ahead(&self, end: u64) {
        let more = self.ahead.more(self.file.fd(), self.size.get(), end);
        if let Some(more) = more.filter(|_| end > self.ahead.length.get()) {
            let done = set_len(self.file.fd(), end + more);
            self.ahead.useful.set(Some(done.is_ok()));
            self.ahead.length.set(end + more);
        }
    }

    /// Gives back what is left of the length.
    ///
    /// # Errors
    /// What the host says; the file may be longer than it should be then.
    pub(super) fn shorten(&self) -> io::Result<()> {
        self.cut_off(self.ahead.length.take())
    }

    /// Gives back all that is left. Where that fails it stays for the next growth.
    pub(super) fn give_back_ahead(&self) {
        let _ = self.cut_off(self.ahead.blocks.take().max(self.ahead.length.take()));
    }

    /// Gives back what the file has up to `end` and does not need: blocks go too when its length is set.
    fn cut_off(&self, end: u64) -> io::Result<()> {
        match end > self.size.get() {
            true => set_len(self.file.fd(), self.size.get()),
            false => Ok(()),
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
    fn a_file_that_threads_fill_is_longer_until_it_is_flushed() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = folder.path().join("file");
        let engine = Engine::new(Backend::Auto).unwrap();
        let file = FileDriver::create(&engine, path.to_str().unwrap(), &OpenOptions::default()).unwrap();
        let threads = file.bulk_file().unwrap();
        for piece in 0..32 {
            file.written_elsewhere((piece + 1) * PIECE);
            threads.write(piece * PIECE, &[7; PIECE as usize]).unwrap();
        }
        assert_eq!(file.size(), 32 * PIECE);
        engine.block_on(file.flush()).unwrap().unwrap();
        assert_eq!(metadata(&path).unwrap().len(), 32 * PIECE);
        assert!(metadata(&path).unwrap().blocks() * 512 < 33 * PIECE, "and has no blocks there");
    }

    #[test]
    fn a_small_file_has_none() {
        assert!(append(8).0 < 9 * PIECE);
    }
}
