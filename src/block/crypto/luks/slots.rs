//! Opening and filling key slots. Each takes the time of the slot's key derivation: not for a drive's thread.

use super::super::{Key, Sectors, af, random};
use super::header::{Header, MAX_ROUNDS, STRIPES, Slot, stripes_len};
use crate::block::{Error, Kind, Result};
use std::time::Duration;

/// Fewest iterations of a new slot or digest, however slow the machine.
const MIN_ITERATIONS: u64 = 1000;
/// The digest takes this part of a slot's time: it is computed at each try of a slot.
const DIGEST_SHARE: u64 = 8;

impl Header {
    /// Tries a passphrase on an active slot, whose stripes stand in `stripes`. `None` if it is the wrong one.
    ///
    /// # Errors
    /// Those of [`Sectors::new`].
    pub fn open_slot(&self, index: usize, mut stripes: Key, passphrase: &[u8]) -> Result<Option<Key>> {
        let slot = &self.slots[index];
        let len = self.scheme.key_len();
        let slot_key = self.hash.derive(passphrase, &slot.salt, slot.iterations, len);
        Sectors::new(self.scheme, &slot_key)?.decrypt(0, &mut stripes);
        let Some(split) = stripes.get(..len * STRIPES) else { return Ok(None) };
        let key = af::merge(self.hash, split, len);
        Ok((self.digest_of(&key)[..] == self.digest).then_some(key))
    }

    /// Puts the master key into a slot, under a passphrase whose derivation takes `time`. Returns the stripes
    /// to be written; the slot is active in this header from now on.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a time that is too long, or would be together with the other slots'.
    pub fn fill_slot(&mut self, index: usize, key: &[u8], passphrase: &[u8], time: Duration) -> Result<Key> {
        let salt = random(32)?;
        let room = MAX_ROUNDS.saturating_sub(self.rounds_besides(Some(index)) + self.digest_rounds());
        let most = room / self.hash.rounds(1, key.len());
        let iterations = checked_iterations(self.hash.iterations_in(time, key.len()), most)?;
        let slot_key = self.hash.derive(passphrase, &salt, iterations, key.len());
        let split = af::split(self.hash, key, STRIPES)?;
        let mut stripes = Key::zeroed(stripes_len(self.scheme) as usize);
        stripes[..split.len()].copy_from_slice(&split);
        Sectors::new(self.scheme, &slot_key)?.encrypt(0, &mut stripes);
        let slot = &mut self.slots[index];
        slot.salt.copy_from_slice(&salt);
        *slot = Slot { active: true, iterations, ..*slot };
        Ok(stripes)
    }

    /// Empties a slot in this header. Its stripes must be overwritten too.
    pub fn clear_slot(&mut self, index: usize) {
        let offset = self.slots[index].offset;
        self.slots[index] = Slot { offset, ..Slot::default() };
    }

    /// Sets the digest of a new master key.
    pub(super) fn set_digest(&mut self, key: &[u8], time: Duration) -> Result<()> {
        self.digest_salt.copy_from_slice(&random(32)?);
        let iterations = self.hash.iterations_in(time, self.digest.len()) / DIGEST_SHARE;
        let most = MAX_ROUNDS / DIGEST_SHARE / self.hash.rounds(1, self.digest.len());
        self.digest_iterations = checked_iterations(iterations, most)?;
        let digest = self.digest_of(key);
        self.digest.copy_from_slice(&digest);
        Ok(())
    }

    fn digest_of(&self, key: &[u8]) -> Key {
        self.hash.derive(key, &self.digest_salt, self.digest_iterations, self.digest.len())
    }
}

fn checked_iterations(iterations: u64, most: u64) -> Result<u32> {
    let most = most.min(u64::from(u32::MAX));
    match u32::try_from(iterations.max(MIN_ITERATIONS)) {
        Ok(iterations) if u64::from(iterations) <= most => Ok(iterations),
        _ => {
            let message = format!("PBKDF iterations {iterations} larger than {most}");
            Err(Error::new(Kind::InvalidArgument, message).remedy("use a smaller iter-time"))
        }
    }
}
