//! Opening files and devices.

use super::ahead::Ahead;
use super::device::Device;
use super::{Access, DIRECT_ALIGN, FileDriver, MAX_TRANSFER};
use crate::block::aio::{Engine, HostFile};
use crate::block::graph::Limits;
use crate::block::options::OpenOptions;
use crate::block::{Error, Kind, Result};
use crate::util::text;
use std::cell::{Cell, OnceCell, RefCell};
use std::fs::{File, Metadata, OpenOptions as HostOpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::rc::Rc;

/// What a name is to be the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A regular file: the only kind that an image may name.
    Regular,
    /// A block device.
    Device,
    /// A block device, taken for a CD-ROM drive.
    Cdrom,
    /// Any of them.
    Any,
}

/// Stands for the device number where the identity of a device is meant: it has one, whatever names lead to it.
const DEVICES: u64 = u64::MAX;

impl FileDriver {
    /// Opens an existing file or device. No lock is taken: [`FileDriver::lock`] does, once the format is known.
    ///
    /// # Errors
    /// In qemu-img's words: "Could not open 'x': No such file or directory".
    pub fn open(
        engine: &Rc<Engine>,
        expected: Expected,
        filename: &str,
        options: &OpenOptions,
    ) -> Result<FileDriver> {
        if filename.is_empty() {
            let message = "The 'file' block driver requires a file name";
            return Err(Error::new(Kind::InvalidArgument, message));
        }
        let mut host = HostOpenOptions::new();
        host.read(true).write(!options.read_only);
        FileDriver::open_with(engine, (expected, filename), options, &mut host, "open")
    }

    /// Makes an empty file, or empties the one that is there, for writing a new image to it. It is locked
    /// before anything is lost. A device stays as it is.
    ///
    /// # Errors
    /// As [`FileDriver::open`], and those of [`FileDriver::lock`].
    pub fn create(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<FileDriver> {
        let driver = FileDriver::open_to_replace(engine, filename, options)?;
        driver.empty()?;
        Ok(driver)
    }

    /// Opens and locks the file or device that is there, or makes a file, for a new image that will take all of it: after
    /// [`FileDriver::empty`].
    ///
    /// # Errors
    /// As [`FileDriver::create`].
    pub fn open_to_replace(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<FileDriver> {
        let mut host = HostOpenOptions::new();
        // Who asks for a file that is there to be made may be refused it in a folder with the sticky bit.
        let is_there = text::to_path(what(filename).1).exists();
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
        let driver = FileDriver::open_with(engine, what(filename), &writable, host, "create")?;
        driver.lock(Access { write: true, resize: true, share_writes: true })?;
        Ok(driver)
    }

    fn open_with(
        engine: &Rc<Engine>,
        (expected, filename): (Expected, &str),
        options: &OpenOptions,
        host: &mut HostOpenOptions,
        doing: &str,
    ) -> Result<FileDriver> {
        let direct = if options.cache.direct { libc::O_DIRECT } else { 0 };
        // Without O_NONBLOCK the open of a FIFO would wait for a writer, that of an empty drive would fail.
        let file = host
            .custom_flags(direct | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(text::to_path(filename))
            .map_err(|error| failed_to(doing, filename, error, options))?;
        let device = check_kind(filename, expected, &file.metadata()?)?
            .then(|| Device::of(&file, filename, expected == Expected::Cdrom, options))
            .transpose()
            .map_err(|error| match doing {
                // Who opens images says of which it speaks.
                "open" => error.path(filename),
                _ => error.context(format!("Could not {doing} '{filename}'")).path(filename),
            })?;
        FileDriver::of(engine, filename, options, file, device.map(Box::new))
    }

    /// The driver of an open file.
    pub(super) fn of(
        engine: &Rc<Engine>,
        filename: &str,
        options: &OpenOptions,
        file: File,
        device: Option<Box<Device>>,
    ) -> Result<FileDriver> {
        let metadata = file.metadata()?;
        make_blocking(&file)?;
        let (request_alignment, memory_alignment) =
            if options.cache.direct { direct_alignment(&file, device.as_deref()) } else { (1, 1) };
        let size = device.as_ref().map_or(Ok(metadata.len()), |device| device.size(&file))?;
        let identity = match device {
            Some(_) => (DEVICES, metadata.rdev()),
            None => (metadata.dev(), metadata.ino()),
        };
        let fd = OwnedFd::from(file);
        Ok(FileDriver {
            ahead: Ahead::new(),
            file: HostFile::new(engine, fd, options.cache.direct),
            filename: filename.to_owned(),
            size: Cell::new(size),
            read_only: options.read_only,
            cache: options.cache,
            limits: Limits {
                request_alignment,
                memory_alignment,
                max_transfer: MAX_TRANSFER,
                growable: true,
            },
            identity,
            lost: RefCell::default(),
            extent: Cell::new(None),
            locked: Cell::new(None),
            bulk: OnceCell::new(),
            device,
        })
    }
}

/// What a new image's name is to be the name of, and the name.
fn what(filename: &str) -> (Expected, &str) {
    match filename.strip_prefix("file:") {
        Some(path) => (Expected::Regular, path),
        None => (Expected::Any, filename),
    }
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
        Some(libc::ENXIO | libc::ENODEV) => {
            "there is no such device on this host: see lsblk for those there are"
        }
        _ => "check the file",
    };
    let direct = options.cache.direct && error.raw_os_error() == Some(libc::EINVAL);
    let error = Error::from_io(error);
    let error = if direct { error.replaced("filesystem does not support O_DIRECT") } else { error };
    error.context(format!("Could not {doing} '{filename}'")).path(filename).remedy(remedy)
}

/// Whether it is a block device; an error if it is nothing that was expected.
fn check_kind(filename: &str, expected: Expected, metadata: &Metadata) -> Result<bool> {
    let kind = metadata.file_type();
    match expected {
        Expected::Regular | Expected::Any if kind.is_file() => return Ok(false),
        Expected::Device | Expected::Cdrom | Expected::Any if kind.is_block_device() => return Ok(true),
        _ => {}
    }
    let (message, remedy) = match expected {
        Expected::Device | Expected::Cdrom => (
            format!("'host_device' driver requires '{filename}' to be a block device"),
            "name a block device such as /dev/sdb, or leave out host_device for a file",
        ),
        Expected::Regular if kind.is_block_device() => (
            format!("'file' driver requires '{filename}' to be a regular file"),
            "use driver=host_device, or its plain name: but no device is opened on an image's word",
        ),
        _ => (
            format!("'file' driver requires '{filename}' to be a regular file"),
            "name an image file or a block device",
        ),
    };
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

/// What offsets and addresses of direct I/O must be aligned to. A device says it by its logical blocks, a file
/// system by statx(2) since Linux 6.1.
fn direct_alignment(file: &File, device: Option<&Device>) -> (u32, u32) {
    // SAFETY: all-zero bytes are a valid `statx`.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, an empty path and a buffer of the right type.
    let done = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut answer)
    };
    let (offset, memory) = (answer.stx_dio_offset_align, answer.stx_dio_mem_align);
    let known = done == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    let (offset, memory) = match known && offset.is_power_of_two() && memory.is_power_of_two() {
        // Buffers of ours are aligned to a page, and no device asks for more.
        true => (offset.clamp(512, 1 << 16), memory.min(DIRECT_ALIGN)),
        false => (DIRECT_ALIGN, DIRECT_ALIGN),
    };
    (device.map_or(offset, Device::logical_block_size), memory)
}
