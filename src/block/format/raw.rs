//! The `raw` format: the file is the disk.
//!
//! A file whose length is no multiple of [`SECTOR`] shows a disk that is rounded up; the missing bytes read as
//! zeros. Where the format was guessed and not given, the guest must not be able to turn the disk into an
//! image of another format: such a write of the first sector is refused.

use crate::block::graph::{BlockStatus, ChildRole, Driver, Event, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{Error, Iov, Kind, Result, probe};
use async_trait::async_trait;
use std::rc::Rc;

/// Unit of a disk's size, in bytes.
pub const SECTOR: u64 = 512;

/// A raw image.
pub struct Raw {
    file: Rc<Node>,
    guessed: bool,
    /// Discards reach the file.
    unmap: bool,
}

impl Raw {
    /// The disk that `file` is. `guessed` says that no one named the format, `unmap` that the file gives back the
    /// space of what is discarded, or zeroed by requests that allow it.
    pub fn new(file: Rc<Node>, guessed: bool, unmap: bool) -> Raw {
        Raw { file, guessed, unmap }
    }

    /// Refuses what would make a guessed raw image look like another format at the next start.
    async fn check_first_sector(&self, offset: u64, from: &Iov) -> Result<()> {
        if !self.guessed || offset >= SECTOR {
            return Ok(());
        }
        let mut sector = self.file.read_bytes(0, SECTOR as usize).await?;
        from.copy_to(0, &mut sector[offset as usize..]);
        if probe::looks_like(&sector).is_none() {
            return Ok(());
        }
        let message = "refused to write the magic number of another format to the first sector of an image \
                       whose format was guessed to be raw";
        Err(Error::new(Kind::ReadOnly, message).path(self.file.filename()).remedy("open it with format=raw"))
    }
}

#[async_trait(?Send)]
impl Driver for Raw {
    fn format_name(&self) -> &'static str {
        "raw"
    }

    fn size(&self) -> u64 {
        self.file.size().next_multiple_of(SECTOR)
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        vec![(ChildRole::File, self.file.clone())]
    }

    fn limits(&self) -> Limits {
        // The file below aligns what must be aligned.
        Limits { request_alignment: 1, memory_alignment: 1, max_transfer: 1 << 30, growable: false }
    }

    fn read_only(&self) -> bool {
        self.file.driver().read_only()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.file.read(offset, into).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.check_first_sector(offset, from).await?;
        self.file.write(offset, from).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.file.write_zeroes(offset, len, may_unmap && self.unmap).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if !self.unmap {
            return Ok(());
        }
        self.file.discard(offset, len.min(self.file.size().saturating_sub(offset))).await
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::of_file(&self.file, offset, len))
    }

    fn debug_event(&self, event: Event) {
        self.file.debug_event(event);
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        preallocation.refuse_metadata()?;
        self.file.truncate(size, preallocation).await
    }
}
