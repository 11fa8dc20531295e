//! The `raw` format: the file, or a part of it (`offset=`, `size=`), is the disk.
//!
//! A file whose length is no multiple of [`SECTOR`] shows a disk that is rounded up; the missing bytes read as
//! zeros. Where the format was guessed and not given, the guest must not be able to turn the disk into an
//! image of another format: such a write of the first sector is refused.

use crate::block::graph::driver::{DeviceFacts, Place};
use crate::block::graph::filling::{Filling, Held, Room};
use crate::block::graph::{BlockStatus, ChildRole, Driver, Event, Limits, Node};
use crate::block::options::{Preallocation, size_option};
use crate::block::{Error, Iov, Kind, Result, probe};
use crate::util::keyval::Options;
use async_trait::async_trait;
use std::rc::Rc;

/// Unit of a disk's size, in bytes.
pub const SECTOR: u64 = 512;

/// The part of the file that is the disk: all of it, unless the user says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Where the disk begins, in bytes.
    offset: u64,
    /// Its bytes; `None` goes on to the end of the file.
    size: Option<u64>,
}

impl Window {
    /// Takes `offset=` and `size=` from the options of a file of `len` bytes.
    ///
    /// # Errors
    /// In qemu-img's words, where that is no part of the file.
    pub fn take(options: &mut Options, len: u64) -> Result<Window> {
        let mut number = |name| options.take(name).map(|value| size_option(name, &value)).transpose();
        let (offset, size) = (number("offset")?.unwrap_or(0), number("size")?);
        let refused = |message| Err(Error::new(Kind::InvalidArgument, message));
        if size.is_some_and(|size| !size.is_multiple_of(SECTOR)) {
            return refused("Specified size is not multiple of 512".to_owned());
        }
        if offset > len {
            let what = "cannot be greater than size of the containing file";
            return refused(format!("Offset ({offset}) {what} ({len})"));
        }
        if let Some(size) = size.filter(|size| *size > len - offset) {
            // The two spaces are QEMU's.
            return refused(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of \
                 the containing file ({len})"
            ));
        }
        Ok(Window { offset, size })
    }
}

/// A raw image.
pub struct Raw {
    file: Rc<Node>,
    guessed: bool,
    window: Window,
    /// Discards reach the file.
    unmap: bool,
}

impl Raw {
    /// The disk that `window` of `file` is. `guessed` says that no one named the format, `unmap` that the file gives
    /// back the space of what is discarded, or zeroed by requests that allow it.
    pub fn new(file: Rc<Node>, guessed: bool, window: Window, unmap: bool) -> Raw {
        Raw { file, guessed, window, unmap }
    }

    /// Where a place of the disk is in the file.
    fn at(&self, offset: u64) -> u64 {
        self.window.offset + offset
    }

    /// Refuses what would make a guessed raw image look like another format at the next start.
    async fn check_first_sector(&self, offset: u64, from: &Iov) -> Result<()> {
        if !self.guessed || offset >= SECTOR {
            return Ok(());
        }
        let mut sector = self.file.read_bytes(self.at(0), SECTOR as usize).await?;
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
        let len = self.file.size().saturating_sub(self.window.offset);
        self.window.size.unwrap_or_else(|| len.next_multiple_of(SECTOR))
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        vec![(ChildRole::File, self.file.clone())]
    }

    fn limits(&self) -> Limits {
        // The file below aligns what must be aligned.
        Limits::ANY
    }

    fn read_only(&self) -> bool {
        self.file.driver().read_only()
    }

    fn device(&self) -> Option<DeviceFacts> {
        self.file.driver().device()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.file.debug_event(Event::ReadAio);
        self.file.read(self.at(offset), into).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.check_first_sector(offset, from).await?;
        self.file.debug_event(Event::WriteAio);
        self.file.write(self.at(offset), from).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.file.write_zeroes(self.at(offset), len, may_unmap && self.unmap).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if !self.unmap {
            return Ok(());
        }
        let at = self.at(offset);
        self.file.discard(at, len.min(self.file.size().saturating_sub(at))).await
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::of_file(&self.file, self.at(offset), len))
    }

    fn lasting_place(&self, offset: u64, len: u64) -> Option<Place> {
        self.file.driver().lasting_place(self.at(offset), len)
    }

    fn written_elsewhere(&self, end: u64) {
        self.file.written_elsewhere(self.at(end));
    }

    fn filling(&self) -> Option<&dyn Filling> {
        // A guessed disk must not become another format's image.
        let open = !self.guessed && self.file.driver().bulk_file().is_some();
        open.then_some(self as &dyn Filling)
    }

    fn debug_event(&self, event: Event) {
        self.file.debug_event(event);
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if self.window.size.is_some() {
            return Err(Error::new(Kind::Unsupported, "Cannot resize fixed-size raw disks"));
        }
        preallocation.refuse_metadata()?;
        let done = self.file.truncate(self.at(size), preallocation).await;
        // A device may have grown meanwhile to what is wanted.
        if self.device().is_some() && self.size() != size {
            return Err(Error::new(Kind::Unsupported, "Cannot resize device files"));
        }
        done
    }
}

#[async_trait(?Send)]
impl Filling for Raw {
    fn grain(&self) -> u64 {
        SECTOR
    }

    async fn held(&self, at: u64, len: u64) -> Result<Held> {
        let Some(file) = self.file.driver().bulk_file() else { return Ok(Held::Other) };
        self.file.written_elsewhere(self.at(at) + len);
        Ok(Held::Own(vec![Room { file, offset: self.at(at), len, untouched: false }]))
    }
}
