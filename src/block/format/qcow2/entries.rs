//! The entries of L1 tables, L2 tables, refcount tables and refcount blocks, decoded once into enums.
//!
//! This is the only file that knows where a bit stands (specification: "Host cluster management", "Cluster
//! mapping"). An entry that breaks a rule of the specification decodes to an error that says which.
//!
//! ```text
//!   L1             63 copied | 62..56 reserved | 55..9 offset of the L2 table | 8..0 reserved
//!   L2, standard   63 copied | 62 = 0 | 61..56 reserved | 55..9 offset | 8..1 reserved | 0 reads as zeros
//!   L2, compressed 63 = 0    | 62 = 1 | 61..x additional sectors | x-1..0 byte offset    x = 70 - cluster_bits
//! ```
//! An extended L2 entry is 16 bytes: the descriptor above, whose bit 0 has no meaning, and at byte 8 a bitmap of
//! 32 subclusters (specification: "Extended L2 Entries"):
//! ```text
//!   bitmap         63..32 subcluster 31..0 reads as zeros | 31..0 subcluster 31..0 is allocated
//! ```
//! A subcluster with neither bit shows the backing file, one with both is damage, as are allocated ones without a
//! cluster. A compressed cluster has no bits. An entry whose subclusters are all alike decodes to the same as a
//! standard entry; only [`L2Entry::Mixed`] has a state for each.

use super::geometry::{ENTRY, Geometry, HOST_END, HostOffset};
use std::ops::Range;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = !(COPIED | OFFSET);
const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET | ZERO);
/// Compressed data is counted in sectors of this many bytes.
pub(super) const SECTOR: u64 = 512;
/// Subclusters of a cluster.
const PARTS: u32 = 32;

/// Why an entry cannot be used.
pub(super) type Malformed = &'static str;

/// A bitmap of subclusters that contradicts itself or its descriptor, in the words that scripts know.
const BAD_SUBCLUSTERS: Malformed = "Invalid cluster entry found";

/// An entry of an L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L1Entry {
    /// Nothing that this entry covers is allocated.
    Unallocated,
    /// The L2 table, and whether it belongs to this L1 table alone.
    Table { offset: HostOffset, copied: bool },
}

impl L1Entry {
    /// Decodes and checks.
    pub(super) fn decode(raw: u64, geometry: Geometry) -> Result<L1Entry, Malformed> {
        let offset = raw & OFFSET;
        if raw & L1_RESERVED != 0 {
            return Err("reserved bits set");
        }
        if !geometry.is_aligned(offset) {
            return Err("unaligned");
        }
        match offset {
            0 => Ok(L1Entry::Unallocated),
            _ => Ok(L1Entry::Table { offset: HostOffset(offset), copied: raw & COPIED != 0 }),
        }
    }

    /// As it stands on disk.
    pub(super) fn encode(self) -> u64 {
        match self {
            L1Entry::Unallocated => 0,
            L1Entry::Table { offset, copied } => offset.0 | copied_bit(copied),
        }
    }
}

/// Where compressed data stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compressed {
    /// First byte.
    pub(super) offset: HostOffset,
    /// Upper bound of its length in bytes: to the end of its last sector.
    pub(super) len: u64,
}

impl Compressed {
    /// Data of `bytes` bytes at `offset`.
    pub(super) fn new(offset: HostOffset, bytes: u64) -> Compressed {
        let end = (offset.0 + bytes).next_multiple_of(SECTOR);
        Compressed { offset, len: end - offset.0 }
    }

    /// Where offsets end that an entry has the bits for.
    pub(super) fn offsets_end(geometry: Geometry) -> u64 {
        HOST_END.min(1 << sector_shift(geometry))
    }
}

/// The words of an L2 entry as they stand on disk; `bitmap` is 0 where entries are not extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L2Words {
    pub(super) descriptor: u64,
    pub(super) bitmap: u64,
}

