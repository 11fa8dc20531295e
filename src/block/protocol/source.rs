//! What an image can be opened on: a file of the host, or an export of a server.

use super::file::{Access, FileDriver};
use super::nbd::NbdDriver;
use crate::block::Result;
use crate::block::graph::{Driver, Limits};

/// An open source of bytes that no format has looked at yet.
pub(crate) enum Source {
    /// A file.
    File(FileDriver),
    /// An export.
    Nbd(NbdDriver),
}

impl Source {
    /// Device and inode number: the same for every name of one file. All exports have one: at most one image of a
    /// chain is an export, because only a user can name one.
    pub(crate) fn identity(&self) -> (u64, u64) {
        match self {
            Source::File(file) => file.identity(),
            Source::Nbd(_) => (u64::MAX, u64::MAX),
        }
    }

    /// Locks a file against other processes; a server looks after its exports itself.
    pub(crate) fn lock(&self, access: Access) -> Result<()> {
        match self {
            Source::File(file) => file.lock(access),
            Source::Nbd(_) => Ok(()),
        }
    }

    /// The first bytes, at most `len`.
    pub(crate) async fn head(&self, len: usize) -> Result<Vec<u8>> {
        match self {
            Source::File(file) => file.head(len).await,
            Source::Nbd(export) => export.head(len).await,
        }
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
        }
    }

    /// The driver of a node.
    pub(crate) fn into_driver(self) -> Box<dyn Driver> {
        match self {
            Source::File(file) => Box::new(file),
            Source::Nbd(export) => Box::new(export),
        }
    }
}
