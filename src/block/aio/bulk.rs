//! Host files for bulk work: whole images read once, on the threads of the pool.
//!
//! A request of a guest goes through [`HostFile`](super::HostFile), on the drive's thread. Comparing or hashing
//! gigabytes is better done where the bytes are looked at: a pool thread reads a block that fits into its
//! processor's cache, works on it and reads the next.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A host file that any thread can read, through the page cache.
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
}