impl L2Words {
    /// Reads the bytes of one entry.
    #[inline]
    pub(super) fn read(entry: &[u8]) -> L2Words {
        let word =
            |at: usize| entry.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&b| u64::from_be_bytes(b));
        L2Words { descriptor: word(0), bitmap: word(ENTRY as usize) }
    }

    /// Writes the bytes of one entry.
    pub(super) fn write(self, entry: &mut [u8]) {
        for (bytes, word) in entry.chunks_exact_mut(ENTRY as usize).zip([self.descriptor, self.bitmap]) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
    }

    /// Whether nothing is there.
    pub(super) fn is_empty(self) -> bool {
        self.descriptor | self.bitmap == 0
    }

    /// An entry without data, and without the cluster that it keeps. `zeros`: the version has zero clusters.
    pub(super) fn without_cluster(self, geometry: Geometry, zeros: bool) -> L2Words {
        match geometry.extended_l2 {
            true => L2Words { descriptor: 0, bitmap: self.bitmap & u64::from(u32::MAX) << 32 },
            false => L2Words { descriptor: if zeros { ZERO } else { 0 }, bitmap: 0 },
        }
    }

    fn subclusters(self) -> Subclusters {
        Subclusters { data: self.bitmap as u32, zeros: (self.bitmap >> 32) as u32 }
    }
}

/// What a subcluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subcluster {
    Unallocated,
    Zero,
    Data,
}

/// A set of the subclusters of a cluster for each state; those in no set are unallocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subclusters {
    data: u32,
    zeros: u32,
}

impl Subclusters {
    const UNALLOCATED: Subclusters = Subclusters { data: 0, zeros: 0 };

    fn get(self, index: u32) -> Subcluster {
        match (self.data >> index & 1, self.zeros >> index & 1) {
            (1, _) => Subcluster::Data,
            (_, 1) => Subcluster::Zero,
            _ => Subcluster::Unallocated,
        }
    }

    /// The state of a subcluster, and the index at which another state begins.
    fn run(self, index: u32) -> (Subcluster, u32) {
        let state = self.get(index);
        let same = match state {
            Subcluster::Data => self.data,
            Subcluster::Zero => self.zeros,
            Subcluster::Unallocated => !(self.data | self.zeros),
        };
        (state, index + (same >> index).trailing_ones())
    }

    fn with(self, range: Range<u32>, state: Subcluster) -> Subclusters {
        let (mask, keep) = (bits(range.clone()), !bits(range));
        Subclusters {
            data: self.data & keep | if state == Subcluster::Data { mask } else { 0 },
            zeros: self.zeros & keep | if state == Subcluster::Zero { mask } else { 0 },
        }
    }
}

/// A mask of bits; the range is not empty.
fn bits(range: Range<u32>) -> u32 {
    u32::MAX >> (32 - (range.end - range.start)) << range.start
}

/// An entry of an L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L2Entry {
    /// Reads as the backing file.
    Unallocated,
    /// Reads as zeros; `host` is kept for it. `copied` as below.
    Zero { host: Option<HostOffset>, copied: bool },
    /// Stands in the file as it is; `copied` says that it belongs to this table alone and may be overwritten.
    Data { host: HostOffset, copied: bool },
    /// Stands compressed in the file.
    Compressed(Compressed),
    /// Each subcluster for itself, if they are not all alike or are unallocated but have a cluster kept for them.
    Mixed { host: Option<HostOffset>, copied: bool, subclusters: Subclusters },
}

