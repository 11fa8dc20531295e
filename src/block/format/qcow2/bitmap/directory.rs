//! Bitmaps on disk: the header extension, the directory, the tables (specification: "Bitmaps").
//!
//! ```text
//!   extension   0 number of bitmaps  4 reserved  8 bytes of the directory  16 its offset
//!   directory   0 table offset  8 table entries  12 flags  16 type  17 log2 of the granularity
//!    (entry)    18 length of the name  20 bytes of extra data  24 extra data | name | padding to 8
//!   table       63..56 reserved | 55..9 offset of a cluster of bits | 8..1 reserved | 0 all bits are set
//! ```
//! A table entry of 0 stands for bits that are clear. What breaks a rule or one of QEMU's limits is refused, in
//! its words, before anything that it claims is allocated or followed.

use super::super::extensions::{BITMAPS, Extension, be32, be64};
use super::super::geometry::{ENTRY, Geometry, HOST_END, HostOffset};
use super::super::header::Header;
use crate::block::graph::Node;
use crate::block::{Error, Kind, Result};
use crate::util::text;
use std::collections::HashSet;
use std::ops::{Range, RangeInclusive};
use std::rc::Rc;

/// Autoclear bit: the bitmaps are what the extension says.
pub(in super::super) const BITMAPS_VALID: u64 = 1;

/// Limits that QEMU sets too.
pub(super) const MAX_BITMAPS: usize = 65535;
pub(super) const MAX_NAME: usize = 1023;
pub(super) const MAX_DIRECTORY: u64 = 1024 * MAX_BITMAPS as u64;
const MAX_BITS_BYTES: u64 = 512 << 20;
pub(super) const GRANULARITY_BITS: RangeInclusive<u32> = 9..=31;

/// Bytes of the extension, and of a directory entry before its name.
const EXTENSION_LEN: usize = 24;
const FIXED: usize = 24;

const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;
/// The one type that there is.
const DIRTY_TRACKING: u8 = 1;

const TABLE_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const ALL_ONES: u64 = 1;

/// Where the table of a bitmap stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Table {
    pub(super) offset: HostOffset,
    pub(super) entries: u32,
}

impl Table {
    /// The bytes of the file that it takes.
    pub(in super::super) fn range(self) -> Range<u64> {
        self.offset.0..self.offset.0 + u64::from(self.entries) * ENTRY
    }
}

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Rc<str>,
    pub(super) table: Table,
    pub(super) granularity_bits: u32,
    /// Its bits are not what the file says.
    pub(super) in_use: bool,
    /// It tracks changes ("auto").
    pub(super) enabled: bool,
}

/// What a cluster of bits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableEntry {
    Clear,
    Set,
    Bits(HostOffset),
}

impl TableEntry {
    /// Decodes and checks; nothing for an entry that breaks a rule.
    pub(super) fn decode(raw: u64, geometry: Geometry) -> Option<TableEntry> {
        match raw {
            0 => Some(TableEntry::Clear),
            ALL_ONES => Some(TableEntry::Set),
            _ if raw & !TABLE_OFFSET != 0 || !geometry.is_aligned(raw) => None,
            _ => Some(TableEntry::Bits(HostOffset(raw))),
        }
    }

    pub(super) fn encode(self) -> u64 {
        match self {
            TableEntry::Clear => 0,
            TableEntry::Set => ALL_ONES,
            TableEntry::Bits(offset) => offset.0,
        }
    }
}

/// Bytes of the bits of a disk of `size` bytes.
pub(super) fn bits_bytes(size: u64, granularity_bits: u32) -> u64 {
    size.div_ceil(1 << granularity_bits).div_ceil(8)
}

/// Entries of the table of such a bitmap: one at least.
pub(super) fn table_entries(geometry: Geometry, size: u64, granularity_bits: u32) -> u64 {
    geometry.clusters_for(bits_bytes(size, granularity_bits)).max(1)
}

