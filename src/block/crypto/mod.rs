//! Encryption of disks: pure functions and types over bytes, without I/O.
//!
//! ```text
//!   passphrase ─▶ luks (key slots: hash, af) ─▶ master key ─▶ sector: Sectors ─▶ guest data
//!                                                               │ iv   number of a sector ─▶ IV
//!                                                               │ xts  and the other modes
//!                                                               ▼
//!                                                            cipher: blocks of 8 or 16 bytes
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`cipher`] | block ciphers and their names |
//! | [`hash`] | hashes, key derivation |
//! | [`iv`] | initialisation vectors |
//! | [`sector`] | whole sectors in any mode |
//! | [`luks`] | the LUKS1 header and its key slots |
//!
//! Keys, passphrases and what comes out of hashes live in a [`Key`] or in types that wipe themselves; none of them
//! has a `Debug` that shows bytes. Not wiped is what the hash crates keep on the stack while they compute (state of
//! a digest, the two keyed states of HMAC in PBKDF2), nor the buffer that a digest is copied from: it stays until
//! something else overwrites that part of the stack.

mod af;
pub mod cipher;
pub mod hash;
pub mod iv;
mod key;
pub mod luks;
pub mod sector;
mod xts;

pub use key::Key;
pub use sector::{SECTOR, Sectors};

use crate::block::{Error, Kind, Result};

/// `len` bytes that nobody can guess.
///
/// # Errors
/// [`Kind::Io`] when the host has no random numbers.
pub fn random(len: usize) -> Result<Key> {
    let mut bytes = Key::zeroed(len);
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(Error::new(Kind::Io, format!("cannot get random bytes: {error}"))),
    }
}