impl L2Entry {
    /// Decodes and checks. `zeros` says whether the version has zero clusters (3 and up).
    pub(super) fn decode(words: L2Words, geometry: Geometry, zeros: bool) -> Result<L2Entry, Malformed> {
        if words.is_empty() {
            return Ok(L2Entry::Unallocated);
        }
        if let RawL2::Compressed { offset, len, copied } = raw_l2(words, geometry) {
            return decode_compressed(offset, len, copied, words.bitmap);
        }
        let raw = words.descriptor;
        let (offset, copied) = (raw & OFFSET, raw & COPIED != 0);
        if raw & L2_RESERVED != 0 {
            return Err("L2 entry has reserved bits set");
        }
        if !geometry.is_aligned(offset) {
            return Err("L2 entry has an unaligned cluster offset");
        }
        if offset == 0 && copied {
            return Err("L2 entry points to a cluster at offset 0");
        }
        if geometry.extended_l2 {
            let host = Some(HostOffset(offset)).filter(|_| offset != 0);
            return decode_subclusters(host, copied, words);
        }
        match (raw & ZERO != 0, offset) {
            (true, _) if !zeros => Err("L2 entry is a zero cluster, which version 2 does not have"),
            (true, 0) => Ok(L2Entry::Zero { host: None, copied: false }),
            (true, _) => Ok(L2Entry::Zero { host: Some(HostOffset(offset)), copied }),
            (false, _) => Ok(L2Entry::Data { host: HostOffset(offset), copied }),
        }
    }

    /// As [`L2Entry::decode`], of an image with an external data file: offset 0 is a place for data, which the
    /// copied flag tells from no place, and nothing is compressed.
    pub(super) fn decode_external(words: L2Words, geometry: Geometry) -> Result<L2Entry, Malformed> {
        let raw = words.descriptor;
        if raw & COMPRESSED != 0 {
            return Err("L2 entry is compressed, but the image has an external data file");
        }
        match raw & !ZERO {
            COPIED if geometry.extended_l2 => decode_subclusters(Some(HostOffset(0)), true, words),
            COPIED if raw & ZERO != 0 => Ok(L2Entry::Zero { host: Some(HostOffset(0)), copied: true }),
            COPIED => Ok(L2Entry::Data { host: HostOffset(0), copied: true }),
            _ => L2Entry::decode(words, geometry, true),
        }
    }

    /// As it stands on disk.
    pub(super) fn encode(self, geometry: Geometry) -> L2Words {
        if let L2Entry::Compressed(at) = self {
            let sectors = ((at.offset.0 % SECTOR + at.len) / SECTOR).saturating_sub(1);
            let descriptor = COMPRESSED | sectors << sector_shift(geometry) | at.offset.0;
            return L2Words { descriptor, bitmap: 0 };
        }
        let (host, copied, subclusters) = self.parts();
        let descriptor = host.map_or(0, |host| host.0 | copied_bit(copied));
        if geometry.extended_l2 {
            let bitmap = u64::from(subclusters.zeros) << 32 | u64::from(subclusters.data);
            return L2Words { descriptor, bitmap };
        }
        let zero = if matches!(self, L2Entry::Zero { .. }) { ZERO } else { 0 };
        L2Words { descriptor: descriptor | zero, bitmap: 0 }
    }

    /// An entry of parts, by the name that it has if its subclusters are all alike.
    fn from_parts(host: Option<HostOffset>, copied: bool, subclusters: Subclusters) -> L2Entry {
        match (host, subclusters) {
            (Some(host), Subclusters { data: u32::MAX, .. }) => L2Entry::Data { host, copied },
            (_, Subclusters { zeros: u32::MAX, .. }) => L2Entry::Zero { host, copied },
            (None, Subclusters::UNALLOCATED) => L2Entry::Unallocated,
            _ => L2Entry::Mixed { host, copied, subclusters },
        }
    }

    /// Cluster, copied flag, and subclusters; a compressed cluster is data that has no cluster to itself.
    fn parts(self) -> (Option<HostOffset>, bool, Subclusters) {
        let all = |state| Subclusters::UNALLOCATED.with(0..PARTS, state);
        match self {
            L2Entry::Unallocated => (None, false, Subclusters::UNALLOCATED),
            L2Entry::Zero { host, copied } => (host, copied, all(Subcluster::Zero)),
            L2Entry::Data { host, copied } => (Some(host), copied, all(Subcluster::Data)),
            L2Entry::Compressed(_) => (None, false, all(Subcluster::Data)),
            L2Entry::Mixed { host, copied, subclusters } => (host, copied, subclusters),
        }
    }

