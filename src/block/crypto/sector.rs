//! Encryption of whole sectors in place: cipher, mode and generator of initialisation vectors under one key.

use super::cipher::{Blocks, Cipher};
use super::iv::{Generator, IvKind};
use super::xts::{self, Way, Xts};
use crate::block::{Error, Kind, Result};

/// Bytes that are encrypted as one.
pub const SECTOR: usize = 512;
/// Sectors whose vectors are made at once.
const BATCH: usize = 64;
/// Bytes of the longest block.
const MAX_BLOCK: usize = 16;

/// How a cipher is applied to the blocks of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each block for itself. Equal blocks stay equal: for old images only.
    Ecb,
    /// Each block is mixed with the one before it.
    Cbc,
    /// IEEE 1619; blocks of 16 bytes only.
    Xts,
    /// A key stream. What is written twice to one place gives itself away: for old images only.
    Ctr,
}

const MODES: [(&str, Mode); 4] =
    [("ecb", Mode::Ecb), ("cbc", Mode::Cbc), ("xts", Mode::Xts), ("ctr", Mode::Ctr)];

impl Mode {
    /// The mode called `name`.
    pub fn named(name: &str) -> Option<Mode> {
        MODES.iter().find(|(known, _)| *known == name).map(|&(_, mode)| mode)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        MODES.iter().find(|&&(_, mode)| mode == self).map_or("", |&(name, _)| name)
    }
}

/// Everything but the key that says how sectors are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// The cipher.
    pub cipher: Cipher,
    /// Its mode.
    pub mode: Mode,
    /// Where initialisation vectors come from.
    pub iv: IvKind,
}

impl Scheme {
    /// Bytes of the key.
    pub fn key_len(self) -> usize {
        self.cipher.keys_len(self.mode)
    }
}

enum Keyed {
    Ecb(Box<dyn Blocks>),
    Cbc(Box<dyn Blocks>),
    Xts(Xts),
    Ctr(Box<dyn Blocks>),
}

/// A scheme under a key. It can be shared by threads.
pub struct Sectors {
    keyed: Keyed,
    ivs: Generator,
    block_len: usize,
}

impl Sectors {
    /// The scheme under `key`, which has [`Scheme::key_len`] bytes.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for combinations that do not exist, [`Kind::InvalidArgument`] for a key of another
    /// length.
    pub fn new(scheme: Scheme, key: &[u8]) -> Result<Sectors> {
        let cipher = scheme.cipher;
        let keyed = match scheme.mode {
            Mode::Xts if cipher.block_len() != xts::BLOCK => {
                return Err(Error::new(Kind::Unsupported, "Unsupported cipher mode xts"));
            }
            Mode::Xts => {
                let (data, tweak) = key.split_at(key.len() / 2);
                Keyed::Xts(Xts { data: cipher.keyed(data)?, tweak: cipher.keyed(tweak)? })
            }
            Mode::Ecb => Keyed::Ecb(cipher.keyed(key)?),
            Mode::Cbc => Keyed::Cbc(cipher.keyed(key)?),
            Mode::Ctr => Keyed::Ctr(cipher.keyed(key)?),
        };
        let ivs = Generator::new(scheme.iv, cipher, key)?;
        Ok(Sectors { keyed, ivs, block_len: cipher.block_len() })
    }

    /// Encrypts whole sectors in place; `first` is the number of the first.
    pub fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.apply(Way::Encrypt, first, data);
    }

    /// Decrypts whole sectors in place; `first` is the number of the first.
    pub fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.apply(Way::Decrypt, first, data);
    }

    fn apply(&self, way: Way, first: u64, data: &mut [u8]) {
        debug_assert!(data.len().is_multiple_of(SECTOR));
        let mut ivs = [0; BATCH * MAX_BLOCK];
        for (batch, start) in data.chunks_mut(BATCH * SECTOR).zip((first..).step_by(BATCH)) {
            let ivs = &mut ivs[..batch.len() / SECTOR * self.block_len];
            self.ivs.fill(start, self.block_len, ivs);
            self.apply_batch(way, ivs, batch);
        }
    }

    fn apply_batch(&self, way: Way, ivs: &mut [u8], batch: &mut [u8]) {
        let cipher = match &self.keyed {
            Keyed::Xts(xts) => return xts.apply(way, ivs, batch),
            Keyed::Ecb(cipher) | Keyed::Cbc(cipher) | Keyed::Ctr(cipher) => cipher,
        };
        for (sector, iv) in batch.chunks_exact_mut(SECTOR).zip(ivs.chunks_exact(self.block_len)) {
            match (&self.keyed, way) {
                (Keyed::Ctr(_), _) => key_stream(&**cipher, iv, sector),
                (Keyed::Ecb(_), Way::Encrypt) => cipher.encrypt(sector),
                (Keyed::Ecb(_), Way::Decrypt) => cipher.decrypt(sector),
                (_, Way::Encrypt) => cipher.cbc_encrypt(iv, sector),
                (_, Way::Decrypt) => cipher.cbc_decrypt(iv, sector),
            }
        }
    }
}

