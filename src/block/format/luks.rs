//! The `luks` format: a LUKS1 volume, whose payload is the disk.
//!
//! ```text
//!   0 header | key slots | payload offset: the disk, encrypted, to the end of the file
//! ```
//! Sectors are numbered from the start of the payload. There are no cheap zeros, which must be encrypted, and nothing is
//! discarded, which would tell what is in use.

use crate::block::aio::Engine;
use crate::block::crypto::luks::CreateOptions;
use crate::block::crypto::sector::SECTOR;
use crate::block::crypto::{Key, Sectors};
use crate::block::encryption::{Cipherer, KeySlots, SlotChange, no_key};
use crate::block::graph::driver::{KeySlotChanges, LuksFacts, Specifics};
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::rc::Rc;

/// The option that names the secret with the passphrase.
const KEY_OPTION: &str = "key-secret";
/// Longest read or write, in bytes: each goes through a buffer of its own.
const MAX_TRANSFER: u32 = 16 << 20;

/// A LUKS volume.
pub struct Luks {
    file: Rc<Node>,
    slots: KeySlots,
    /// Where the payload begins.
    payload: u64,
    /// The master key, and what encrypts with it; without them there are no data.
    key: Option<(Key, Cipherer)>,
    read_only: bool,
}

impl Luks {
    /// Opens the volume in `file`. Without a passphrase, `metadata_only` must be meant.
    ///
    /// # Errors
    /// Those of [`KeySlots::read`] and [`KeySlots::unlock`]; [`Kind::InvalidArgument`] without a passphrase.
    pub async fn open(
        engine: &Rc<Engine>,
        file: Rc<Node>,
        passphrase: Option<&Key>,
        metadata_only: bool,
        read_only: bool,
    ) -> Result<Luks> {
        let slots = KeySlots::read(engine, &file, 0, None).await?;
        let header = slots.header();
        if header.payload > file.size() {
            return Err(Error::new(Kind::InvalidFormat, "the file ends before the payload of the volume"));
        }
        let key = match passphrase {
            _ if metadata_only => None,
            None => return Err(no_key(KEY_OPTION)),
            Some(passphrase) => {
                let key = slots.unlock(passphrase).await?;
                let sectors = Sectors::new(header.scheme, &key)?;
                Some((key, Cipherer::new(engine, sectors)))
            }
        };
        let read_only = read_only || key.is_none();
        Ok(Luks { file, slots, payload: header.payload, key, read_only })
    }

    fn cipherer(&self) -> Result<&Cipherer> {
        self.key.as_ref().map(|(_, cipherer)| cipherer).ok_or_else(|| no_key(KEY_OPTION))
    }
}

/// Writes a volume with a disk of `size` bytes into an empty file.
///
/// # Errors
/// As [`CreateOptions::make`]; those of the file.
pub async fn create(
    engine: &Rc<Engine>,
    file: &Rc<Node>,
    options: &CreateOptions,
    passphrase: &Key,
    size: u64,
    preallocation: Preallocation,
) -> Result<()> {
    let end =
        size.checked_next_multiple_of(SECTOR as u64).and_then(|size| size.checked_add(options.payload()));
    let end = end.ok_or_else(too_large)?;
    file.truncate(end, preallocation).await?;
    KeySlots::create(engine, file, 0, options, passphrase).await.map(drop)
}

fn too_large() -> Error {
    Error::new(Kind::InvalidArgument, "The requested file size is too large")
}

#[async_trait(?Send)]
impl Driver for Luks {
    fn format_name(&self) -> &'static str {
        "luks"
    }

    fn size(&self) -> u64 {
        let sector = SECTOR as u64;
        self.file.size().saturating_sub(self.payload) / sector * sector
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        vec![(ChildRole::File, self.file.clone())]
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: SECTOR as u32,
            memory_alignment: 1,
            max_transfer: MAX_TRANSFER,
            growable: false,
        }
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        let first = offset / SECTOR as u64;
        self.cipherer()?.read(&self.file, self.payload + offset, first, into).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        let first = offset / SECTOR as u64;
        self.cipherer()?.write(&self.file, self.payload + offset, first, from).await
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn block_status(&self, _offset: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::of_data(len))
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if !size.is_multiple_of(SECTOR as u64) {
            return Err(Error::new(Kind::InvalidArgument, "The new size must be a multiple of 512"));
        }
        preallocation.refuse_metadata()?;
        let end = size.checked_add(self.payload).ok_or_else(too_large)?;
        self.file.truncate(end, preallocation).await
    }

    fn specifics(&self) -> Option<Specifics> {
        Some(Specifics::Luks(LuksFacts::of(&self.slots.header())))
    }

    fn key_slots(&self) -> Option<&dyn KeySlotChanges> {
        Some(self)
    }
}

#[async_trait(?Send)]
impl KeySlotChanges for Luks {
    fn check_key_slots(&self) -> Result<()> {
        Ok(())
    }

    async fn change_key_slots(&self, change: &SlotChange, force: bool) -> Result<()> {
        let (key, _) = self.key.as_ref().ok_or_else(|| no_key(KEY_OPTION))?;
        self.slots.change(change, key, force).await
    }
}