/// What is said of one that does not fit.
pub(super) const TOO_LARGE: &str = "Too much space will be occupied by the bitmap. Use larger granularity";

/// Whether the format can hold such a bitmap.
pub(super) fn fits(size: u64, granularity_bits: u32) -> bool {
    bits_bytes(size, granularity_bits) <= MAX_BITS_BYTES
}

/// Reads the directory of an image whose bitmaps are valid, and says where it stands.
pub(super) async fn read(file: &Node, header: &Header) -> Result<(Vec<Entry>, Range<u64>)> {
    let Some(extension) = header.extensions.iter().find(|extension| extension.magic == BITMAPS) else {
        return Ok((Vec::new(), 0..0));
    };
    if extension.data.len() != EXTENSION_LEN {
        return Err(Error::invalid_format("bitmaps_ext: Invalid extension length"));
    }
    if header.autoclear & BITMAPS_VALID == 0 {
        return Ok((Vec::new(), 0..0));
    }
    let (count, place) = parse_extension(&extension.data, header.geometry)?;
    let bytes = file.read_bytes(place.start, (place.end - place.start) as usize).await?;
    Ok((parse(&bytes, count, header)?, place))
}

/// How many bitmaps there are, and where the directory stands.
fn parse_extension(data: &[u8], geometry: Geometry) -> Result<(usize, Range<u64>)> {
    let (count, reserved, size, offset) =
        (be32(data) as usize, be32(&data[4..]), be64(&data[8..]), be64(&data[16..]));
    if reserved != 0 {
        return Err(Error::invalid_format("bitmaps_ext: Reserved field is not zero"));
    }
    if count > MAX_BITMAPS {
        return Err(Error::invalid_format(format!(
            "bitmaps_ext: Image has {count} bitmaps, exceeding the QEMU supported maximum of {MAX_BITMAPS}"
        )));
    }
    if count == 0 {
        return Err(Error::invalid_format("found bitmaps extension with zero bitmaps"));
    }
    if !geometry.is_aligned(offset) || offset > HOST_END - MAX_DIRECTORY {
        return Err(Error::invalid_format("bitmaps_ext: invalid bitmap directory offset"));
    }
    if size > MAX_DIRECTORY {
        return Err(Error::invalid_format(format!(
            "bitmaps_ext: bitmap directory size ({size}) exceeds the maximum supported size ({MAX_DIRECTORY})"
        )));
    }
    if size == 0 {
        return Err(Error::invalid_format("Requested bitmap directory size is zero"));
    }
    Ok((count, offset..offset + size))
}

/// Parses `count` entries.
fn parse(bytes: &[u8], count: usize, header: &Header) -> Result<Vec<Entry>> {
    let (mut entries, mut names, mut rest) = (Vec::new(), HashSet::new(), bytes);
    while !rest.is_empty() {
        if entries.len() == count {
            return Err(Error::invalid_format("More bitmaps found than specified in header extension"));
        }
        let (entry, len) = parse_entry(rest, header)?;
        // Names may take 64 MiB: one copy of each.
        if !names.insert(entry.name.clone()) {
            return Err(Error::invalid_format(format!("Bitmap already exists: {}", entry.name)));
        }
        entries.push(entry);
        rest = &rest[len..];
    }
    if entries.len() < count {
        return Err(Error::invalid_format("Less bitmaps found than specified in header extension"));
    }
    Ok(entries)
}

