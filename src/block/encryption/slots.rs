//! A LUKS header in a file.
//!
//! Key derivation takes seconds and runs on a worker thread. Changes keep this order, each step durable before
//! the next:
//!
//! | | first | then |
//! | --- | --- | --- |
//! | a slot is filled | its stripes | its description in the header, active |
//! | a slot is erased | random bytes over its stripes | its description, inactive |
//!
//! A process that dies between them leaves an inactive slot with stripes that nobody looks at, or an active one
//! that no passphrase opens; the other slots are never touched.

use crate::block::aio::Engine;
use crate::block::crypto::luks::{CreateOptions, HEADER_LEN, Header, SLOTS};
use crate::block::crypto::{Key, random};
use crate::block::graph::Node;
use crate::block::{Error, Kind, Result};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// A change of key slots (`encrypt.state=` of `qemu-img amend`).
#[derive(Clone, Debug)]
pub enum SlotChange {
    /// Puts a new passphrase into a slot: the one that is named, or the first that is free.
    Fill {
        /// The slot.
        slot: Option<u32>,
        /// The passphrase.
        passphrase: Key,
        /// How long the derivation of its key is to take.
        time: Duration,
    },
    /// Erases the slot that is named, or all that a passphrase opens.
    Erase {
        /// The slot.
        slot: Option<u32>,
        /// The passphrase; where a slot is named too, it must open it.
        passphrase: Option<Key>,
    },
}

/// The header of a LUKS volume that begins at some place of a file.
pub struct KeySlots {
    engine: Rc<Engine>,
    file: Rc<Node>,
    start: u64,
    header: RefCell<Header>,
}

