//! Block ciphers: their names, and keyed instances that work on many blocks at once.
//!
//! | | block, bytes | key, bytes |
//! | --- | --- | --- |
//! | AES, Serpent, Twofish | 16 | 16, 24, 32 |
//! | CAST5 | 8 | 16 |
//!
//! AES runs on the processor's instructions, several blocks at a time. Twofish is there so that its images can
//! be opened; it is slow (about a megabyte a second).

use super::sector::Mode;
use crate::block::{Error, Kind, Result};
use aes::cipher::array::{Array, ArraySize};
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit,
};
use serpent::Serpent;
use twofish::Twofish;

/// A family of ciphers, named as in LUKS headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// "aes"
    Aes,
    /// "cast5"
    Cast5,
    /// "serpent"
    Serpent,
    /// "twofish"
    Twofish,
}

/// A cipher with the size of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cipher {
    family: Family,
    key_len: usize,
}

/// Every cipher with the name that users give it (`cipher-alg=`).
const CIPHERS: [(&str, Cipher); 10] = [
    ("aes-128", Cipher { family: Family::Aes, key_len: 16 }),
    ("aes-192", Cipher { family: Family::Aes, key_len: 24 }),
    ("aes-256", Cipher { family: Family::Aes, key_len: 32 }),
    ("cast5-128", Cipher { family: Family::Cast5, key_len: 16 }),
    ("serpent-128", Cipher { family: Family::Serpent, key_len: 16 }),
    ("serpent-192", Cipher { family: Family::Serpent, key_len: 24 }),
    ("serpent-256", Cipher { family: Family::Serpent, key_len: 32 }),
    ("twofish-128", Cipher { family: Family::Twofish, key_len: 16 }),
    ("twofish-192", Cipher { family: Family::Twofish, key_len: 24 }),
    ("twofish-256", Cipher { family: Family::Twofish, key_len: 32 }),
];

impl Cipher {
    /// AES with a key of 128 bits.
    pub const AES_128: Cipher = Cipher { family: Family::Aes, key_len: 16 };
    /// AES with a key of 256 bits.
    pub const AES_256: Cipher = Cipher { family: Family::Aes, key_len: 32 };

    /// The cipher that users call `name` ("aes-256").
    pub fn named(name: &str) -> Option<Cipher> {
        CIPHERS.iter().find(|(known, _)| *known == name).map(|&(_, cipher)| cipher)
    }

    /// The cipher of a family with a key of `key_len` bytes.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where there is none.
    pub fn of(family: Family, key_len: usize) -> Result<Cipher> {
        let wanted = Cipher { family, key_len };
        if CIPHERS.iter().any(|&(_, cipher)| cipher == wanted) {
            return Ok(wanted);
        }
        let message = format!("No {} cipher with key size {key_len} available", family.title());
        Err(Error::new(Kind::Unsupported, message))
    }

    /// What users call it.
    pub fn name(self) -> &'static str {
        CIPHERS.iter().find(|&&(_, cipher)| cipher == self).map_or("", |&(name, _)| name)
    }

    /// Its family.
    pub fn family(self) -> Family {
        self.family
    }

    /// Bytes of its key.
    pub fn key_len(self) -> usize {
        self.key_len
    }

    /// Bytes of a block.
    pub fn block_len(self) -> usize {
        match self.family {
            Family::Cast5 => 8,
            Family::Aes | Family::Serpent | Family::Twofish => 16,
        }
    }

    /// An instance with a key.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a key of another size.
    pub(super) fn keyed(self, key: &[u8]) -> Result<Box<dyn Blocks>> {
        match (self.family, self.key_len) {
            _ if key.len() != self.key_len => Err(wrong_key()),
            (Family::Aes, 16) => keyed::<aes::Aes128>(key),
            (Family::Aes, 24) => keyed::<aes::Aes192>(key),
            (Family::Aes, _) => keyed::<aes::Aes256>(key),
            (Family::Cast5, _) => keyed::<cast5::Cast5>(key),
            (Family::Serpent, _) => keyed::<Serpent>(key),
            (Family::Twofish, _) => keyed::<Twofish>(key),
        }
    }

    /// Decrypts whole blocks in CBC mode, in place.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a key of another size.
    pub fn decrypt_cbc(self, key: &[u8], iv: &[u8], data: &mut [u8]) -> Result<()> {
        self.keyed(key)?.cbc_decrypt(iv, data);
        Ok(())
    }

    /// Bytes of all keys that a mode needs: XTS has one for the data and one for the tweaks.
    pub fn keys_len(self, mode: Mode) -> usize {
        self.key_len * if mode == Mode::Xts { 2 } else { 1 }
    }
}

