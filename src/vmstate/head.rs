//! The head of a VM state.
//!
//! ```text
//!    0 magic (8)    8 version (4)   12 length of the head (4)   16 sections (4)   20 flags (4)
//!   24 RAM, bytes (8)   32 RAM that is stored, bytes (8)   40 checksum of the RAM table (8)
//!   48 0 (8)   56 checksum of the head, with zeros here (8)
//!   64 directory, 56 bytes a section: name, zeros behind it (40) | version (4) | length (4) | checksum (8)
//! ```
//! All numbers are little-endian. The bodies of the sections follow one another from [`SECTIONS_AT`] on, in the order
//! of the directory. No flag has a meaning yet: one that is set refuses the state, so that a later cowvm can say
//! by one that RAM is stored in another way.

use super::section::{MAX_BODY, MAX_NAME, Section};
use super::{Error, MAX_RAM, Result, TABLE_AT, checksum, number};

const MAGIC: &[u8; 8] = b"COWVM\x1avm";
/// The one version so far.
const VERSION: u32 = 1;
/// Bytes in which the head has room.
pub const HEAD_LEN: usize = 64 << 10;
/// Where the sections are.
pub const SECTIONS_AT: u64 = HEAD_LEN as u64;

const FIXED: usize = 64;
const ENTRY: usize = 56;
const CHECKSUM_AT: usize = 56;
const MAX_SECTIONS: usize = (HEAD_LEN - FIXED) / ENTRY;

/// What a head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of RAM.
    pub ram: u64,
    /// Bytes of it that are stored.
    pub stored: u64,
    /// Checksum of the RAM table.
    pub table: u64,
    sections: Vec<Entry>,
}

/// A line of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    version: u32,
    len: usize,
    checksum: u64,
}

impl Head {
    /// The head of `sections`, and their bodies as they stand at [`SECTIONS_AT`].
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn new(sections: &[Section], ram: u64, stored: u64, table: u64) -> Result<(Head, Vec<u8>)> {
        let entry = |section: &Section| Entry {
            name: section.name.clone(),
            version: section.version,
            len: section.body.len(),
            checksum: checksum(&section.body),
        };
        let head = Head { ram, stored, table, sections: sections.iter().map(entry).collect() };
        head.check_limits().map_err(Error::TooLarge)?;
        let bodies = sections.iter().flat_map(|section| section.body.iter().copied()).collect();
        Ok((head, bodies))
    }

    /// Bytes of all bodies together.
    pub fn bodies_len(&self) -> usize {
        self.sections.iter().map(|entry| entry.len).sum()
    }

    /// As it stands on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + ENTRY * self.sections.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(((FIXED + ENTRY * self.sections.len()) as u32).to_le_bytes());
        bytes.extend((self.sections.len() as u32).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        for value in [self.ram, self.stored, self.table, 0, 0] {
            bytes.extend(value.to_le_bytes());
        }
        self.sections.iter().for_each(|entry| entry.encode(&mut bytes));
        let sum = checksum(&bytes);
        bytes[CHECKSUM_AT..FIXED].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the head at the start of `bytes`.
    ///
    /// # Errors
    /// [`Error::Foreign`], [`Error::Newer`], [`Error::Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<Head> {
        if bytes.len() < FIXED || &bytes[..8] != MAGIC {
            return Err(Error::Foreign);
        }
        let version = number::<4>(bytes, 8) as u32;
        if version > VERSION {
            return Err(Error::Newer { what: "the VM state".to_owned(), version, known: VERSION });
        }
        let (len, count) = (number::<4>(bytes, 12) as usize, number::<4>(bytes, 16) as usize);
        if version == 0 || count > MAX_SECTIONS || len != FIXED + ENTRY * count || len > bytes.len() {
            return Err(Error::damaged("its head has an impossible length"));
        }
        check_sum(&bytes[..len])?;
        if number::<4>(bytes, 20) != 0 || number::<8>(bytes, 48) != 0 {
            return Err(Error::damaged("it has flags that mean nothing to this cowvm"));
        }
        let [ram, stored, table] = [24, 32, 40].map(|at| number::<8>(bytes, at));
        let sections = bytes[FIXED..len].chunks_exact(ENTRY).map(Entry::decode).collect::<Result<_>>()?;
        let head = Head { ram, stored, table, sections };
        head.check_limits().map_err(Error::Damaged)?;
        Ok(head)
    }

    /// The sections, from the bytes at [`SECTIONS_AT`].
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn sections(&self, bodies: &[u8]) -> Result<Vec<Section>> {
        if bodies.len() != self.bodies_len() {
            return Err(Error::damaged("it is cut off"));
        }
        let mut rest = bodies;
        let mut section = |entry: &Entry| {
            let (body, behind) = rest.split_at(entry.len);
            rest = behind;
            if checksum(body) != entry.checksum {
                return Err(Error::damaged(format!(
                    "the checksum of section '{}' does not fit it",
                    entry.name
                )));
            }
            Ok(Section { name: entry.name.clone(), version: entry.version, body: body.to_vec() })
        };
        self.sections.iter().map(&mut section).collect()
    }

    fn check_limits(&self) -> std::result::Result<(), String> {
        let long = self.sections.iter().any(|entry| entry.len > MAX_BODY);
        if self.sections.len() > MAX_SECTIONS || long || self.bodies_len() as u64 > TABLE_AT - SECTIONS_AT {
            return Err("its sections".to_owned());
        }
        if self.ram > MAX_RAM || self.stored > self.ram {
            return Err(format!("{} bytes of RAM", self.ram));
        }
        Ok(())
    }
}

impl Entry {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let mut name = [0; MAX_NAME];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        bytes.extend(name);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.len as u32).to_le_bytes());
        bytes.extend(self.checksum.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Entry> {
        let name = &bytes[..MAX_NAME];
        let len = name.iter().position(|&byte| byte == 0).unwrap_or(MAX_NAME);
        let (name, padding) = name.split_at(len);
        let printable = name.iter().all(u8::is_ascii_graphic) && !name.is_empty();
        if !printable || padding.iter().any(|&byte| byte != 0) {
            return Err(Error::damaged("a section has no name"));
        }
        Ok(Entry {
            name: name.iter().map(|&byte| char::from(byte)).collect(),
            version: number::<4>(bytes, 40) as u32,
            len: number::<4>(bytes, 44) as usize,
            checksum: number::<8>(bytes, 48),
        })
    }
}

fn check_sum(head: &[u8]) -> Result<()> {
    let mut bytes = head.to_vec();
    bytes[CHECKSUM_AT..FIXED].fill(0);
    match checksum(&bytes) == number::<8>(head, CHECKSUM_AT) {
        true => Ok(()),
        false => Err(Error::damaged("the checksum of its head does not fit it")),
    }
}
