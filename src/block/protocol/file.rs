//! The `file` protocol: a regular file of the host.
//!
//! Owns the descriptor, the image locks (module `lock`) and what the file system knows of holes. Requests end at
//! the file's length in bytes; writes beyond it make the file larger.

mod attributes;
mod lock;
mod temporary;

pub use attributes::{DEFAULT_EXTENT_SIZE_HINT, FileAttributes};
pub use lock::Access;

use crate::block::aio::{BulkFile, Engine, HostFile};
use crate::block::graph::driver::Specifics;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::{CacheMode, OpenOptions, Preallocation};
use crate::block::{Buffer, Error, Iov, Kind, Result};
use crate::util::text;
use async_trait::async_trait;
use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::fs::{File, Metadata, OpenOptions as HostOpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
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
    /// The locks that it holds.
    locked: Cell<Option<Access>>,
    /// Made when it is first asked for.
    bulk: OnceCell<Option<BulkFile>>,
}

impl FileDriver {
    /// Opens an existing file. No lock is taken: [`FileDriver::lock`] does, once the format is known.
    ///
    /// # Errors
    /// In qemu-img's words: "Could not open 'x': No such file or directory".
    pub fn open(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<FileDriver> {
        if filename.is_empty() {
            let message = "The 'file' block driver requires a file name";
            return Err(Error::new(Kind::InvalidArgument, message));
        }
        let mut host = HostOpenOptions::new();
        host.read(true).write(!options.read_only);
        FileDriver::open_with(engine, filename, options, &mut host, "open")
    }

    /// Makes an empty file, or empties the one that is there, for writing a new image to it. It is locked
    /// before anything is lost.
    ///
    /// # Errors
    /// As [`FileDriver::open`], and those of [`FileDriver::lock`].
    pub fn create(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<FileDriver> {
        let driver = FileDriver::open_to_replace(engine, filename, options)?;
        driver.empty()?;
        Ok(driver)
    }

    /// Opens and locks the file that is there, or makes one, for a new image that will take all of it: after
    /// [`FileDriver::empty`].
    ///
    /// # Errors
    /// As [`FileDriver::create`].
    pub fn open_to_replace(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<FileDriver> {
        let mut host = HostOpenOptions::new();
        // Who asks for a file that is there to be made may be refused it in a folder with the sticky bit.
        let is_there = path_of(filename).exists();
        host.read(true).write(true).create(!is_there).truncate(false).mode(0o644);
        FileDriver::open_alone(engine, filename, options, &mut host)
    }

    /// Locks the file that is there against all who would use it while another one is made that takes its place.
    ///
    /// # Errors
    /// As [`FileDriver::create`].
    pub fn claim(engine: &Rc<Engine>, filename: &str) -> Result<FileDriver> {
        let mut host = HostOpenOptions::new();
        host.read(true).write(true);
        FileDriver::open_alone(engine, filename, &OpenOptions::default(), &mut host)
    }

    /// Gives up all that is in the file.
    ///
    /// # Errors
    /// What the host says.
    pub fn empty(&self) -> Result<()> {
        self.make_empty().map_err(|error| self.failed("Could not create", error))
    }

    fn open_alone(
        engine: &Rc<Engine>,
        filename: &str,
        options: &OpenOptions,
        host: &mut HostOpenOptions,
    ) -> Result<FileDriver> {
        let writable = OpenOptions { read_only: false, ..options.clone() };
        let driver = FileDriver::open_with(engine, filename, &writable, host, "create")?;
        driver.lock(Access { write: true, resize: true, share_writes: true })?;
        Ok(driver)
    }

    fn open_with(
        engine: &Rc<Engine>,
        filename: &str,
        options: &OpenOptions,
        host: &mut HostOpenOptions,
        doing: &str,
    ) -> Result<FileDriver> {
        let direct = if options.cache.direct { libc::O_DIRECT } else { 0 };
        // Without O_NONBLOCK the open of a FIFO would wait for a writer.
        let file = host
            .custom_flags(direct | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path_of(filename))
            .map_err(|error| failed_to(doing, filename, error, options))?;
        FileDriver::of(engine, filename, options, file)
    }

    /// The driver of an open file.
    fn of(engine: &Rc<Engine>, filename: &str, options: &OpenOptions, file: File) -> Result<FileDriver> {
        let metadata = file.metadata()?;
        check_regular(filename, &metadata)?;
        make_blocking(&file)?;
        let (request_alignment, memory_alignment) =
            if options.cache.direct { direct_alignment(&file) } else { (1, 1) };
        Ok(FileDriver {
            file: HostFile::new(engine, OwnedFd::from(file), options.cache.direct),
            filename: filename.to_owned(),
            size: Cell::new(metadata.len()),
            read_only: options.read_only,
            cache: options.cache,
            limits: Limits {
                request_alignment,
                memory_alignment,
                max_transfer: MAX_TRANSFER,
                growable: true,
            },
            identity: (metadata.dev(), metadata.ino()),
            lost: RefCell::default(),
            extent: Cell::new(None),
            locked: Cell::new(None),
            bulk: OnceCell::new(),
        })
    }

    /// Locks the image against other processes, QEMU's among them, until it is closed.
    ///
    /// # Errors
    /// [`Kind::Locked`] in qemu-img's words.
    pub fn lock(&self, access: Access) -> Result<()> {
        lock::acquire(self.file.fd(), &self.filename, access)?;
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
        if self.size.get() == 0 {
            return Ok(());
        }
        let left = u64::from(!self.cache.direct);
        set_len(self.file.fd(), left)?;
        self.size.set(0);
        BulkFile::new(self.file.fd())?.write(0, &[0][..left as usize])
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::from_io(error).context(format!("{what} '{}'", self.filename)).path(&self.filename)
    }

    fn request_failed(&self, error: io::Error) -> Error {
        Error::from_io(error).path(&self.filename)
    }

    fn grown_to(&self, end: u64) {
        self.size.set(self.size.get().max(end));
        self.extent.set(None);
    }

    /// Punches a hole, or zeroes the blocks in place.
    async fn zero_range(&self, offset: u64, len: u64, punch: bool) -> Result<()> {
        let mode = if punch {
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
        } else {
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
        };
        self.file.allocate(mode, offset, len).await.map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => {
                Error::new(Kind::Unsupported, "the file system cannot zero a range").path(&self.filename)
            }
            _ => self.request_failed(error),
        })
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
        if self.locked.get().is_some() && self.file.is_idle() {
            // The kernel does it later otherwise.
            let _ = lock::release(self.file.fd());
        }
    }
}

#[async_trait(?Send)]
impl Driver for FileDriver {
    fn format_name(&self) -> &'static str {
        "file"
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
        let done = self.file.write(offset, from).await;
        self.grown_to(if done.is_ok() { offset + from.len() as u64 } else { 0 });
        done.map_err(|error| self.request_failed(error))
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let (size, end) = (self.size.get(), offset + len);
        if end > size {
            set_len(self.file.fd(), end).map_err(|error| self.request_failed(error))?;
            self.grown_to(end);
        }
        if offset < size {
            self.extent.set(None);
            self.zero_range(offset, end.min(size) - offset, may_unmap).await?;
        }
        self.extent.set(None);
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let done = self.zero_range(offset, len, true).await;
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
        let done = self.file.sync().await.map_err(|error| self.request_failed(error));
        if let Err(error) = &done
            && !self.cache.direct
        {
            let remedy = "mend the host's disk and open the image again: what was not flushed may be lost";
            self.lost.replace(Some(error.clone().remedy(remedy)));
        }
        done
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
        self.size.set(size);
        self.extent.set(None);
        Ok(())
    }