impl Family {
    /// The family that a LUKS header calls `name`.
    pub fn named(name: &str) -> Option<Family> {
        [Family::Aes, Family::Cast5, Family::Serpent, Family::Twofish]
            .into_iter()
            .find(|family| family.name() == name)
    }

    /// Its name in LUKS headers.
    pub fn name(self) -> &'static str {
        match self {
            Family::Aes => "aes",
            Family::Cast5 => "cast5",
            Family::Serpent => "serpent",
            Family::Twofish => "twofish",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Family::Aes => "AES",
            Family::Cast5 => "CAST5",
            Family::Serpent => "Serpent",
            Family::Twofish => "Twofish",
        }
    }
}

/// A keyed cipher. Data is whole blocks, changed in place; vectors are one block.
pub(super) trait Blocks: Send + Sync {
    /// Encrypts each block for itself.
    fn encrypt(&self, data: &mut [u8]);
    /// Decrypts each block for itself.
    fn decrypt(&self, data: &mut [u8]);
    /// Encrypts in CBC mode.
    fn cbc_encrypt(&self, iv: &[u8], data: &mut [u8]);
    /// Decrypts in CBC mode.
    fn cbc_decrypt(&self, iv: &[u8], data: &mut [u8]);
}

impl<C> Blocks for C
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync,
{
    fn encrypt(&self, data: &mut [u8]) {
        self.encrypt_blocks(blocks(data));
    }

    fn decrypt(&self, data: &mut [u8]) {
        self.decrypt_blocks(blocks(data));
    }

    fn cbc_encrypt(&self, iv: &[u8], data: &mut [u8]) {
        if let Ok(mut mode) = cbc::Encryptor::inner_iv_slice_init(self, iv) {
            mode.encrypt_blocks(blocks(data));
        }
    }

    fn cbc_decrypt(&self, iv: &[u8], data: &mut [u8]) {
        if let Ok(mut mode) = cbc::Decryptor::inner_iv_slice_init(self, iv) {
            mode.decrypt_blocks(blocks(data));
        }
    }
}

fn blocks<N: ArraySize>(data: &mut [u8]) -> &mut [Array<u8, N>] {
    Array::slice_as_chunks_mut(data).0
}

fn keyed<C: Blocks + KeyInit + 'static>(key: &[u8]) -> Result<Box<dyn Blocks>> {
    match C::new_from_slice(key) {
        Ok(cipher) => Ok(Box::new(cipher)),
        Err(_) => Err(wrong_key()),
    }
}

fn wrong_key() -> Error {
    Error::new(Kind::InvalidArgument, "Key length does not fit the cipher")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn cbc_gives_the_vectors_of_sp_800_38a() {
        let iv = bytes("000102030405060708090a0b0c0d0e0f");
        let plain = bytes("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
        for (name, key, expect) in [
            (
                "aes-128",
                "2b7e151628aed2a6abf7158809cf4f3c",
                "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2",
            ),
            (
                "aes-192",
                "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
                "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a",
            ),
            (
                "aes-256",
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d",
            ),
        ] {
            let cipher = Cipher::named(name).unwrap().keyed(&bytes(key)).unwrap();
            let mut data = plain.clone();
            cipher.cbc_encrypt(&iv, &mut data);
            assert_eq!(data, bytes(expect), "{name}");
            cipher.cbc_decrypt(&iv, &mut data);
            assert_eq!(data, plain, "{name}");
        }
    }

    #[test]
    fn every_cipher_has_its_name_and_wants_its_key() {
        for (name, cipher) in CIPHERS {
            assert_eq!((Cipher::named(name), cipher.name()), (Some(cipher), name));
            let len = cipher.key_len();
            assert!(cipher.keyed(&vec![7; len]).is_ok() && cipher.keyed(&vec![7; len + 1]).is_err());
            let mut block = vec![0; cipher.block_len()];
            cipher.keyed(&vec![7; len]).unwrap().encrypt(&mut block);
            assert_ne!(block, vec![0; cipher.block_len()]);
        }
        assert_eq!(
            Cipher::of(Family::Aes, 20).unwrap_err().message(),
            "No AES cipher with key size 20 available"
        );
    }
}