    /// A cluster that is kept for later and shows what is below it. Needs extended entries.
    pub(super) fn unused(host: HostOffset) -> L2Entry {
        L2Entry::from_parts(Some(host), true, Subclusters::UNALLOCATED)
    }

    /// The cluster that it has to itself or shares with other tables, if there is one.
    pub(super) fn host(self) -> Option<HostOffset> {
        self.parts().0
    }

    /// The cluster that may be written in place, if there is one.
    pub(super) fn own_host(self) -> Option<HostOffset> {
        let (host, copied, _) = self.parts();
        host.filter(|_| copied)
    }

    /// The state at byte `skip` of the cluster, and the byte at which another state begins.
    pub(super) fn run(self, skip: u64, geometry: Geometry) -> (Subcluster, u64) {
        let bits = part_bits(geometry);
        let (state, end) = self.parts().2.run((skip >> bits) as u32);
        (state, u64::from(end) << bits)
    }

    /// The first byte at or behind `skip` whose subcluster holds data; the end of the cluster if there is none.
    pub(super) fn next_data(self, skip: u64, geometry: Geometry) -> u64 {
        let bits = part_bits(geometry);
        let behind = self.parts().2.data >> (skip >> bits) << (skip >> bits);
        u64::from(behind.trailing_zeros()) << bits
    }

    /// The bytes of the cluster from the first to the last subcluster that holds data.
    pub(super) fn data_span(self, geometry: Geometry) -> Option<Range<u64>> {
        let (bits, data) = (part_bits(geometry), self.parts().2.data);
        let span = data.trailing_zeros()..32 - data.leading_zeros();
        (data != 0).then(|| u64::from(span.start) << bits..u64::from(span.end) << bits)
    }

    /// The entry once whole subclusters of it were written to `host`, where everything else that it shows as data
    /// is too.
    pub(super) fn with_data(self, host: HostOffset, bytes: Range<u64>, geometry: Geometry) -> L2Entry {
        let subclusters = self.parts().2.with(parts_of(bytes, geometry), Subcluster::Data);
        L2Entry::from_parts(Some(host), true, subclusters)
    }

    /// The entry with whole subclusters read as zeros; none for a compressed cluster, unless it is all of it.
    pub(super) fn with_zeros(self, bytes: Range<u64>, geometry: Geometry) -> Option<L2Entry> {
        let range = parts_of(bytes, geometry);
        if matches!(self, L2Entry::Compressed(_)) && range != (0..PARTS) {
            return None;
        }
        let (host, copied, subclusters) = self.parts();
        Some(L2Entry::from_parts(host, copied, subclusters.with(range, Subcluster::Zero)))
    }
}

/// log2 of the bytes of 1/32 of a cluster. Clusters without subclusters have parts too, all alike.
fn part_bits(geometry: Geometry) -> u32 {
    geometry.cluster_bits - PARTS.trailing_zeros()
}

/// The parts that bytes of a cluster are, which begin and end with subclusters.
fn parts_of(bytes: Range<u64>, geometry: Geometry) -> Range<u32> {
    let bits = part_bits(geometry);
    (bytes.start >> bits) as u32..(bytes.end >> bits) as u32
}

/// Marks the entries of an L2 table that was copied as shared: what they point to has two users now.
pub(super) fn mark_shared(table: &mut [u8], geometry: Geometry) {
    for entry in table.chunks_exact_mut(geometry.l2_entry() as usize) {
        let words = L2Words::read(entry);
        L2Words { descriptor: without_copied(words.descriptor), ..words }.write(entry);
    }
}

/// The host clusters that an L2 entry refers to.
pub(super) fn references(words: L2Words, geometry: Geometry) -> Result<Range<u64>, Malformed> {
    let (raw, bits) = (words.descriptor, geometry.cluster_bits);
    if raw & COMPRESSED == 0 {
        let offset = raw & OFFSET;
        return match (offset, geometry.is_aligned(offset)) {
            (0, _) => Ok(0..0),
            (_, true) => Ok(offset >> bits..(offset >> bits) + 1),
            (_, false) => Err("L2 entry has an unaligned cluster offset"),
        };
    }
    match raw_l2(words, geometry) {
        RawL2::Compressed { offset, len, .. } if offset < HOST_END => {
            Ok(offset >> bits..((offset + len - 1) >> bits) + 1)
        }
        _ => Err("L2 entry points to compressed data at an impossible offset"),
    }
}

