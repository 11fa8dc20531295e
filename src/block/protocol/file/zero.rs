//! Ranges that become zeros or are given up: holes in files, commands of devices.

use super::FileDriver;
use super::device::{self, Device};
use crate::block::{Error, Kind, Result};
use std::io;
use std::os::fd::OwnedFd;

/// Gives back the space of a range, which reads as zeros then (fallocate(2)).
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
/// Zeroes a range in place.
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

impl FileDriver {
    /// Punches a hole, or zeroes the blocks in place.
    pub(super) async fn zero_range(&self, offset: u64, len: u64, punch: bool) -> Result<()> {
        match self.allocate(if punch { PUNCH } else { ZERO }, offset, len).await {
            // Disks that cannot give space back and promise zeros may still know a command for zeros.
            Err(error) if error.kind() == Kind::Unsupported && punch && self.device.is_some() => {
                self.allocate(ZERO, offset, len).await
            }
            done => done,
        }
    }

    async fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        let done = match &self.device {
            Some(device) => self.on_device(device, move |fd| device::zero(fd, mode, offset, len)).await,
            None => self.file.allocate(mode, offset, len).await,
        };
        done.map_err(|error| self.zeroing_failed(error))
    }

    /// Work that only who has the device for itself may do.
    async fn on_device(
        &self,
        device: &Device,
        work: impl FnOnce(&OwnedFd) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let fd = device.exclusive_fd(self.file.fd())?;
        self.file.engine().offload(move || work(&fd)).await
    }

    fn zeroing_failed(&self, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => {
                Error::new(Kind::Unsupported, "the file system cannot zero a range").path(&self.filename)
            }
            _ => self.request_failed(error),
        }
    }

    /// Tells a device that a range is no longer needed.
    pub(super) async fn discard_on(&self, device: &Device, offset: u64, len: u64) -> Result<()> {
        let done = self.on_device(device, move |fd| device::discard(fd, offset, len)).await;
        done.map_err(|error| self.zeroing_failed(error))
    }
}