/// Parses one entry. Also says how long it is.
fn parse_entry(bytes: &[u8], header: &Header) -> Result<(Entry, usize)> {
    let broken = || Error::invalid_format("Broken bitmap directory");
    let fixed = bytes.get(..FIXED).ok_or_else(broken)?;
    if be32(&fixed[20..]) != 0 {
        return Err(Error::new(Kind::Unsupported, "Bitmap extra data is not supported"));
    }
    let name_len = usize::from(fixed[18]) << 8 | usize::from(fixed[19]);
    let len = (FIXED + name_len).next_multiple_of(8);
    let name = text::from_bytes(&bytes.get(..len).ok_or_else(broken)?[FIXED..FIXED + name_len]);
    let flags = be32(&fixed[12..]);
    let entry = Entry {
        table: Table { offset: HostOffset(be64(fixed)), entries: be32(&fixed[8..]) },
        granularity_bits: u32::from(fixed[17]),
        in_use: flags & IN_USE != 0,
        enabled: flags & AUTO != 0,
        name: name.into(),
    };
    let known = fixed[16] == DIRTY_TRACKING && flags & !(IN_USE | AUTO) == 0;
    if !known || !is_sound(&entry, header) {
        return Err(Error::invalid_format(format!(
            "Bitmap '{}' doesn't satisfy the constraints",
            entry.name
        )));
    }
    Ok((entry, len))
}

/// Whether an entry keeps all rules.
fn is_sound(entry: &Entry, header: &Header) -> bool {
    let (offset, entries) = (entry.table.offset.0, u64::from(entry.table.entries));
    let bytes = entries << header.geometry.cluster_bits;
    (1..=MAX_NAME).contains(&text::to_bytes(&entry.name).len())
        && GRANULARITY_BITS.contains(&entry.granularity_bits)
        && (1..=MAX_BITS_BYTES.max(header.geometry.cluster_size())).contains(&bytes)
        && offset != 0
        && header.geometry.is_aligned(offset)
        && offset < HOST_END - entries * ENTRY
        && (entry.in_use || bits_bytes(header.size, entry.granularity_bits) <= bytes)
}

/// The directory as it stands on disk.
pub(super) fn encode<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> Vec<u8> {
    let len = |entry: &Entry| (FIXED + text::to_bytes(&entry.name).len()).next_multiple_of(8);
    let mut out = Vec::with_capacity(entries.clone().map(len).sum());
    for entry in entries {
        let flags = if entry.in_use { IN_USE } else { 0 } | if entry.enabled { AUTO } else { 0 };
        out.extend(entry.table.offset.0.to_be_bytes());
        out.extend(entry.table.entries.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend([DIRTY_TRACKING, entry.granularity_bits as u8]);
        let name = text::to_bytes(&entry.name);
        out.extend((name.len() as u16).to_be_bytes());
        out.extend([0; 4]);
        out.extend(&*name);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// Makes the header name a directory of `count` bitmaps at `place`, or none.
pub(super) fn set_extension(header: &mut Header, count: usize, place: &Range<u64>) {
    if count == 0 {
        header.extensions.retain(|extension| extension.magic != BITMAPS);
        header.autoclear &= !BITMAPS_VALID;
        return;
    }
    let mut data = Vec::with_capacity(EXTENSION_LEN);
    data.extend((count as u32).to_be_bytes());
    data.extend([0; 4]);
    data.extend((place.end - place.start).to_be_bytes());
    data.extend(place.start.to_be_bytes());
    match header.extensions.iter_mut().find(|extension| extension.magic == BITMAPS) {
        Some(extension) => extension.data = data,
        None => header.extensions.push(Extension { magic: BITMAPS, data }),
    }
    header.autoclear |= BITMAPS_VALID;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_entries_survive_encoding_and_reserved_bits_are_refused() {
        let geometry = Geometry { cluster_bits: 16, refcount_order: 4, extended_l2: false };
        for entry in [TableEntry::Clear, TableEntry::Set, TableEntry::Bits(HostOffset(0x5_0000))] {
            assert_eq!(TableEntry::decode(entry.encode(), geometry), Some(entry));
        }
        for raw in [2, 0x5_0001, 0x5_0200, 1 << 63 | 0x5_0000, 1 << 56] {
            assert_eq!(TableEntry::decode(raw, geometry), None, "{raw:#x}");
        }
    }
}
