//! Initialisation vectors: from the number of a sector to the first block of its mode.
//!
//! | name | vector |
//! | --- | --- |
//! | plain | the low 32 bits of the number, little-endian, zeros behind |
//! | plain64 | all 64 bits |
//! | essiv:HASH | plain64, encrypted under the hash of the key |

use super::cipher::{Blocks, Cipher};
use super::hash::Hash;
use crate::block::{Error, Result};

/// A kind of generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvKind {
    /// 32 bits of the sector's number.
    Plain,
    /// All of the sector's number.
    Plain64,
    /// The sector's number, encrypted under a hash of the key.
    Essiv(Hash),
}

impl IvKind {
    /// The generator that users call `name`; `hash` is asked for where it needs one.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::block::Kind::InvalidArgument) for another name, or without a hash where one is
    /// needed.
    pub fn named(name: &str, hash: Option<Hash>) -> Result<IvKind> {
        match (name, hash) {
            ("plain", _) => Ok(IvKind::Plain),
            ("plain64", _) => Ok(IvKind::Plain64),
            ("essiv", Some(hash)) => Ok(IvKind::Essiv(hash)),
            ("essiv", None) => {
                Err(Error::invalid_argument("Missing IV generator hash specification".to_owned()))
            }
            _ => Err(Error::invalid_argument(format!("Unexpected IV generator '{name}'"))),
        }
    }

    /// What users call it.
    pub fn name(self) -> &'static str {
        match self {
            IvKind::Plain => "plain",
            IvKind::Plain64 => "plain64",
            IvKind::Essiv(_) => "essiv",
        }
    }

    /// Its hash, where it has one.
    pub fn hash(self) -> Option<Hash> {
        match self {
            IvKind::Essiv(hash) => Some(hash),
            IvKind::Plain | IvKind::Plain64 => None,
        }
    }
}

/// A generator for one key.
pub(super) enum Generator {
    Plain,
    Plain64,
    Essiv(Box<dyn Blocks>),
}

impl Generator {
    /// The generator for data that `cipher` encrypts under `key` (all keys of the mode).
    ///
    /// # Errors
    /// [`Kind::Unsupported`](crate::block::Kind::Unsupported) where the hash is no key of a cipher of that family.
    pub(super) fn new(kind: IvKind, cipher: Cipher, key: &[u8]) -> Result<Generator> {
        match kind {
            IvKind::Plain => Ok(Generator::Plain),
            IvKind::Plain64 => Ok(Generator::Plain64),
            IvKind::Essiv(hash) => {
                let salt = hash.digest(&[key]);
                Ok(Generator::Essiv(Cipher::of(cipher.family(), salt.len())?.keyed(&salt)?))
            }
        }
    }

    /// Fills `ivs`, blocks of `block_len` bytes, for the sectors from `first` on.
    pub(super) fn fill(&self, first: u64, block_len: usize, ivs: &mut [u8]) {
        for (iv, sector) in ivs.chunks_exact_mut(block_len).zip(first..) {
            let number = match self {
                Generator::Plain => sector & u64::from(u32::MAX),
                Generator::Plain64 | Generator::Essiv(_) => sector,
            };
            iv.fill(0);
            iv[..8].copy_from_slice(&number.to_le_bytes());
        }
        if let Generator::Essiv(cipher) = self {
            cipher.encrypt(ivs);
        }
    }
}