/// Whether an L2 entry has a copied flag to speak of: it has a host cluster, and that not shared by nature as
/// those of compressed data are.
pub(super) fn takes_copied(raw: u64) -> bool {
    raw & COMPRESSED == 0 && raw & OFFSET != 0
}

/// The entry of a table that was copied: what it points to has two users now.
pub(super) fn without_copied(raw: u64) -> u64 {
    if raw & COMPRESSED != 0 { raw } else { raw & !COPIED }
}

/// The entry with the copied flag as it should be.
pub(super) fn with_copied(raw: u64, copied: bool) -> u64 {
    raw & !COPIED | copied_bit(copied)
}

/// Whether bit 63 is set.
pub(super) fn has_copied(raw: u64) -> bool {
    raw & COPIED != 0
}

/// An L1 entry as `check` sees it, valid or not.
pub(super) struct RawL1 {
    pub(super) offset: u64,
    pub(super) reserved: bool,
}

/// Takes an L1 entry (or one of a bitmap table) apart without judging it.
pub(super) fn raw_l1(raw: u64) -> RawL1 {
    RawL1 { offset: raw & OFFSET, reserved: raw & L1_RESERVED != 0 }
}

/// The entries of an L2 table.
pub(super) fn l2_words(table: &[u8], geometry: Geometry) -> impl Iterator<Item = L2Words> + Clone {
    table.chunks_exact(geometry.l2_entry() as usize).map(L2Words::read)
}

/// What `check` says of an entry's bitmap of subclusters, if it makes no sense.
/// `external`: data is in a file of its own, where 0 is a place that the copied flag tells from none.
pub(super) fn bitmap_damage(
    words: L2Words,
    index: usize,
    geometry: Geometry,
    external: bool,
) -> Option<String> {
    let subclusters = words.subclusters();
    if words.bitmap == 0 {
        return None;
    }
    match raw_l2(words, geometry) {
        RawL2::Compressed { .. } => Some(format!(
            "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry={:#x}",
            words.descriptor
        )),
        RawL2::Standard { offset: 0, .. }
            if subclusters.data != 0 && !(external && has_copied(words.descriptor)) =>
        {
            Some("ERROR: Unallocated cluster has non-zero subcluster allocation map".into())
        }
        RawL2::Standard { offset, .. } if subclusters.data & subclusters.zeros != 0 => Some(format!(
            "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
        )),
        RawL2::Standard { .. } => None,
    }
}

/// An L2 entry as `check` sees it, valid or not. `zero`: it has no data, whatever cluster it keeps.
pub(super) enum RawL2 {
    Compressed { offset: u64, len: u64, copied: bool },
    Standard { offset: u64, reserved: bool, zero: bool },
}

/// Takes an L2 entry apart without judging it.
#[inline]
pub(super) fn raw_l2(words: L2Words, geometry: Geometry) -> RawL2 {
    let raw = words.descriptor;
    if raw & COMPRESSED != 0 {
        let shift = sector_shift(geometry);
        let offset = raw & ((1 << shift) - 1);
        let sectors = (raw & (COMPRESSED - 1)) >> shift;
        let len = (sectors + 1) * SECTOR - offset % SECTOR;
        return RawL2::Compressed { offset, len, copied: raw & COPIED != 0 };
    }
    let zero = if geometry.extended_l2 { words.subclusters().data == 0 } else { raw & ZERO != 0 };
    RawL2::Standard { offset: raw & OFFSET, reserved: raw & L2_RESERVED != 0, zero }
}

fn copied_bit(copied: bool) -> u64 {
    if copied { COPIED } else { 0 }
}