/// Counter mode: the vector is a big-endian number that counts blocks.
fn key_stream(cipher: &dyn Blocks, iv: &[u8], sector: &mut [u8]) {
    let mut stream = [0; SECTOR];
    let mut counter = iv.iter().fold(0u128, |value, &byte| value << 8 | u128::from(byte));
    for block in stream.chunks_exact_mut(iv.len()) {
        block.copy_from_slice(&counter.to_be_bytes()[16 - iv.len()..]);
        counter = counter.wrapping_add(1);
    }
    cipher.encrypt(&mut stream);
    sector.iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::crypto::hash::Hash;
    use aes::cipher::{Array, KeyInit};
    use xts_mode::{Xts128, get_tweak_default};

    fn scheme(cipher: &str, mode: Mode, iv: IvKind) -> Scheme {
        Scheme { cipher: Cipher::named(cipher).unwrap(), mode, iv }
    }

    fn counting(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 256) as u8).collect()
    }

    /// IEEE 1619 annex B, vectors 4 and 10: 512 bytes that count up.
    #[test]
    fn xts_gives_the_vectors_of_ieee_1619() {
        let e = "2718281828459045235360287471352662497757247093699959574966967627";
        let pi = "3141592653589793238462643383279502884197169399375105820974944592";
        for (cipher, len, sector, expect) in [
            ("aes-128", 16, 0, "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"),
            ("aes-256", 32, 0xff, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"),
        ] {
            let key: Vec<u8> = [&e[..2 * len], &pi[..2 * len]]
                .concat()
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            let mut data = counting(SECTOR);
            Sectors::new(scheme(cipher, Mode::Xts, IvKind::Plain64), &key)
                .unwrap()
                .encrypt(sector, &mut data);
            let start: String = data[..32].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(start, expect, "{cipher}");
        }
    }

    #[test]
    fn xts_of_any_length_equals_that_of_the_xts_mode_crate() {
        let key = counting(64);
        let ours = Sectors::new(scheme("aes-256", Mode::Xts, IvKind::Plain64), &key).unwrap();
        let cipher = |half: &[u8]| aes::Aes256::new(&Array::try_from(half).unwrap());
        let theirs = Xts128::new(cipher(&key[..32]), cipher(&key[32..]));
        for count in [1, 2, 7, 8, 9, 63, 64, 65, 200] {
            let first = u64::from(u32::MAX) - 3;
            let (mut data, mut expect) = (counting(count * SECTOR), counting(count * SECTOR));
            ours.encrypt(first, &mut data);
            theirs.encrypt_area(&mut expect, SECTOR, u128::from(first), get_tweak_default);
            assert!(data == expect, "{count} sectors");
            ours.decrypt(first, &mut data);
            assert!(data == counting(count * SECTOR), "{count} sectors");
        }
    }

    #[test]
    fn counter_mode_gives_the_vectors_of_sp_800_38a() {
        let key = 0x2b7e1516_28aed2a6_abf71588_09cf4f3c_u128.to_be_bytes();
        let counter = 0xf0f1f2f3_f4f5f6f7_f8f9fafb_fcfdfeff_u128.to_be_bytes();
        let plain = [0x6bc1bee2_2e409f96_e93d7e11_7393172a_u128, 0xae2d8a57_1e03ac9c_9eb76fac_45af8e51];
        let expect = [0x874d6191_b620e326_1bef6864_990db6ce_u128, 0x9806f66b_7970fdff_8617187b_b9fffdff];
        let mut sector = [0; SECTOR];
        sector[..32].copy_from_slice(plain.map(u128::to_be_bytes).as_flattened());
        key_stream(&*Cipher::AES_128.keyed(&key).unwrap(), &counter, &mut sector);
        assert_eq!(sector[..32], *expect.map(u128::to_be_bytes).as_flattened());
    }

    #[test]
    fn every_scheme_is_undone_and_depends_on_the_sector() {
        let essiv = IvKind::Essiv(Hash::Sha256);
        for (cipher, mode, iv) in [
            ("aes-128", Mode::Cbc, IvKind::Plain),
            ("aes-192", Mode::Cbc, essiv),
            ("aes-256", Mode::Xts, essiv),
            ("aes-256", Mode::Ctr, IvKind::Plain64),
            ("cast5-128", Mode::Cbc, IvKind::Plain64),
            ("cast5-128", Mode::Ctr, IvKind::Plain64),
            ("serpent-256", Mode::Xts, IvKind::Plain64),
            ("twofish-192", Mode::Cbc, IvKind::Plain64),
        ] {
            let scheme = scheme(cipher, mode, iv);
            let sectors = Sectors::new(scheme, &counting(scheme.key_len())).unwrap();
            let mut data = vec![3; 3 * SECTOR];
            sectors.encrypt(70, &mut data);
            assert_ne!(data[..SECTOR], data[SECTOR..2 * SECTOR], "{cipher} {}", mode.name());
            let mut second = data[SECTOR..2 * SECTOR].to_vec();
            sectors.decrypt(71, &mut second);
            assert_eq!(second, [3; SECTOR], "{cipher} {}", mode.name());
            sectors.decrypt(70, &mut data);
            assert_eq!(data, [3; 3 * SECTOR], "{cipher} {}", mode.name());
        }
    }

    #[test]
    fn plain_vectors_repeat_after_32_bits_and_plain64_do_not() {
        for (iv, repeats) in [(IvKind::Plain, true), (IvKind::Plain64, false)] {
            let sectors = Sectors::new(scheme("aes-128", Mode::Cbc, iv), &[1; 16]).unwrap();
            let (mut near, mut far) = ([0; SECTOR], [0; SECTOR]);
            sectors.encrypt(5, &mut near);
            sectors.encrypt(5 + (1 << 32), &mut far);
            assert_eq!(near == far, repeats);
        }
    }
}
