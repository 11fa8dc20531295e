//! The anti-forensic splitter (LUKS1 specification, "AF splitter"): a key spread over many stripes, all of
//! which are needed to get it back, so that erasing any of them destroys it.
//!
//! ```text
//!   d0 = 0    dn = H(dn-1 ⊕ sn)    the last stripe = d ⊕ key
//! ```

use super::hash::Hash;
use super::{Key, random};
use crate::block::Result;

/// Splits `key` into `stripes` (at least 1) of its length.
pub(super) fn split(hash: Hash, key: &[u8], stripes: usize) -> Result<Key> {
    let mut out = random(key.len() * stripes)?;
    let (others, last) = out.split_at_mut(key.len() * (stripes - 1));
    let mixed = mix(hash, others, key.len());
    for (at, byte) in last.iter_mut().enumerate() {
        *byte = mixed[at] ^ key[at];
    }
    Ok(out)
}

/// Gets a key of `len` bytes back from all of its stripes.
pub(super) fn merge(hash: Hash, stripes: &[u8], len: usize) -> Key {
    let (others, last) = stripes.split_at(stripes.len() - len);
    let mut key = mix(hash, others, len);
    key.iter_mut().zip(last).for_each(|(byte, last)| *byte ^= last);
    key
}

fn mix(hash: Hash, stripes: &[u8], len: usize) -> Key {
    let mut state = Key::zeroed(len);
    for stripe in stripes.chunks_exact(len) {
        state.iter_mut().zip(stripe).for_each(|(byte, stripe)| *byte ^= stripe);
        diffuse(hash, &mut state);
    }
    state
}

/// Replaces each piece of a digest's length by the digest of its number and itself.
fn diffuse(hash: Hash, state: &mut [u8]) {
    for (number, piece) in (0u32..).zip(state.chunks_mut(hash.digest_len())) {
        let digest = hash.digest(&[&number.to_be_bytes(), piece]);
        piece.copy_from_slice(&digest[..piece.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_stripes_give_the_key_back_and_one_changed_bit_does_not() {
        for hash in [Hash::Md5, Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            let key: Vec<u8> = (0..64).collect();
            let mut stripes = split(hash, &key, 100).unwrap();
            assert_eq!(merge(hash, &stripes, 64)[..], key[..]);
            stripes[64 * 50] ^= 1;
            assert_ne!(merge(hash, &stripes, 64)[..], key[..]);
        }
    }
}