    fn set_locked(&self, locked: bool) -> Result<()> {
        match self.locked.get() {
            Some(access) if locked => lock::acquire(self.file.fd(), &self.filename, access),
            _ => Ok(lock::release(self.file.fd())?),
        }
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

    fn written_elsewhere(&self, end: u64) {
        self.grown_to(end);
    }

    fn allocated_size(&self) -> Option<u64> {
        FileDriver::allocated_size(self).ok()
    }
}

/// What a name leads to.
fn path_of(filename: &str) -> Cow<'_, Path> {
    text::to_path(filename.strip_prefix("file:").unwrap_or(filename))
}

fn failed_to(doing: &str, filename: &str, error: io::Error, options: &OpenOptions) -> Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOENT) if doing == "create" => "check the folder's name",
        Some(libc::ENOENT) => "check the name; 'imgtool create' makes a new image",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if !options.read_only => {
            "give yourself write permission on the file, or open it read-only"
        }
        Some(libc::EACCES | libc::EPERM) => "give yourself read permission on the file and its directories",
        Some(libc::EINVAL) if options.cache.direct => {
            "this file system has no direct I/O: use cache=writeback or cache=writethrough"
        }
        _ => "check the file",
    };
    let direct = options.cache.direct && error.raw_os_error() == Some(libc::EINVAL);
    let error = Error::from_io(error);
    let error = if direct { error.replaced("filesystem does not support O_DIRECT") } else { error };
    error.context(format!("Could not {doing} '{filename}'")).path(filename).remedy(remedy)
}

fn check_regular(filename: &str, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let remedy = if kind.is_block_device() || kind.is_char_device() {
        "host devices are not supported yet: copy it to an image file first"
    } else {
        "name an image file"
    };
    let message = format!("'file' driver requires '{filename}' to be a regular file");
    Err(Error::new(Kind::InvalidArgument, message).path(filename).remedy(remedy))
}

/// Takes back O_NONBLOCK, which was for the open alone.
fn make_blocking(file: &File) -> io::Result<()> {
    // SAFETY: plain system calls.
    let done = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What offsets and addresses of direct I/O on this file must be aligned to (statx(2), since Linux 6.1).
fn direct_alignment(file: &File) -> (u32, u32) {
    // SAFETY: all-zero bytes are a valid `statx`.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, an empty path and a buffer of the right type.
    let done = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut answer)
    };
    let (offset, memory) = (answer.stx_dio_offset_align, answer.stx_dio_mem_align);
    let known = done == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    if known && offset.is_power_of_two() && memory.is_power_of_two() {
        // Buffers of ours are aligned to a page, and no device asks for more.
        (offset.clamp(512, 1 << 16), memory.min(DIRECT_ALIGN))
    } else {
        (DIRECT_ALIGN, DIRECT_ALIGN)
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
