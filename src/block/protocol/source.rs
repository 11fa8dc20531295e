//! What an image can be opened on: a file of the host, an export of a server, a directory.

use super::file::{Access, FileDriver};
use super::nbd::NbdDriver;
use super::vvfat::Vvfat;
use crate::block::graph::{Driver, Limits};
use crate::block::{Buffer, Result};

/// An open source of bytes that no format has looked at yet.
pub(crate) enum Source {
    /// A file.
    File(FileDriver),
    /// An export.
    Nbd(NbdDriver),
    /// A directory, shown as a FAT disk.
    Fat(Vvfat),
}

impl Source {
    /// Device and inode number: the same for every name of one file. All that are no files have one: at most one image
    /// of a chain is such, because only a user can name one.
    pub(crate) fn identity(&self) -> (u64, u64) {
        match self {
            Source::File(file) => file.identity(),
            Source::Nbd(_) | Source::Fat(_) => (u64::MAX, u64::MAX),
        }
    }

    /// The format of what is made here, not stored: nothing is guessed from its bytes.
    pub(crate) fn format(&self) -> Option<&'static str> {
        match self {
            Source::File(_) | Source::Nbd(_) => None,
            Source::Fat(_) => Some("raw"),
        }
    }

    /// The name of the protocol's driver.
    pub(crate) fn protocol(&self) -> &'static str {
        self.driver().format_name()
    }

    /// Locks a file against other processes; a server looks after its exports itself.
    pub(crate) fn lock(&self, access: Access) -> Result<()> {
        match self {
            Source::File(file) => file.lock(access),
            Source::Nbd(_) | Source::Fat(_) => Ok(()),
        }
    }

    /// The first bytes, at most `len`; fewer if it is shorter.
    pub(crate) async fn head(&self, len: usize) -> Result<Vec<u8>> {
        if let Source::File(file) = self {
            return file.head(len).await;
        }
        let align = u64::from(self.limits().request_alignment);
        let whole = (len as u64).min(self.size()).next_multiple_of(align).min(self.size() / align * align);
        if whole == 0 {
            return Ok(Vec::new());
        }
        let iov = Buffer::new(whole as usize).iov(whole as usize);
        self.driver().read(0, &iov).await?;
        let mut head = iov.to_vec();
        head.truncate(len);
        Ok(head)
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.driver().size()
    }

    /// What requests it takes.
    pub(crate) fn limits(&self) -> Limits {
        self.driver().limits()
    }

    fn driver(&self) -> &dyn Driver {
        match self {
            Source::File(file) => file,
            Source::Nbd(export) => export,
            Source::Fat(directory) => directory,
        }
    }

    /// The driver of a node.
    pub(crate) fn into_driver(self) -> Box<dyn Driver> {
        match self {
            Source::File(file) => Box::new(file),
            Source::Nbd(export) => Box::new(export),
            Source::Fat(directory) => Box::new(directory),
        }
    }
}
