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

use super::geometry::{Geometry, HOST_END, HostOffset};
use std::ops::Range;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = !(COPIED | OFFSET);
const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET | ZERO);
/// Compressed data is counted in sectors of this many bytes.
pub(super) const SECTOR: u64 = 512;

/// Why an entry cannot be used.
pub(super) type Malformed = &'static str;

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
}

impl L2Entry {
    /// Decodes and checks. `zeros` says whether the version has zero clusters (3 and up).
    pub(super) fn decode(raw: u64, geometry: Geometry, zeros: bool) -> Result<L2Entry, Malformed> {
        if raw == 0 {
            return Ok(L2Entry::Unallocated);
        }
        if let RawL2::Compressed { offset, len, copied } = raw_l2(raw, geometry) {
            return decode_compressed(offset, len, copied);
        }
        let (offset, copied) = (raw & OFFSET, raw & COPIED != 0);
        if raw & L2_RESERVED != 0 {
            return Err("has reserved bits set");
        }
        if !geometry.is_aligned(offset) {
            return Err("has an unaligned cluster offset");
        }
        if offset == 0 && copied {
            return Err("points to a cluster at offset 0");
        }
        match (raw & ZERO != 0, offset) {
            (true, _) if !zeros => Err("is a zero cluster, which version 2 does not have"),
            (true, 0) => Ok(L2Entry::Zero { host: None, copied: false }),
            (true, _) => Ok(L2Entry::Zero { host: Some(HostOffset(offset)), copied }),
            (false, _) => Ok(L2Entry::Data { host: HostOffset(offset), copied }),
        }
    }

    /// As [`L2Entry::decode`], of an image with an external data file: offset 0 is a place for data, which the
    /// copied flag tells from no place, and nothing is compressed.
    pub(super) fn decode_external(raw: u64, geometry: Geometry) -> Result<L2Entry, Malformed> {
        if raw & COMPRESSED != 0 {
            return Err("is compressed, but the image has an external data file");
        }
        match raw & !ZERO {
            COPIED if raw & ZERO != 0 => Ok(L2Entry::Zero { host: Some(HostOffset(0)), copied: true }),
            COPIED => Ok(L2Entry::Data { host: HostOffset(0), copied: true }),
            _ => L2Entry::decode(raw, geometry, true),
        }
    }

    /// As it stands on disk.
    pub(super) fn encode(self, geometry: Geometry) -> u64 {
        match self {
            L2Entry::Unallocated => 0,
            L2Entry::Zero { host: None, .. } => ZERO,
            L2Entry::Zero { host: Some(host), copied } => host.0 | copied_bit(copied) | ZERO,
            L2Entry::Data { host, copied } => host.0 | copied_bit(copied),
            L2Entry::Compressed(at) => {
                let sectors = ((at.offset.0 % SECTOR + at.len) / SECTOR).saturating_sub(1);
                COMPRESSED | sectors << sector_shift(geometry) | at.offset.0
            }
        }
    }
}

/// The host clusters that an L2 entry refers to.
pub(super) fn references(raw: u64, geometry: Geometry) -> Result<Range<u64>, Malformed> {
    let bits = geometry.cluster_bits;
    if raw & COMPRESSED == 0 {
        let offset = raw & OFFSET;
        return match (offset, geometry.is_aligned(offset)) {
            (0, _) => Ok(0..0),
            (_, true) => Ok(offset >> bits..(offset >> bits) + 1),
            (_, false) => Err("has an unaligned cluster offset"),
        };
    }
    match raw_l2(raw, geometry) {
        RawL2::Compressed { offset, len, .. } if offset < HOST_END => {
            Ok(offset >> bits..((offset + len - 1) >> bits) + 1)
        }
        _ => Err("points to compressed data at an impossible offset"),
    }
}

/// Whether an L2 entry has a copied flag to speak of: it has a host cluster, and that not shared by nature as
/// those of compressed data are.
pub(super) fn takes_copied(raw: u64) -> bool {
    raw & COMPRESSED == 0 && raw & OFFSET != 0
}

/// Marks an entry of a table that was copied as shared: what it points to has two users now.
pub(super) fn without_copied(raw: u64) -> u64 {
    if raw & COMPRESSED != 0 { raw } else { raw & !COPIED }
}

/// The entry with the copied flag as it should be.
pub(super) fn with_copied(raw: u64, copied: bool) -> u64 {
    raw & !COPIED | copied_bit(copied)
}

/// The L2 entry of a cluster that reads as zeros and keeps no host cluster.
pub(super) fn plain_zero() -> u64 {
    ZERO
}

/// Whether bit 63 is set.
pub(super) fn has_copied(raw: u64) -> bool {
    raw & COPIED != 0
}

/// The entry of the cluster that follows in guest and file, if it continues `raw`: what makes one extent.
pub(super) fn successor(raw: u64, geometry: Geometry) -> Option<u64> {
    match raw {
        0 | ZERO => Some(raw),
        _ if raw & COMPRESSED != 0 => None,
        _ => Some(raw.wrapping_add(geometry.cluster_size())),
    }
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

/// An L2 entry as `check` sees it, valid or not.
pub(super) enum RawL2 {
    Compressed { offset: u64, len: u64, copied: bool },
    Standard { offset: u64, reserved: bool, zero: bool },
}

/// Takes an L2 entry apart without judging it.
pub(super) fn raw_l2(raw: u64, geometry: Geometry) -> RawL2 {
    if raw & COMPRESSED != 0 {
        let shift = sector_shift(geometry);
        let offset = raw & ((1 << shift) - 1);
        let sectors = (raw & (COMPRESSED - 1)) >> shift;
        let len = (sectors + 1) * SECTOR - offset % SECTOR;
        return RawL2::Compressed { offset, len, copied: raw & COPIED != 0 };
    }
    RawL2::Standard { offset: raw & OFFSET, reserved: raw & L2_RESERVED != 0, zero: raw & ZERO != 0 }
}

fn copied_bit(copied: bool) -> u64 {
    if copied { COPIED } else { 0 }
}

fn sector_shift(geometry: Geometry) -> u32 {
    62 - (geometry.cluster_bits - 8)
}

fn decode_compressed(offset: u64, len: u64, copied: bool) -> Result<L2Entry, Malformed> {
    if copied {
        return Err("is compressed and has the copied flag set");
    }
    if offset == 0 || offset >= HOST_END {
        return Err("points to compressed data at an impossible offset");
    }
    Ok(L2Entry::Compressed(Compressed { offset: HostOffset(offset), len }))
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

    const G: Geometry = Geometry { cluster_bits: 16, refcount_order: 4 };

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
            assert_eq!(L2Entry::decode(entry.encode(G), G, true), Ok(entry));
        }
        let entry = L1Entry::Table { offset: host, copied: true };
        assert_eq!(L1Entry::decode(entry.encode(), G), Ok(entry));
    }

    #[test]
    fn entries_that_break_a_rule_are_refused() {
        for raw in [COPIED, 0x200, 0x1_0002, 1 << 57 | 0x1_0000, COMPRESSED, COPIED | COMPRESSED | 0x1_0000] {
            assert!(L2Entry::decode(raw, G, true).is_err(), "{raw:#x}");
        }
        assert!(L2Entry::decode(ZERO, G, false).is_err());
        for raw in [0x200, 0x1_0001, 1 << 56 | 0x1_0000, 1 << 62] {
            assert!(L1Entry::decode(raw, G).is_err(), "{raw:#x}");
        }
        for raw in [0x200, 1, 1 << 63] {
            assert!(decode_refcount_table(raw, G).is_err(), "{raw:#x}");
        }
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