fn sector_shift(geometry: Geometry) -> u32 {
    62 - (geometry.cluster_bits - 8)
}

fn decode_compressed(offset: u64, len: u64, copied: bool, bitmap: u64) -> Result<L2Entry, Malformed> {
    if copied {
        return Err("L2 entry is compressed and has the copied flag set");
    }
    if offset == 0 || offset >= HOST_END {
        return Err("L2 entry points to compressed data at an impossible offset");
    }
    if bitmap != 0 {
        return Err(BAD_SUBCLUSTERS);
    }
    Ok(L2Entry::Compressed(Compressed { offset: HostOffset(offset), len }))
}

fn decode_subclusters(host: Option<HostOffset>, copied: bool, words: L2Words) -> Result<L2Entry, Malformed> {
    let subclusters = words.subclusters();
    if subclusters.data & subclusters.zeros != 0 || host.is_none() && subclusters.data != 0 {
        return Err(BAD_SUBCLUSTERS);
    }
    Ok(L2Entry::from_parts(host, copied, subclusters))
}

/// An entry of the refcount table: the refcount block, if there is one.
pub(super) fn decode_refcount_table(raw: u64, geometry: Geometry) -> Result<Option<HostOffset>, Malformed> {
    if raw == 0 {
        return Ok(None);
    }
    if without_reserved(raw) != raw {
        return Err("reserved bits set");
    }
    if !geometry.is_aligned(raw) {
        return Err("unaligned");
    }
    // Not bound to 56 bits as other offsets are, but no file is longer.
    if raw > i64::MAX as u64 - geometry.cluster_size() {
        return Err("out of range");
    }
    Ok(Some(HostOffset(raw)))
}

/// An entry of the refcount table without its reserved bits.
pub(super) fn without_reserved(raw: u64) -> u64 {
    raw & !0x1ff
}

/// The refcount at `index` of a refcount block whose entries are 2^`order` bits wide.
pub(super) fn refcount(block: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..3 => {
            let (byte, shift, mask) = sub_byte(order, index);
            u64::from(block[byte] >> shift & mask)
        }
        _ => {
            let width = 1 << (order - 3);
            let bytes = &block[index * width..(index + 1) * width];
            bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
        }
    }
}

/// Sets the refcount at `index`; `value` must fit. Returns the bytes of the block that changed.
pub(super) fn set_refcount(block: &mut [u8], order: u32, index: usize, value: u64) -> Range<usize> {
    match order {
        0..3 => {
            let (byte, shift, mask) = sub_byte(order, index);
            block[byte] = block[byte] & !(mask << shift) | (value as u8 & mask) << shift;
            byte..byte + 1
        }
        _ => {
            let width = 1 << (order - 3);
            let range = index * width..(index + 1) * width;
            block[range.clone()].copy_from_slice(&value.to_be_bytes()[8 - width..]);
            range
        }
    }
}