impl KeySlots {
    /// Reads the header at `start` of `file`; its slots must end before `len` bytes, where that is known.
    ///
    /// # Errors
    /// As [`Header::decode`].
    pub async fn read(
        engine: &Rc<Engine>,
        file: &Rc<Node>,
        start: u64,
        len: Option<u64>,
    ) -> Result<KeySlots> {
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&file.read_bytes(start, HEADER_LEN).await?);
        let header = Header::decode(&bytes)?;
        let end = (0..SLOTS).map(|slot| header.stripes(slot).end).max().unwrap_or(0);
        if len.is_some_and(|len| end > len) {
            let message = "Request for data outside of extension header";
            return Err(Error::new(Kind::InvalidFormat, message));
        }
        Ok(KeySlots { engine: engine.clone(), file: file.clone(), start, header: RefCell::new(header) })
    }

    /// Makes a header and writes it to `start` of `file`. Returns the master key too.
    ///
    /// # Errors
    /// As [`CreateOptions::make`].
    pub async fn create(
        engine: &Rc<Engine>,
        file: &Rc<Node>,
        start: u64,
        options: &CreateOptions,
        passphrase: &Key,
    ) -> Result<(KeySlots, Key)> {
        let (options, passphrase) = (*options, passphrase.clone());
        let (header, key, stripes) = engine.offload(move || options.make(&passphrase)).await?;
        file.write_bytes(start + header.stripes(0).start, &stripes).await?;
        file.write_bytes(start, &header.encode()).await?;
        let slots =
            KeySlots { engine: engine.clone(), file: file.clone(), start, header: RefCell::new(header) };
        Ok((slots, key))
    }

    /// The header as it is now.
    pub fn header(&self) -> Header {
        self.header.borrow().clone()
    }

    /// The master key, by the passphrase of any slot.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] where no slot has that passphrase.
    pub async fn unlock(&self, passphrase: &Key) -> Result<Key> {
        let header = self.header();
        for slot in (0..SLOTS).filter(|&slot| header.slots[slot].active) {
            if let Some(key) = self.open(slot, passphrase).await? {
                return Ok(key);
            }
        }
        Err(Error::invalid_argument("Invalid password, cannot unlock any keyslot"))
    }

    /// Changes slots. `key` is the master key. `force` overwrites an active slot and erases the last one, after
    /// which nobody can read the data any more.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words for slots that do not exist or are not as they should be.
    pub async fn change(&self, change: &SlotChange, key: &Key, force: bool) -> Result<()> {
        match change {
            SlotChange::Fill { slot, passphrase, time } => {
                let slot = self.slot_to_fill(*slot, force)?;
                self.fill(slot, key, passphrase, *time).await
            }
            SlotChange::Erase { slot: Some(slot), passphrase } => {
                let slot = self.slot_to_erase(*slot, passphrase.as_ref(), force).await?;
                self.erase(slot).await
            }
            SlotChange::Erase { slot: None, passphrase: Some(passphrase) } => {
                self.erase_all_of(passphrase, force).await
            }
            SlotChange::Erase { slot: None, passphrase: None } => Err(Error::invalid_argument(
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them \
                 must be given",
            )),
        }
    }

    fn slot_to_fill(&self, wanted: Option<u32>, force: bool) -> Result<usize> {
        let header = self.header.borrow();
        let Some(wanted) = wanted else {
            let free = header.slots.iter().position(|slot| !slot.active);
            return free
                .ok_or_else(|| Error::invalid_argument("Can't add a keyslot - all keyslots are in use"));
        };
        let slot = check_index(wanted)?;
        if header.slots[slot].active && !force {
            let message = format!("Refusing to overwrite active keyslot {slot} - please erase it first");
            return Err(Error::invalid_argument(message));
        }
        Ok(slot)
    }

    async fn slot_to_erase(&self, wanted: u32, passphrase: Option<&Key>, force: bool) -> Result<usize> {
        let slot = check_index(wanted)?;
        let header = self.header();
        let active = header.slots[slot].active;
        if let Some(passphrase) = passphrase
            && !(active && self.open(slot, passphrase).await?.is_some())
        {
            let message =
                format!("Given keyslot {slot} doesn't contain the given old password for erase operation");
            return Err(Error::invalid_argument(message));
        }
        if !active && !force {
            return Err(Error::invalid_argument(format!(
                "Given keyslot {slot} is already erased (inactive) "
            )));
        }
        if header.active_slots() == 1 && active && !force {
            let message = format!(
                "Attempt to erase the only active keyslot {slot} which will erase all the data in the image \
                 irreversibly - refusing operation"
            );
            return Err(Error::invalid_argument(message));
        }
        Ok(slot)
    }

    async fn erase_all_of(&self, passphrase: &Key, force: bool) -> Result<()> {
        let header = self.header();
        let mut matching = Vec::new();
        for slot in (0..SLOTS).filter(|&slot| header.slots[slot].active) {
            if self.open(slot, passphrase).await?.is_some() {
                matching.push(slot);
            }
        }
        if matching.is_empty() {
            return Err(Error::invalid_argument(
                "No keyslots match given (old) password for erase operation",
            ));
        }
        if matching.len() == header.active_slots() && !force {
            return Err(Error::invalid_argument(
                "All the active keyslots match the (old) password that was given and erasing them will erase all \
                 the data in the image irreversibly - refusing operation",
            ));
        }
        for slot in matching {
            self.erase(slot).await?;
        }
        Ok(())
    }

    /// Tries a passphrase on a slot.
    async fn open(&self, slot: usize, passphrase: &Key) -> Result<Option<Key>> {
        let (header, passphrase) = (self.header(), passphrase.clone());
        let place = header.stripes(slot);
        let stripes =
            self.file.read_bytes(self.start + place.start, (place.end - place.start) as usize).await?;
        let stripes = Key::from(stripes);
        self.engine.offload(move || header.open_slot(slot, stripes, &passphrase)).await
    }

    async fn fill(&self, slot: usize, key: &Key, passphrase: &Key, time: Duration) -> Result<()> {
        let (mut header, key, passphrase) = (self.header(), key.clone(), passphrase.clone());
        let fill = move || header.fill_slot(slot, &key, &passphrase, time).map(|stripes| (header, stripes));
        let (header, stripes) = self.engine.offload(fill).await?;
        self.write(slot, header, &stripes).await
    }

    async fn erase(&self, slot: usize) -> Result<()> {
        let mut header = self.header();
        header.clear_slot(slot);
        let place = header.stripes(slot);
        self.write(slot, header, &random((place.end - place.start) as usize)?).await
    }

    /// Writes a slot's stripes, then its description.
    async fn write(&self, slot: usize, header: Header, stripes: &[u8]) -> Result<()> {
        self.file.write_bytes(self.start + header.stripes(slot).start, stripes).await?;
        self.file.flush().await?;
        let at = self.start + Header::slot_offset(slot) as u64;
        self.file.write_bytes(at, &header.encode_slot(slot)).await?;
        self.file.flush().await?;
        self.header.replace(header);
        Ok(())
    }
}

fn check_index(slot: u32) -> Result<usize> {
    match slot as usize {
        index if index < SLOTS => Ok(index),
        _ => Err(Error::invalid_argument(format!(
            "Invalid keyslot {slot} specified, must be between 0 and {}",
            SLOTS - 1
        ))),
    }
}
