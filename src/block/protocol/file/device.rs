//! Block devices of the host: what their driver says of them, and what only they can do.
//!
//! A device that we write is ours alone: while it is locked for writing it is open a second time with O_EXCL, which
//! the kernel refuses where the device or a part of it is mounted, swapped to, or taken by another program in the same
//! way. The claim has a descriptor of its own, because a ring may hold on to the other for a while; what changes the
//! device behind the back of its page cache (zeroing, discarding) goes by it, as the kernel demands.

use super::mounted;
use crate::block::graph::driver::DeviceFacts;
use crate::block::options::{OpenOptions, Preallocation};
use crate::block::protocol::host_cdrom::HostCdrom;
use crate::block::{Error, Kind, Result};
use crate::util::text;
use std::cell::RefCell;
use std::fs::{File, OpenOptions as HostOpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

/// Requests of linux/fs.h.
const BLKROGET: libc::Ioctl = 0x125e;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKPBSZGET: libc::Ioctl = 0x127b;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

/// What is known of an open device.
pub(super) struct Device {
    filename: String,
    number: u64,
    logical: u32,
    physical: u32,
    /// The drive, where its medium can be taken out.
    tray: Option<Arc<HostCdrom>>,
    /// Keeps others out while we write.
    claim: RefCell<Option<File>>,
}

impl Device {
    /// What the driver of `file` says. `is_cdrom`: it is to be a CD-ROM drive, whatever it is.
    ///
    /// # Errors
    /// "The device is not writable" where it is to be written and cannot be; what the host says.
    pub(super) fn of(file: &File, filename: &str, is_cdrom: bool, options: &OpenOptions) -> Result<Device> {
        if !options.read_only && number(file, BLKROGET)? != 0 {
            let denied = Error::from_io(io::Error::from_raw_os_error(libc::EACCES));
            return Err(denied
                .context("The device is not writable")
                .remedy("open it read-only (readonly=on), or make it writable with: blockdev --setrw"));
        }
        let logical = block_size(file, BLKSSZGET)?;
        let device = Device {
            filename: filename.to_owned(),
            number: file.metadata()?.rdev(),
            logical,
            physical: block_size(file, BLKPBSZGET)?.max(logical),
            tray: HostCdrom::open(filename, is_cdrom).map(Arc::new),
            claim: RefCell::default(),
        };
        if options.read_only && !options.metadata_only {
            device.warn_if_mounted();
        }
        Ok(device)
    }

    /// The protocol's name.
    pub(super) fn protocol(&self) -> &'static str {
        if self.tray.is_some() { "host_cdrom" } else { "host_device" }
    }

    /// What an offset of direct I/O is a multiple of, in bytes.
    pub(super) fn logical_block_size(&self) -> u32 {
        self.logical
    }

    /// What the nodes above may want to know.
    pub(super) fn facts(&self) -> DeviceFacts {
        DeviceFacts {
            logical_block_size: self.logical,
            physical_block_size: self.physical,
            tray: self.tray.clone().map(|tray| tray as _),
        }
    }

    /// Size in bytes, now: a logical volume grows. An empty drive has none.
    pub(super) fn size(&self, fd: &impl AsRawFd) -> Result<u64> {
        if self.tray.as_ref().is_some_and(|tray| !tray.has_medium()) {
            return Ok(0);
        }
        let mut size = 0_u64;
        // SAFETY: the kernel writes the 8 bytes that it is given.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &mut size) })?;
        Ok(size)
    }

    /// Refuses a size that the device, which has `have` bytes, cannot take the place of.
    pub(super) fn check_size(&self, wanted: u64, have: u64, preallocation: Preallocation) -> Result<()> {
        let refused = match preallocation {
            Preallocation::Falloc => "Unsupported preallocation mode 'falloc'",
            Preallocation::Full => "Unsupported preallocation mode 'full'",
            _ if wanted > have => "Cannot grow device files",
            _ => return Ok(()),
        };
        Err(Error::new(Kind::Unsupported, refused).path(&self.filename))
    }

    /// Keeps all others on this host from using it.
    ///
    /// # Errors
    /// [`Kind::Locked`] where somebody does, with the mount points that there are.
    pub(super) fn claim(&self) -> Result<()> {
        let mut host = HostOpenOptions::new();
        let claim = host
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
            .open(text::to_path(&self.filename));
        let claim = claim.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => self.in_use(error),
            _ => Error::from_io(error).path(&self.filename),
        })?;
        self.claim.replace(Some(claim));
        Ok(())
    }

    /// Lets others use it again.
    pub(super) fn release(&self) {
        self.claim.take();
    }

    /// A descriptor that no claim stands in the way of; `other` is where there is none.
    pub(super) fn exclusive_fd(&self, other: &OwnedFd) -> io::Result<OwnedFd> {
        match &*self.claim.borrow() {
            Some(claim) => Ok(OwnedFd::from(claim.try_clone()?)),
            None => other.try_clone(),
        }
    }

    fn in_use(&self, error: io::Error) -> Error {
        let users = mounted::users_of(self.number);
        let (what, remedy) = match users.is_empty() {
            true => (
                "another program uses it".to_owned(),
                "end that program, or open the device read-only".to_owned(),
            ),
            false => (
                users.join(", "),
                "unmount it, or open it read-only (readonly=on) or with -snapshot".to_owned(),
            ),
        };
        let busy = Error::from_io(error).message().to_owned();
        Error::new(Kind::Locked, format!("Could not open '{}' for writing: {busy} ({what})", self.filename))
            .path(&self.filename)
            .remedy(remedy)
    }

    fn warn_if_mounted(&self) {
        let users = mounted::users_of(self.number);
        if !users.is_empty() {
            text::say(&format!(
                "WARNING: '{}' is in use on this host ({}): what is read of it may be of different moments",
                self.filename,
                users.join(", ")
            ));
        }
    }
}

/// Tells the device that the content of a range is no longer needed. Blocks.
pub(super) fn discard(fd: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the kernel reads the two numbers.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, &[offset, len]) })
}

/// fallocate(2): zeroes a range. Blocks.
pub(super) fn zero(fd: &OwnedFd, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: a plain system call.
    checked(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset as i64, len as i64) })
}

/// A number that the driver tells.
fn number(file: &File, request: libc::Ioctl) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    // SAFETY: the kernel writes the integer that it is given.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request, &mut value) })?;
    Ok(value)
}

/// A size of blocks: a power of two from 512 bytes on.
fn block_size(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    let size = u32::try_from(number(file, request)?).unwrap_or(0);
    Ok(if size.is_power_of_two() { size.clamp(512, 1 << 16) } else { 512 })
}

fn checked(done: libc::c_int) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_headers() {
        assert_eq!(
            [BLKROGET, BLKSSZGET, BLKPBSZGET, BLKDISCARD],
            [94, 104, 123, 119].map(|n| libc::_IO(0x12, n))
        );
        if std::mem::size_of::<usize>() == 8 {
            assert_eq!(BLKGETSIZE64, libc::_IOR::<usize>(0x12, 114));
        }
    }
}