/// Byte, shift and mask of an entry narrower than a byte: the lowest bits come first.
fn sub_byte(order: u32, index: usize) -> (usize, usize, u8) {
    let (width, per_byte) = (1usize << order, 8usize >> order);
    (index / per_byte, index % per_byte * width, ((1u16 << width) - 1) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Geometry = Geometry { cluster_bits: 16, refcount_order: 4, extended_l2: false };
    const E: Geometry = Geometry { extended_l2: true, ..G };

    fn standard(descriptor: u64) -> L2Words {
        L2Words { descriptor, bitmap: 0 }
    }

    #[test]
    fn entries_survive_encoding() {
        let host = HostOffset(0x12_0000);
        for entry in [
            L2Entry::Unallocated,
            L2Entry::Zero { host: None, copied: false },
            L2Entry::Zero { host: Some(host), copied: true },
            L2Entry::Data { host, copied: true },
            L2Entry::Data { host, copied: false },
            L2Entry::Compressed(Compressed { offset: HostOffset(0x12_0345), len: 512 * 7 - 0x145 }),
        ] {
            for geometry in [G, E] {
                let mut bytes = vec![0xff; geometry.l2_entry() as usize];
                entry.encode(geometry).write(&mut bytes);
                assert_eq!(L2Entry::decode(L2Words::read(&bytes), geometry, true), Ok(entry));
            }
        }
        let entry = L1Entry::Table { offset: host, copied: true };
        assert_eq!(L1Entry::decode(entry.encode(), G), Ok(entry));
    }

    #[test]
    fn entries_that_break_a_rule_are_refused() {
        for raw in [COPIED, 0x200, 0x1_0002, 1 << 57 | 0x1_0000, COMPRESSED, COPIED | COMPRESSED | 0x1_0000] {
            assert!(L2Entry::decode(standard(raw), G, true).is_err(), "{raw:#x}");
        }
        assert!(L2Entry::decode(standard(ZERO), G, false).is_err());
        for raw in [0x200, 0x1_0001, 1 << 56 | 0x1_0000, 1 << 62] {
            assert!(L1Entry::decode(raw, G).is_err(), "{raw:#x}");
        }
        for raw in [0x200, 1, 1 << 63] {
            assert!(decode_refcount_table(raw, G).is_err(), "{raw:#x}");
        }
    }

    #[test]
    fn bitmaps_of_subclusters_that_make_no_sense_are_refused() {
        let data = COPIED | 0x1_0000;
        for (descriptor, bitmap) in
            [(data, 0x1_0000_0001), (data, u64::MAX), (0, 1), (COMPRESSED | 0x1_0000, 1), (data | 2, 0)]
        {
            let words = L2Words { descriptor, bitmap };
            assert!(L2Entry::decode(words, E, true).is_err(), "{words:x?}");
        }
    }

    #[test]
    fn a_subcluster_has_one_state_and_runs_end_where_another_begins() {
        let host = HostOffset(0x12_0000);
        let entry = L2Entry::Unallocated.with_data(host, 0x1000..0x2000, E);
        assert_eq!(entry.encode(E), L2Words { descriptor: COPIED | host.0, bitmap: 0b11 << 2 });
        let entry = entry.with_zeros(0x1800..0x1_0000, E).unwrap();
        assert_eq!(entry.encode(E).bitmap, 0xffff_fff8 << 32 | 0b100);
        assert_eq!(entry.run(0x7ff, E), (Subcluster::Unallocated, 0x1000));
        assert_eq!(entry.run(0x1000, E), (Subcluster::Data, 0x1800));
        assert_eq!(entry.run(0x1801, E), (Subcluster::Zero, 0x1_0000));
        assert_eq!((entry.next_data(0, E), entry.next_data(0x1800, E)), (0x1000, 0x1_0000));
        assert_eq!(entry.data_span(E), Some(0x1000..0x1800));
        assert_eq!(L2Entry::unused(host).data_span(E), None);
        let whole = entry.with_data(host, 0..0x1_0000, E);
        assert_eq!(whole, L2Entry::Data { host, copied: true });
        let bitmap = entry.encode(E).bitmap;
        assert_eq!(
            L2Entry::decode(L2Words { descriptor: host.0, bitmap }, E, true).unwrap().own_host(),
            None
        );
    }

    #[test]
    fn refcounts_of_every_width_stand_where_the_specification_says() {
        for order in 0..=6 {
            let max = u64::MAX >> (64 - (1u32 << order));
            let mut block = vec![0; 64];
            for index in [0, 1, 2, 5, 7] {
                set_refcount(&mut block, order, index, max);
                assert_eq!(refcount(&block, order, index), max);
                set_refcount(&mut block, order, index, 1);
                assert_eq!(refcount(&block, order, index), 1);
            }
            let neighbour = refcount(&block, order, 3);
            assert_eq!(neighbour, 0, "width {}", 1 << order);
        }
        let mut block = [0; 16];
        set_refcount(&mut block, 0, 9, 1);
        assert_eq!(block[1], 0b10);
        set_refcount(&mut block, 4, 1, 0x0102);
        assert_eq!(block[2..4], [1, 2]);
    }
}
