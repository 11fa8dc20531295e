//! The header ("PHDR"): decoded and checked as a whole before anything that it claims is followed.
//!
//! ```text
//!   0 "LUKS\xba\xbe"  6 version  8 cipher  40 mode  72 hash (names, 32 bytes each)
//!   104 payload, in sectors  108 bytes of the master key  112 its digest (20)  132 the digest's salt (32)
//!   164 the digest's iterations  168 UUID (40)
//!   208 eight slots:  0 state  4 iterations  8 salt (32)  40 stripes' place, in sectors  44 stripes
//!   592 end
//! ```
//! All numbers are big-endian.

use super::super::cipher::{Cipher, Family};
use super::super::hash::Hash;
use super::super::iv::IvKind;
use super::super::sector::{Mode, SECTOR, Scheme};
use crate::block::{Error, Kind, Result};
use std::ops::Range;

/// Bytes of the header.
pub const HEADER_LEN: usize = 592;
/// Key slots of a header.
pub const SLOTS: usize = 8;
/// Stripes of a key in a slot.
pub const STRIPES: usize = 4000;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const NAME: usize = 32;
const AT_CIPHER: usize = 8;
const AT_MODE: usize = 40;
const AT_HASH: usize = 72;
const AT_PAYLOAD: usize = 104;
const AT_KEY_BYTES: usize = 108;
const AT_DIGEST: usize = 112;
const AT_DIGEST_SALT: usize = 132;
const AT_DIGEST_ITERATIONS: usize = 164;
const AT_UUID: usize = 168;
const AT_SLOTS: usize = 208;
const SLOT: usize = 48;
const UUID: usize = 40;
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
/// Nothing but the header stands below this, in bytes.
pub(super) const FIRST_SLOT: u64 = 4096;
/// Most rounds of key derivation that a wrong passphrase may cost, over all slots: one to three minutes of SHA-256 on a
/// processor with instructions for it, twice that of SHA-512. Eight slots of the default time take a third at most.
pub(super) const MAX_ROUNDS: u64 = 1 << 28;

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How payload and stripes are encrypted.
    pub scheme: Scheme,
    /// Hash of key derivation and splitting.
    pub hash: Hash,
    /// Where the payload begins, in bytes from the start of the header.
    pub payload: u64,
    /// PBKDF2 digest of the master key.
    pub(super) digest: [u8; 20],
    /// Its salt.
    pub(super) digest_salt: [u8; 32],
    /// Its iterations.
    pub digest_iterations: u32,
    /// A text that names the volume.
    pub uuid: String,
    /// The key slots.
    pub slots: [Slot; SLOTS],
}

/// A key slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Whether it holds the master key.
    pub active: bool,
    /// PBKDF2 iterations from passphrase to slot key.
    pub iterations: u32,
    /// Salt of the same.
    pub(super) salt: [u8; 32],
    /// Where its stripes are, in bytes from the start of the header.
    pub offset: u64,
}

impl Header {
    /// Whether `head`, the first bytes of a file, begin a header of any version.
    pub fn is_at(head: &[u8]) -> bool {
        head.starts_with(&MAGIC)
    }

