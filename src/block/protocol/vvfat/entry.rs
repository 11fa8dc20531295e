//! Directory entries: slots of 32 bytes, the long name's before the 8.3 one.
//!
//! ```text
//!   8.3 entry                                   slot of a long name
//!   0    name, 11 bytes                         0    number from 1; 0x40 in the last one, which comes first
//!   0x0b attributes    0x0c case of letters     1    5 UTF-16 units
//!   0x0d created: tenths, time, date            0x0b 0x0f
//!   0x12 accessed: date                         0x0d checksum of the 8.3 name
//!   0x14 first cluster, high half               0x0e 6 units
//!   0x16 modified: time, date                   0x1c 2 units
//!   0x1a first cluster, low half
//!   0x1c size
//! ```

use super::geometry::ENTRY;
use super::name::{Short, as_short, from_short};
use super::stamp::Stamp;

pub(super) const READ_ONLY: u8 = 0x01;
pub(super) const LABEL: u8 = 0x08;
pub(super) const DIRECTORY: u8 = 0x10;
pub(super) const ARCHIVE: u8 = 0x20;
/// The attributes that a slot of a long name has.
const LONG: u8 = 0x0f;
/// First byte of a slot that is free; of one that is free as all behind it.
const FREE: u8 = 0xe5;
const END: u8 = 0x00;
/// UTF-16 units of a slot, and the offsets where they stand.
const UNITS: usize = 13;
const UNIT_PLACES: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// Most slots of a long name: 255 units.
const MAX_SLOTS: usize = 20;
pub(super) const DOT: Short = *b".          ";
pub(super) const DOT_DOT: Short = *b"..         ";

/// What an 8.3 entry says besides the name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) attributes: u8,
    /// As they stand: tenths of a second, time, date.
    pub(super) created: [u8; 5],
    pub(super) modified: Stamp,
    /// 0 where there is none.
    pub(super) cluster: u32,
    pub(super) size: u32,
}

impl Fields {
    pub(super) fn is_directory(&self) -> bool {
        self.attributes & DIRECTORY != 0
    }

    /// Of something made and modified at `stamp`.
    pub(super) fn new(attributes: u8, stamp: Stamp, size: u32) -> Fields {
        let ([t0, t1], [d0, d1]) = (stamp.time.to_le_bytes(), stamp.date.to_le_bytes());
        Fields { attributes, created: [0, t0, t1, d0, d1], modified: stamp, cluster: 0, size }
    }
}

/// Bytes of the entry for `name`.
pub(super) fn len(name: &str, short: &Short) -> usize {
    (long_slots(name, short) + 1) * ENTRY
}

fn long_slots(name: &str, short: &Short) -> usize {
    if as_short(name) == Some(*short) { 0 } else { name.encode_utf16().count().div_ceil(UNITS) }
}

/// Appends the slots of an entry.
pub(super) fn write(out: &mut Vec<u8>, name: &str, short: &Short, fields: &Fields) {
    let slots = long_slots(name, short);
    let units: Vec<u16> = if slots > 0 { name.encode_utf16().collect() } else { Vec::new() };
    for number in (1..=slots).rev() {
        let last = if number == slots { 0x40 } else { 0 };
        out.extend(long_slot(&units, number, last, checksum(short)));
    }
    out.extend(short_slot(short, fields));
}

fn long_slot(units: &[u16], number: usize, last: u8, checksum: u8) -> [u8; ENTRY] {
    let mut slot = [0; ENTRY];
    (slot[0], slot[0x0b], slot[0x0d]) = (number as u8 | last, LONG, checksum);
    for (at, place) in UNIT_PLACES.into_iter().enumerate() {
        let index = (number - 1) * UNITS + at;
        let unit = match units.get(index) {
            Some(unit) => *unit,
            None if index == units.len() => 0,
            None => 0xffff,
        };
        slot[place..place + 2].copy_from_slice(&unit.to_le_bytes());
    }
    slot
}

/// The slot of an 8.3 name alone: for `.`, `..` and the label too.
pub(super) fn short_slot(short: &Short, fields: &Fields) -> [u8; ENTRY] {
    let mut slot = [0; ENTRY];
    slot[..11].copy_from_slice(short);
    slot[0x0b] = fields.attributes;
    slot[0x0d..0x12].copy_from_slice(&fields.created);
    slot[0x12..0x14].copy_from_slice(&fields.modified.date.to_le_bytes());
    slot[0x14..0x16].copy_from_slice(&fields.cluster.to_le_bytes()[2..]);
    slot[0x16..0x18].copy_from_slice(&fields.modified.time.to_le_bytes());
    slot[0x18..0x1a].copy_from_slice(&fields.modified.date.to_le_bytes());
    slot[0x1a..0x1c].copy_from_slice(&fields.cluster.to_le_bytes()[..2]);
    slot[0x1c..].copy_from_slice(&fields.size.to_le_bytes());
    slot
}

