//! Host files for bulk work: whole images read or written once, on the threads of the pool.
//!
//! A request of a guest goes through [`HostFile`](super::HostFile), on the drive's thread. Comparing, hashing or copying
//! gigabytes is better done where the bytes are looked at: a pool thread reads a block that fits into its
//! processor's cache, works on it and reads the next.

use crate::block::AlignedBytes;
use rustix::fs::{FallocateFlags, FsWord, fallocate, fstatfs};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What is copied at once where the kernel cannot do it, in bytes.
const BLOCK: usize = 256 << 10;
/// Shortest run of bytes that gets its blocks before it is written.
const RESERVED: usize = 64 << 10;
/// The file system of initial RAM disks, which libc does not name.
const RAMFS_MAGIC: FsWord = 0x8584_58f6;

/// A host file that any thread can read and write, through the page cache.
#[derive(Clone, Debug)]
pub struct BulkFile(Arc<File>);

impl BulkFile {
    /// The file that is open as `fd`. Its locks stay until both are closed.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(fd: &OwnedFd) -> io::Result<BulkFile> {
        Ok(BulkFile(Arc::new(File::from(fd.try_clone()?))))
    }

    /// Fills `into` with the bytes at `offset`; what lies past the end of the file reads as zeros. Blocks.
    ///
    /// # Errors
    /// What the host says.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.0.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        into[done..].fill(0);
        Ok(())
    }

    /// Writes all of `from` at `offset`. Blocks.
    ///
    /// # Errors
    /// What the host says.
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.0.write_all_at(from, offset)
    }

    /// Writes all of `from` at `offset`, where nobody has written yet. Long runs of bytes get their blocks first, where
    /// the file system takes less time for all at once than for each page: ext4 does (a third). Blocks.
    ///
    /// # Errors
    /// What the host says.
    pub fn write_new(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        if from.len() >= RESERVED && self.file_system() == Some(libc::EXT4_SUPER_MAGIC) {
            // Whether there is room, the write itself finds out.
            let _ = fallocate(&self.0, FallocateFlags::KEEP_SIZE, offset, from.len() as u64);
        }
        self.write(offset, from)
    }

    /// Copies `len` bytes from `offset` on to `place` of another file, by copy_file_range(2) where the file system can:
    /// it may share the blocks. What lies past the end of this file reads as zeros. Blocks.
    ///
    /// # Errors
    /// What the host says; reading and writing are told apart by [`CopyError`].
    pub fn copy(&self, offset: u64, to: &BulkFile, place: u64, len: u64) -> Result<(), CopyError> {
        let mut done = 0;
        while done < len {
            match self.copy_range(offset + done, to, place + done, len - done) {
                Ok(0) | Err(_) => return self.copy_bytes(offset + done, to, place + done, len - done),
                Ok(n) => done += n,
            }
        }
        Ok(())
    }

    /// Whether the page cache has the byte at `offset`, as it is.
    pub(super) fn has_now(&self, offset: u64) -> bool {
        let mut byte = 0u8;
        let part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // SAFETY: there is room for the byte.
        unsafe { libc::preadv2(self.0.as_raw_fd(), &raw const part, 1, offset as i64, libc::RWF_NOWAIT) == 1 }
    }

    /// Whether the file system may share blocks, or have its server copy them: those of the page cache alone only copy.
    pub fn can_offload(&self) -> bool {
        !matches!(self.file_system(), None | Some(libc::EXT4_SUPER_MAGIC | libc::TMPFS_MAGIC))
    }

    /// Whether the page cache is a copy of what is elsewhere, so that pages may leave it.
    pub fn has_storage(&self) -> bool {
        !matches!(self.file_system(), None | Some(libc::TMPFS_MAGIC | RAMFS_MAGIC))
    }

    /// The magic number of the file system.
    fn file_system(&self) -> Option<FsWord> {
        fstatfs(&self.0).ok().map(|host| host.f_type)
    }

    fn copy_range(&self, offset: u64, to: &BulkFile, place: u64, len: u64) -> io::Result<u64> {
        let (mut from, mut at) = (offset as i64, place as i64);
        let len = usize::try_from(len).unwrap_or(1 << 30);
        // SAFETY: open descriptors, and offsets that live as long as the call.
        let n = unsafe {
            libc::copy_file_range(self.0.as_raw_fd(), &mut from, to.0.as_raw_fd(), &mut at, len, 0)
        };
        u64::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    fn copy_bytes(&self, offset: u64, to: &BulkFile, place: u64, len: u64) -> Result<(), CopyError> {
        let mut memory = AlignedBytes::new(BLOCK.min(usize::try_from(len).unwrap_or(BLOCK)));
        let mut done = 0;
        while done < len {
            let bytes = memory.first((len - done).min(BLOCK as u64) as usize);
            self.read(offset + done, bytes).map_err(CopyError::Reading)?;
            to.write(place + done, bytes).map_err(CopyError::Writing)?;
            done += bytes.len() as u64;
        }
        Ok(())
    }
}

impl AsRawFd for BulkFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Which side of a copy failed.
#[derive(Debug)]
pub enum CopyError {
    /// The source.
    Reading(io::Error),
    /// The target.
    Writing(io::Error),
}
