//! XTS (IEEE 1619) on whole sectors, many blocks at once.
//!
//! ```text
//!   T0 = E(key 2, IV of the sector)    Tn+1 = Tn · x in GF(2^128)
//!   block n:  C = E(key 1, P ⊕ Tn) ⊕ Tn
//! ```
//! The tweaks of several sectors are made first, so that the cipher gets long runs of blocks: an instruction set
//! with wide registers takes 64 of them at a time.

use super::cipher::Blocks;
use super::sector::SECTOR;

/// Bytes of a block: the mode is defined for no other size.
pub(super) const BLOCK: usize = 16;
/// Blocks of a sector.
const PER_SECTOR: usize = SECTOR / BLOCK;
/// Sectors whose tweaks are made at once.
const GROUP: usize = 8;

/// The direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Encrypt,
    Decrypt,
}

/// Ciphers under both keys.
pub(super) struct Xts {
    /// Key 1.
    pub(super) data: Box<dyn Blocks>,
    /// Key 2.
    pub(super) tweak: Box<dyn Blocks>,
}

impl Xts {
    /// Works on whole sectors in place. `ivs` has one block for each; they are used up.
    pub(super) fn apply(&self, way: Way, ivs: &mut [u8], sectors: &mut [u8]) {
        self.tweak.encrypt(ivs);
        for (group, firsts) in sectors.chunks_mut(GROUP * SECTOR).zip(ivs.chunks(GROUP * BLOCK)) {
            let mut tweaks = [0; GROUP * PER_SECTOR];
            for (row, first) in tweaks.chunks_exact_mut(PER_SECTOR).zip(firsts.as_chunks().0) {
                fill(row, u128::from_le_bytes(*first));
            }
            xor(group, &tweaks);
            match way {
                Way::Encrypt => self.data.encrypt(group),
                Way::Decrypt => self.data.decrypt(group),
            }
            xor(group, &tweaks);
        }
    }
}

/// The tweaks of a sector, from the first on.
fn fill(row: &mut [u128], first: u128) {
    let mut tweak = first;
    for slot in row {
        *slot = tweak;
        tweak = times_x(tweak);
    }
}

/// Multiplies by x modulo x^128 + x^7 + x^2 + x + 1; without a branch, so that time tells nothing of the key.
fn times_x(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak >> 127) * 0x87)
}

fn xor(data: &mut [u8], tweaks: &[u128]) {
    for (block, tweak) in data.as_chunks_mut::<BLOCK>().0.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}