    /// Decodes and checks the first [`HEADER_LEN`] bytes.
    ///
    /// # Errors
    /// [`Kind::InvalidFormat`] for what breaks a rule, [`Kind::Unsupported`] for ciphers, modes, hashes and
    /// versions that we do not have, by name.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        if !Header::is_at(bytes) {
            return Err(Error::invalid_format("Volume is not in LUKS format"));
        }
        let version = u16::from_be_bytes([bytes[6], bytes[7]]);
        if version != VERSION {
            return Err(unsupported(format!("LUKS version {version} is not supported")));
        }
        let [cipher, mode] = [name(bytes, AT_CIPHER, "cipher name")?, name(bytes, AT_MODE, "cipher mode")?];
        let hash = hash_named(name(bytes, AT_HASH, "hash spec")?)?;
        let key_bytes = be32(bytes, AT_KEY_BYTES) as usize;
        let header = Header {
            scheme: scheme(cipher, mode, key_bytes)?,
            hash,
            payload: sectors(be32(bytes, AT_PAYLOAD)),
            digest: array(bytes, AT_DIGEST),
            digest_salt: array(bytes, AT_DIGEST_SALT),
            digest_iterations: be32(bytes, AT_DIGEST_ITERATIONS),
            uuid: text(&bytes[AT_UUID..AT_UUID + UUID]),
            slots: slots(bytes)?,
        };
        header.check()?;
        Ok(header)
    }

    /// The header as it stands on disk.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(6, &VERSION.to_be_bytes());
        put(AT_CIPHER, self.scheme.cipher.family().name().as_bytes());
        put(AT_MODE, self.scheme.mode_name().as_bytes());
        put(AT_HASH, self.hash.name().as_bytes());
        put(AT_PAYLOAD, &in_sectors(self.payload).to_be_bytes());
        put(AT_KEY_BYTES, &(self.scheme.key_len() as u32).to_be_bytes());
        put(AT_DIGEST, &self.digest);
        put(AT_DIGEST_SALT, &self.digest_salt);
        put(AT_DIGEST_ITERATIONS, &self.digest_iterations.to_be_bytes());
        put(AT_UUID, self.uuid.as_bytes().get(..UUID).unwrap_or(self.uuid.as_bytes()));
        for index in 0..SLOTS {
            put(Header::slot_offset(index), &self.encode_slot(index));
        }
        bytes
    }

    /// A slot as it stands on disk, at [`Header::slot_offset`].
    pub fn encode_slot(&self, index: usize) -> [u8; SLOT] {
        let slot = &self.slots[index];
        let mut bytes = [0; SLOT];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(if slot.active { ACTIVE } else { INACTIVE }).to_be_bytes());
        put(4, &slot.iterations.to_be_bytes());
        put(8, &slot.salt);
        put(40, &in_sectors(slot.offset).to_be_bytes());
        put(44, &(STRIPES as u32).to_be_bytes());
        bytes
    }

    /// Where a slot's description stands in the header.
    pub fn slot_offset(index: usize) -> usize {
        AT_SLOTS + index * SLOT
    }

    /// Where a slot's stripes are: whole sectors, in bytes from the start of the header.
    pub fn stripes(&self, index: usize) -> Range<u64> {
        let start = self.slots[index].offset;
        start..start + stripes_len(self.scheme)
    }

    /// How many slots are active.
    pub fn active_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.active).count()
    }

    /// Rounds of key derivation that a try of a slot takes: to its key, and to the digest of what that opens.
    pub(super) fn rounds(&self, index: usize) -> u64 {
        self.hash.rounds(self.slots[index].iterations, self.scheme.key_len()) + self.digest_rounds()
    }

    /// Those to the digest alone.
    pub(super) fn digest_rounds(&self) -> u64 {
        self.hash.rounds(self.digest_iterations, self.digest.len())
    }

    /// Rounds that it takes to find out that no slot but, perhaps, slot `besides` has a passphrase.
    pub(super) fn rounds_besides(&self, besides: Option<usize>) -> u64 {
        let tried = (0..SLOTS).filter(|&index| self.slots[index].active && Some(index) != besides);
        tried.map(|index| self.rounds(index)).sum()
    }

    /// Places, counts and iterations; no two parts may overlap.
    fn check(&self) -> Result<()> {
        check_iterations("LUKS key", self.digest_iterations)?;
        if self.payload < FIRST_SLOT {
            return Err(Error::invalid_format("LUKS payload is overlapping with the header"));
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let stripes = self.stripes(index);
            if slot.active {
                check_iterations(&format!("Keyslot {index}"), slot.iterations)?;
            }
            if stripes.start < FIRST_SLOT {
                return Err(Error::invalid_format(format!(
                    "Keyslot {index} is overlapping with the LUKS header"
                )));
            }
            if stripes.end > self.payload {
                return Err(Error::invalid_format(format!(
                    "Keyslot {index} is overlapping with the encrypted payload"
                )));
            }
            for other in index + 1..SLOTS {
                let next = self.stripes(other);
                if stripes.start < next.end && next.start < stripes.end {
                    let message = format!("Keyslots {index} and {other} are overlapping in the header");
                    return Err(Error::invalid_format(message));
                }
            }
        }
        match self.rounds_besides(None) {
            0..=MAX_ROUNDS => Ok(()),
            rounds => Err(unsupported(format!(
                "LUKS keyslots demand {rounds} rounds of key derivation, more than {MAX_ROUNDS}"
            ))),
        }
    }
}

