//! A new header with a new master key, in slot 0.

use super::super::cipher::Cipher;
use super::super::hash::Hash;
use super::super::iv::IvKind;
use super::super::sector::{Mode, Scheme};
use super::super::{Key, Sectors, random};
use super::header::{FIRST_SLOT, Header, SLOTS, Slot, stripes_len};
use crate::block::Result;
use std::time::Duration;

/// Slots begin at multiples of this, in bytes.
const SLOT_ALIGN: u64 = 4096;

/// What a new volume is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// How it is encrypted.
    pub scheme: Scheme,
    /// Hash of key derivation and splitting.
    pub hash: Hash,
    /// How long the derivation of a key from the passphrase is to take.
    pub time: Duration,
}

impl Default for CreateOptions {
    fn default() -> CreateOptions {
        let scheme = Scheme { cipher: Cipher::AES_256, mode: Mode::Xts, iv: IvKind::Plain64 };
        CreateOptions { scheme, hash: Hash::Sha256, time: Duration::from_secs(2) }
    }
}

impl CreateOptions {
    /// Refuses what makes no volume, quickly.
    ///
    /// # Errors
    /// [`Kind::Unsupported`](crate::block::Kind) for combinations that do not exist.
    pub fn validate(&self) -> Result<()> {
        Sectors::new(self.scheme, &vec![0; self.scheme.key_len()]).map(drop)
    }

    /// Where the payload of a volume like this begins, in bytes.
    pub fn payload(&self) -> u64 {
        self.slot_offset(SLOTS)
    }

    fn slot_offset(&self, index: usize) -> u64 {
        FIRST_SLOT + index as u64 * stripes_len(self.scheme).next_multiple_of(SLOT_ALIGN)
    }

    /// Makes a header, its master key and the stripes of slot 0, to be written at their places. Takes more than
    /// the time of the options.
    ///
    /// # Errors
    /// As [`CreateOptions::validate`]; [`Kind::InvalidArgument`](crate::block::Kind) for a time that is too long.
    pub fn make(&self, passphrase: &[u8]) -> Result<(Header, Key, Key)> {
        self.validate()?;
        let mut header = Header {
            scheme: self.scheme,
            hash: self.hash,
            payload: self.payload(),
            digest: [0; 20],
            digest_salt: [0; 32],
            digest_iterations: 0,
            uuid: new_uuid()?,
            slots: std::array::from_fn(|index| Slot { offset: self.slot_offset(index), ..Slot::default() }),
        };
        let key = random(self.scheme.key_len())?;
        header.set_digest(&key, self.time)?;
        let stripes = header.fill_slot(0, &key, passphrase, self.time)?;
        Ok((header, key, stripes))
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_uuid() -> Result<String> {
    let mut bytes = random(16)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}
