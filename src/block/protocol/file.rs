//! The `file`, `host_device` and `host_cdrom` protocols: a regular file of the host, or a block device.
//!
//! Owns the descriptor, the image locks (module `lock`) and what the file system knows of holes. Requests end at
//! the file's length in bytes; writes beyond it make a regular file larger and find a device full. What only devices
//! have is in module `device`.

mod ahead;
mod attributes;
mod device;
mod lock;
mod mounted;
mod open;
mod temporary;
mod zero;

pub use attributes::{DEFAULT_EXTENT_SIZE_HINT, FileAttributes};
pub use lock::Access;
pub use open::Expected;

use crate::block::aio::{BulkFile, HostFile};
use crate::block::graph::driver::{DeviceFacts, Place, Specifics};
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::{CacheMode, Preallocation};
use crate::block::{Buffer, Error, Iov, Result};
use ahead::Ahead;
use async_trait::async_trait;
use device::Device;
use std::cell::{Cell, OnceCell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

/// Longest request handed to the host at once, in bytes.
const MAX_TRANSFER: u32 = 16 << 20;
/// Alignment of direct I/O where the kernel does not say: enough for every disk on the market.
const DIRECT_ALIGN: u32 = 4096;

/// An open image file.
pub struct FileDriver {
    file: HostFile,
    filename: String,
    size: Cell<u64>,
    read_only: bool,
    cache: CacheMode,
    limits: Limits,
    identity: (u64, u64),
    /// The flush that failed. The kernel takes pages that it could not write for clean ones and the next fdatasync
    /// would succeed, so that no flush of a cached file can be believed any more.
    lost: RefCell<Option<Error>>,
    /// The extent that the last lseek found: start, end, whether it is data. Dropped at every change.
    extent: Cell<Option<(u64, u64, bool)>>,
    ahead: Ahead,
    /// The locks that it holds.
    locked: Cell<Option<Access>>,
    /// Made when it is first asked for.
    bulk: OnceCell<Option<BulkFile>>,
    /// What is known of it where it is a block device.
    device: Option<Box<Device>>,
}

impl FileDriver {
    /// Locks the image against other processes, QEMU's among them, until it is closed.
    ///
    /// # Errors
    /// [`crate::block::Kind::Locked`] in qemu-img's words; a device that is to be written must not be in use on the host either.
    pub fn lock(&self, access: Access) -> Result<()> {
        lock::acquire(self.file.fd(), &self.filename, access)?;
        match &self.device {
            Some(device) if access.write => device.claim()?,
            _ => {}
        }
        self.locked.set(Some(access));
        Ok(())
    }

    /// Tells the file system how an empty file is to be laid out; one that has no such thing ignores it.
    pub fn set_attributes(&self, attributes: FileAttributes) {
        attributes::set(self.file.fd(), attributes);
    }

    /// Device and inode number: the same for every name of one file.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Space that the file takes on the host, in bytes.
    ///
    /// # Errors
    /// When the host does not say.
    pub fn allocated_size(&self) -> Result<u64> {
        let file = File::from(self.file.fd().try_clone()?);
        Ok(file.metadata()?.blocks() * 512)
    }

    /// The first bytes of the file, at most `len`; fewer if it is shorter.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn head(&self, len: usize) -> Result<Vec<u8>> {
        let buffer = Buffer::new(len.next_multiple_of(DIRECT_ALIGN as usize));
        let iov = buffer.iov(usize::MAX);
        self.file.read(0, &iov).await.map_err(|error| self.failed("Could not read", error))?;
        let mut head = iov.to_vec();
        head.truncate(len.min(self.size.get() as usize));
        Ok(head)
    }

    /// Empties the file. Through the page cache not by truncation to nothing: ext4 takes that for a file that is being
    /// replaced and writes all of it to disk at close. The byte that stays is made zero: nobody need write there.
    fn make_empty(&self) -> io::Result<()> {
        if self.size.get() == 0 || self.device.is_some() {
            return Ok(());
        }
        let left = u64::from(!self.cache.direct);
        set_len(self.file.fd(), left)?;
        self.set_size(0);
        BulkFile::new(self.file.fd())?.write(0, &[0][..left as usize])
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::from_io(error).context(format!("{what} '{}'", self.filename)).path(&self.filename)
    }

    fn request_failed(&self, error: io::Error) -> Error {
        Error::from_io(error).path(&self.filename)
    }

    fn set_size(&self, size: u64) {
        self.size.set(size);
        self.extent.set(None);
        self.ahead.forget_writes();
    }

    fn grown_to(&self, end: u64) {
        self.size.set(self.size.get().max(end));
        self.extent.set(None);
    }

    /// Makes a regular file as long as the end of a request; a device is as long as it is.
    fn grow_to(&self, end: u64) -> Result<()> {
        if self.device.is_some() {
            return Err(self.request_failed(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        set_len(self.file.fd(), end).map_err(|error| self.request_failed(error))?;
        self.grown_to(end);
        Ok(())
    }

    /// The extent of data or hole at `offset`, by lseek(2).
    fn extent_at(&self, offset: u64) -> (u64, u64, bool) {
        if let Some(extent @ (start, end, _)) = self.extent.get()
            && (start..end).contains(&offset)
        {
            return extent;
        }
        let end = self.size.get();
        let extent = match seek(self.file.fd(), offset, libc::SEEK_DATA) {
            Some(data) if data > offset => (offset, data.min(end), false),
            Some(_) => {
                let hole = seek(self.file.fd(), offset, libc::SEEK_HOLE).unwrap_or(end);
                // A file system may answer with the offset itself: then all is data.
                (offset, if hole > offset { hole.min(end) } else { end }, true)
            }
            None if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => (offset, end, false),
            None => (offset, end, true),
        };
        self.extent.set(Some(extent));
        extent
    }
}

impl Drop for FileDriver {
    /// A ring lets go of a file some time after its last request; nobody shall find it locked meanwhile.
    fn drop(&mut self) {
        self.give_back_ahead();
        if self.locked.get().is_some() && self.file.is_idle() {
            // The kernel does it later otherwise.
            let _ = lock::release(self.file.fd());
        }
    }
}

#[async_trait(?Send)]
impl Driver for FileDriver {
    fn format_name(&self) -> &'static str {
        self.device.as_ref().map_or("file", |device| device.protocol())
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.file.read(offset, into).await.map_err(|error| self.request_failed(error))
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        let end = offset + from.len() as u64;
        if self.device.is_none() {
            self.allocate_ahead(offset, end);
        }
        if let Err(error) = self.file.write(offset, from).await {
            self.extent.set(None);
            self.ahead.forget_writes();
            return Err(self.request_failed(error));
        }
        self.grown_to(end);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let (size, end) = (self.size.get(), offset + len);
        if end > size {
            self.grow_to(end)?;
        }
        if offset < size {
            self.extent.set(None);
            self.zero_range(offset, end.min(size) - offset, may_unmap).await?;
        }
        self.extent.set(None);
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let done = match &self.device {
            Some(device) => self.discard_on(device, offset, len).await,
            None => self.zero_range(offset, len, true).await,
        };
        self.extent.set(None);
        done
    }

    async fn flush(&self) -> Result<()> {
        if self.cache.no_flush {
            return Ok(());
        }
        if let Some(error) = &*self.lost.borrow() {
            return Err(error.clone());
        }
        self.shorten().map_err(|error| self.request_failed(error))?;
        let done = self.file.sync().await.map_err(|error| self.request_failed(error));
        if let Err(error) = &done
            && !self.cache.direct
        {
            let remedy = "mend the host's disk and open the image again: what was not flushed may be lost";
            self.lost.replace(Some(error.clone().remedy(remedy)));
        }
        done
    }

    async fn begin_flush(&self) {
        if !self.cache.no_flush && !self.cache.direct {
            self.file.write_back().await;
        }
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let (_, end, data) = self.extent_at(offset);
        Ok(BlockStatus {
            len: len.min(end.saturating_sub(offset)),
            allocated: true,
            data,
            zero: !data,
            compressed: false,
            mapped: None,
            recurse: false,
        })
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if let Some(device) = &self.device {
            self.size.set(device.size(self.file.fd())?);
            return device.check_size(size, self.size.get(), preallocation);
        }
        let old = self.size.get();
        let resize = |error| self.failed("Could not resize", error);
        match preallocation {
            Preallocation::Off | Preallocation::Metadata => {}
            Preallocation::Falloc if size > old => {
                self.file.allocate(0, old, size - old).await.map_err(resize)?;
            }
            Preallocation::Full if size > old => {
                let zeros = Buffer::new(1 << 20).iov(1 << 20);
                for at in (old..size).step_by(1 << 20) {
                    let part = zeros.slice(0, (size - at).min(1 << 20) as usize);
                    self.file.write(at, &part).await.map_err(resize)?;
                    self.file.engine().tell_work(at + part.len() as u64 - old, size - old);
                }
            }
            Preallocation::Falloc | Preallocation::Full => {}
        }
        set_len(self.file.fd(), size).map_err(resize)?;
        self.set_size(size);
        Ok(())
    }

    fn set_locked(&self, locked: bool) -> Result<()> {
        match self.locked.get() {
            Some(access) if locked => self.lock(access),
            _ => {
                self.device.iter().for_each(|device| device.release());
                Ok(lock::release(self.file.fd())?)
            }
        }
    }

    fn device(&self) -> Option<DeviceFacts> {
        self.device.as_ref().map(|device| device.facts())
    }

    fn specifics(&self) -> Option<Specifics> {
        Some(Specifics::File)
    }

    fn bulk_file(&self) -> Option<BulkFile> {
        // Direct I/O would have to be aligned.
        if self.cache.direct {
            return None;
        }
        self.bulk.get_or_init(|| BulkFile::new(self.file.fd()).ok()).clone()
    }

    fn lasting_place(&self, offset: u64, len: u64) -> Option<Place> {
        Some(Place { file: self.bulk_file()?, offset, len })
    }

    fn written_elsewhere(&self, end: u64) {
        if self.device.is_none() {
            self.lengthen_ahead(end);
        }
        self.grown_to(end);
    }

    fn allocated_size(&self) -> Option<u64> {
        FileDriver::allocated_size(self).ok()
    }
}

fn seek(fd: &OwnedFd, offset: u64, whence: i32) -> Option<u64> {
    // SAFETY: a plain system call; requests never use the descriptor's position.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset as i64, whence) };
    u64::try_from(at).ok()
}

fn set_len(fd: &OwnedFd, size: u64) -> io::Result<()> {
    let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: a plain system call.
    match unsafe { libc::ftruncate(fd.as_raw_fd(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