impl Scheme {
    /// Mode and generator in the words of a header: "xts-plain64", "cbc-essiv:sha256".
    fn mode_name(&self) -> String {
        let hash = self.iv.hash().map(|hash| format!(":{}", hash.name()));
        format!("{}-{}{}", self.mode.name(), self.iv.name(), hash.unwrap_or_default())
    }
}

/// Bytes of all stripes of a slot, in whole sectors.
pub(super) fn stripes_len(scheme: Scheme) -> u64 {
    (scheme.key_len() * STRIPES).next_multiple_of(SECTOR) as u64
}

/// The scheme that the names in a header mean.
fn scheme(cipher: &str, mode: &str, key_bytes: usize) -> Result<Scheme> {
    let unexpected = || Error::invalid_format(format!("Unexpected cipher mode string format '{mode}'"));
    let (mode_name, generator) = mode.split_once('-').ok_or_else(unexpected)?;
    let (iv_name, iv_hash) = match generator.split_once(':') {
        Some((name, hash)) => (name, Some(hash_named(hash)?)),
        None => (generator, None),
    };
    let mode = Mode::named(mode_name)
        .ok_or_else(|| unsupported(format!("Cipher mode '{mode_name}' not supported")))?;
    let iv = match (iv_name, iv_hash) {
        ("plain" | "plain64" | "essiv", hash) => IvKind::named(iv_name, hash)?,
        _ => return Err(unsupported(format!("IV generator '{iv_name}' not supported"))),
    };
    let key_len = if mode == Mode::Xts { key_bytes / 2 } else { key_bytes };
    let found = Family::named(cipher).and_then(|family| Cipher::of(family, key_len).ok());
    let scheme = found.map(|cipher| Scheme { cipher, mode, iv });
    scheme.filter(|scheme| scheme.key_len() == key_bytes).ok_or_else(|| {
        unsupported(format!("Algorithm '{cipher}' with key size {key_len} bytes not supported"))
    })
}

fn slots(bytes: &[u8; HEADER_LEN]) -> Result<[Slot; SLOTS]> {
    let mut slots = [Slot::default(); SLOTS];
    for (index, slot) in slots.iter_mut().enumerate() {
        let at = Header::slot_offset(index);
        let stripes = be32(bytes, at + 44);
        if stripes as usize != STRIPES {
            return Err(Error::invalid_format(format!(
                "Keyslot {index} is corrupted (stripes {stripes} != {STRIPES})"
            )));
        }
        let active = match be32(bytes, at) {
            ACTIVE => true,
            INACTIVE => false,
            _ => {
                return Err(Error::invalid_format(format!(
                    "Keyslot {index} state (active/disable) is corrupted"
                )));
            }
        };
        let (iterations, salt) = (be32(bytes, at + 4), array(bytes, at + 8));
        *slot = Slot { active, iterations, salt, offset: sectors(be32(bytes, at + 40)) };
    }
    Ok(slots)
}

fn check_iterations(what: &str, iterations: u32) -> Result<()> {
    match iterations {
        0 => Err(Error::invalid_format(format!("{what} iteration count is zero"))),
        _ => Ok(()),
    }
}

fn hash_named(name: &str) -> Result<Hash> {
    Hash::named(name).ok_or_else(|| unsupported(format!("Hash algorithm '{name}' not supported")))
}

/// A name in a field of [`NAME`] bytes.
fn name<'a>(bytes: &'a [u8], at: usize, what: &str) -> Result<&'a str> {
    let field = &bytes[at..at + NAME];
    let end = field.iter().position(|&byte| byte == 0);
    let end =
        end.ok_or_else(|| Error::invalid_format(format!("LUKS header {what} is not NUL terminated")))?;
    std::str::from_utf8(&field[..end])
        .map_err(|_| Error::invalid_format(format!("LUKS header {what} is not text")))
}

/// A text that ends at the first zero byte; what is no UTF-8 is replaced.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// From sectors to bytes; 32 bits of sectors always fit.
fn sectors(count: u32) -> u64 {
    u64::from(count) * SECTOR as u64
}

/// From bytes to sectors; places come from [`sectors`] or from `create`, so nothing is cut off.
fn in_sectors(bytes: u64) -> u32 {
    (bytes / SECTOR as u64) as u32
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, message)
}
