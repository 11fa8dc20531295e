//! Where the bytes of a disk are, for operations that read all of it: in a host file as they are, so that any
//! thread can fetch them; nowhere, because they are zeros; or only the driver knows (compressed, encrypted,
//! behind a filter).

use super::pieces::STATUS_REACH;
use crate::block::Result;
use crate::block::aio::BulkFile;
use crate::block::graph::status::{ChainStatus, chain_status};
use crate::block::graph::{BlockStatus, Node};
use std::io;
use std::rc::Rc;

/// Where bytes are that need no driver to be read.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// They are zeros.
    Zeros,
    /// They stand in a host file, from this offset on.
    File(BulkFile, u64),
}

impl Place {
    /// The place of the bytes `distance` further on.
    pub(super) fn skip(&self, distance: u64) -> Place {
        match self {
            Place::Zeros => Place::Zeros,
            Place::File(file, offset) => Place::File(file.clone(), offset + distance),
        }
    }

    /// Reads the bytes `distance` further on. Blocks.
    pub(super) fn read(&self, distance: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Place::Zeros => {
                into.fill(0);
                Ok(())
            }
            Place::File(file, offset) => file.read(offset + distance, into),
        }
    }
}

/// A run of bytes of a disk that are alike.
pub(super) struct Extent {
    /// First byte.
    pub(super) start: u64,
    /// How many bytes.
    pub(super) len: u64,
    /// Where they are; `None` where only the driver can tell.
    pub(super) place: Option<Place>,
    /// What the chain says of them.
    pub(super) status: ChainStatus,
}

impl Extent {
    /// The extent at `start`, which must be on the disk of `top`.
    pub(super) async fn at(top: &Rc<Node>, start: u64) -> Result<Extent> {
        let status = chain_status(top, start, (top.size() - start).min(STATUS_REACH)).await?;
        Ok(Extent { start, len: status.len, place: place_of(&status.status), status })
    }

    /// One past the last byte.
    pub(super) fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Where the byte `at` of the disk is.
    pub(super) fn place_at(&self, at: u64) -> Option<Place> {
        self.place.as_ref().map(|place| place.skip(at - self.start))
    }
}

/// Where the bytes are that `status` is about.
pub(super) fn place_of(status: &BlockStatus) -> Option<Place> {
    if status.zero {
        return Some(Place::Zeros);
    }
    let (node, offset) = status.mapped.as_ref()?;
    Some(Place::File(node.driver().bulk_file()?, *offset))
}
