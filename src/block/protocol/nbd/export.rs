//! What a client knows of an export.

use super::refusal::broken;
use crate::block::{Error, Kind, Result};
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{BlockSizes, export};

/// What is known of an export once its server has let us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// In bytes.
    pub size: u64,
    /// Of [`export`].
    pub flags: u16,
    /// Constraints of requests.
    pub blocks: BlockSizes,
    /// What the server said of them, if it did.
    pub said_blocks: Option<BlockSizes>,
    /// How requests and replies look.
    pub headers: Headers,
    /// The number of the context of block status that was chosen.
    pub context: Option<u32>,
    /// A text for people.
    pub description: Option<String>,
}

impl Export {
    pub(super) fn new(size: u64, flags: u16) -> Export {
        let flags = if flags & export::HAS_FLAGS == 0 { 0 } else { flags };
        Export {
            size,
            flags,
            blocks: BlockSizes::UNSAID,
            said_blocks: None,
            headers: Headers::Simple,
            context: None,
            description: None,
        }
    }

    /// Whether it has the transmission flag.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Refuses what no request could be made to.
    pub(super) fn checked(self) -> Result<Export> {
        if i64::try_from(self.size).is_err() {
            return Err(Error::new(Kind::TooLarge, "the export is larger than a disk can be"));
        }
        if !self.blocks.make_sense() {
            return Err(broken("the server's block sizes make no sense"));
        }
        if !self.size.is_multiple_of(u64::from(self.blocks.minimum)) {
            return Err(Error::invalid_format(format!(
                "the export has {} bytes, which are no whole blocks of {}",
                self.size, self.blocks.minimum
            )));
        }
        Ok(self)
    }
}