fn checksum(short: &Short) -> u8 {
    short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// An entry that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) short: Short,
    /// The name that the 8.3 entry shows; `None` if that is no name.
    pub(super) short_name: Option<String>,
    /// The long name, where a sound one stands before it.
    pub(super) long_name: Option<String>,
    pub(super) fields: Fields,
}

impl Entry {
    /// Its name on the disk.
    pub(super) fn name(&self) -> Option<&str> {
        self.long_name.as_deref().or(self.short_name.as_deref())
    }
}

/// The entries of a directory. Labels are passed over, and long names that belong to no entry.
pub(super) fn read(bytes: &[u8]) -> Vec<Entry> {
    let (mut entries, mut long) = (Vec::new(), LongName::default());
    for slot in bytes.chunks_exact(ENTRY).take_while(|slot| slot[0] != END) {
        match slot[0x0b] & 0x3f {
            _ if slot[0] == FREE => long = LongName::default(),
            LONG => long.add(slot),
            attributes if attributes & LABEL != 0 => long = LongName::default(),
            _ => entries.push(read_short(slot, std::mem::take(&mut long))),
        }
    }
    entries
}

/// The first two entries of a directory, whatever they are called.
pub(super) fn read_two(bytes: &[u8]) -> Vec<Entry> {
    bytes.chunks_exact(ENTRY).take(2).map(|slot| read_short(slot, LongName::default())).collect()
}

fn read_short(slot: &[u8], long: LongName) -> Entry {
    let half = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
    let mut short = [0; 11];
    short.copy_from_slice(&slot[..11]);
    let mut created = [0; 5];
    created.copy_from_slice(&slot[0x0d..0x12]);
    Entry {
        short,
        short_name: from_short(&short, slot[0x0c]),
        long_name: long.finish(checksum(&short)),
        fields: Fields {
            attributes: slot[0x0b],
            created,
            modified: Stamp { time: half(0x16), date: half(0x18) },
            cluster: u32::from(half(0x14)) << 16 | u32::from(half(0x1a)),
            size: u32::from(half(0x1e)) << 16 | u32::from(half(0x1c)),
        },
    }
}

/// A long name while its slots are read, from the last to the first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    /// The number that comes next; 0 when it is complete.
    next: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, slot: &[u8]) {
        let number = slot[0] & 0x3f;
        let starts = slot[0] & 0x40 != 0 && (1..=MAX_SLOTS).contains(&usize::from(number));
        if starts {
            *self = LongName { units: Vec::new(), next: number, checksum: slot[0x0d] };
        }
        if number == 0 || number != self.next || slot[0x0d] != self.checksum {
            *self = LongName::default();
            return;
        }
        let units = UNIT_PLACES.map(|place| u16::from_le_bytes([slot[place], slot[place + 1]]));
        self.units.splice(0..0, units);
        self.next -= 1;
    }

    /// The name, if it is complete and belongs to the entry of this checksum.
    fn finish(self, checksum: u8) -> Option<String> {
        if self.units.is_empty() || self.next != 0 || self.checksum != checksum {
            return None;
        }
        let end = self.units.iter().position(|unit| *unit == 0).unwrap_or(self.units.len());
        String::from_utf16(&self.units[..end]).ok().filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_with_their_names() {
        let fields =
            Fields { cluster: 0x12_3456, ..Fields::new(ARCHIVE, Stamp { time: 77, date: 99 }, 0xdead_beef) };
        let long = "n".repeat(255);
        for name in ["README.TXT", "readme.txt", "exactly13char", "fourteen chars", "ü😀", &long] {
            let short = as_short(&name.to_uppercase()).unwrap_or(*b"ALIAS~1    ");
            let mut bytes = Vec::new();
            write(&mut bytes, name, &short, &fields);
            assert_eq!(bytes.len(), len(name, &short));
            let found = read(&bytes);
            assert_eq!(found.len(), 1);
            let entry = &found[0];
            assert_eq!(entry.long_name.as_deref().or(entry.short_name.as_deref()), Some(name));
            assert_eq!((entry.fields, entry.short), (fields, short));
        }
    }

    #[test]
    fn a_long_name_of_another_entry_is_no_name() {
        let mut bytes = Vec::new();
        write(&mut bytes, "a long name of two slots", b"ALONGN~1   ", &Fields::default());
        let mut other = bytes.clone();
        other[64] = b'B';
        assert_eq!(read(&other)[0].long_name, None);
        let mut cut = bytes.clone();
        cut[0] = FREE;
        assert_eq!(read(&cut)[0].long_name, None);
        bytes[32] = 7;
        assert_eq!(read(&bytes)[0].long_name, None);
    }
}
