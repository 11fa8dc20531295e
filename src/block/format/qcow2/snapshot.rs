//! The snapshot table (specification: "Snapshots").
//!
//! ```text
//!   0 L1 offset  8 L1 entries  12 ID length  14 name length  16 date s  20 date ns  24 VM clock ns
//!   32 VM state size  36 extra data length
//!   40 extra data: VM state size (8), disk size (8), icount (8) | ID | name | padding to 8
//! ```
//! Entries that exist are kept byte for byte when the table is written anew: extra data that we do not know,
//! IDs and names that are no text.

use super::extensions::{be32, be64};
use super::geometry::{ENTRY, HOST_END, HostOffset};
use super::header::{Header, MAX_L1_BYTES, MAX_SNAPSHOTS};
use crate::block::graph::Node;
use crate::block::graph::driver::SnapshotInfo;
use crate::block::{Error, Kind, Result};
use crate::util::text;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of an entry before its extra data.
const FIXED: usize = 40;
/// Extra data that we write.
const EXTRA: usize = 24;
/// Limits that QEMU sets too.
pub(super) const MAX_EXTRA: usize = 1024;
pub(super) const MAX_TABLE: u64 = 64 << 20;

/// An internal snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) l1_offset: HostOffset,
    pub(super) l1_entries: u32,
    /// Bytes of its disk.
    pub(super) disk_size: u64,
    pub(super) info: SnapshotInfo,
    /// The entry as it stands on disk, without padding.
    bytes: Vec<u8>,
}

impl Snapshot {
    /// A snapshot that is to be added.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a name that is too long.
    pub(super) fn new(
        info: SnapshotInfo,
        l1_offset: HostOffset,
        l1_entries: u32,
        disk_size: u64,
    ) -> Result<Snapshot> {
        let (id, name) = (text::to_bytes(&info.id), text::to_bytes(&info.name));
        let name_len = u16::try_from(name.len())
            .map_err(|_| Error::new(Kind::InvalidArgument, "Snapshot name is too long"))?;
        // Older readers find what they can hold.
        let small_size = u32::try_from(info.vm_state_size).unwrap_or(0);
        let mut bytes = Vec::with_capacity(FIXED + EXTRA + id.len() + name.len());
        bytes.extend(l1_offset.0.to_be_bytes());
        bytes.extend(l1_entries.to_be_bytes());
        bytes.extend((id.len() as u16).to_be_bytes());
        bytes.extend(name_len.to_be_bytes());
        bytes.extend(info.date.0.to_be_bytes());
        bytes.extend(info.date.1.to_be_bytes());
        bytes.extend(info.vm_clock_nsec.to_be_bytes());
        bytes.extend(small_size.to_be_bytes());
        bytes.extend((EXTRA as u32).to_be_bytes());
        bytes.extend(info.vm_state_size.to_be_bytes());
        bytes.extend(disk_size.to_be_bytes());
        // All ones: recorded without instruction count.
        bytes.extend(info.icount.unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend(&*id);
        bytes.extend(&*name);
        drop((id, name));
        Ok(Snapshot { l1_offset, l1_entries, disk_size, info, bytes })
    }

    /// Whether it has the extra data that version 3 demands.
    pub(super) fn is_complete(&self) -> bool {
        be32(&self.bytes[36..]) >= 16
    }

    /// The same with all the extra data that we know.
    pub(super) fn completed(&self) -> Snapshot {
        let (fixed, rest) = self.bytes.split_at(FIXED);
        let (extra, strings) = rest.split_at(be32(&fixed[36..]) as usize);
        let extra = completed_extra(extra, self.info.vm_state_size, self.disk_size);
        let extra_len = (extra.len() as u32).to_be_bytes();
        Snapshot { bytes: [&fixed[..36], &extra_len, &extra, strings].concat(), ..self.clone() }
    }

    /// The range of the file that its L1 table takes.
    pub(super) fn l1_range(&self) -> Range<u64> {
        self.l1_offset.0..self.l1_offset.0 + u64::from(self.l1_entries) * ENTRY
    }
}

/// The ID of the next snapshot: the highest number that an ID begins with, and one more.
pub(super) fn next_id(snapshots: &[Snapshot]) -> String {
    let number = |snapshot: &Snapshot| {
        let digits: String = snapshot.info.id.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap_or(0)
    };
    snapshots.iter().map(number).max().unwrap_or(0).saturating_add(1).to_string()
}

/// The bytes of a table of `snapshots`.
///
/// # Errors
/// [`Kind::Unsupported`] where it would be larger than readers accept.
pub(super) fn encode(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
    let mut table = Vec::new();
    for snapshot in snapshots {
        table.extend(&snapshot.bytes);
        table.resize(table.len().next_multiple_of(8), 0);
    }
    if table.len() as u64 > MAX_TABLE || snapshots.len() > MAX_SNAPSHOTS as usize {
        return Err(Error::new(Kind::Unsupported, "Too many snapshots").remedy("delete some of them"));
    }
    Ok(table)
}

/// Reads the snapshot table that `header` describes, and says where it stands.
pub(super) async fn read(file: &Rc<Node>, header: &Header) -> Result<(Vec<Snapshot>, Range<u64>)> {
    header.check_snapshot_table(header.snapshot_count)?;
    let start = header.snapshots_offset.0;
    let mut at = start;
    let mut snapshots = Vec::new();
    for _ in 0..header.snapshot_count {
        let entry = RawEntry::read(file, at).await?;
        if entry.extra_len as usize > MAX_EXTRA {
            return Err(Error::invalid_format("Too much extra metadata in snapshot table entry"));
        }
        at += entry.len;
        if at - start > MAX_TABLE || at > file.size().next_multiple_of(header.geometry.cluster_size()) {
            return Err(Error::invalid_format("Snapshot table is too large"));
        }
        let snapshot = entry.snapshot(header);
        snapshot.check_l1(header)?;
        snapshots.push(snapshot);
    }
    Ok((snapshots, start..at))
}

/// An entry as it stands in the table.
pub(super) struct RawEntry {
    fixed: Vec<u8>,
    /// The first [`MAX_EXTRA`] bytes of its extra data.
    extra: Vec<u8>,
    strings: Vec<u8>,
    /// Bytes of extra data.
    pub(super) extra_len: u32,
    /// Bytes that it takes in the table, with padding.
    pub(super) len: u64,
}

impl RawEntry {
    /// Reads the entry at `at`.
    pub(super) async fn read(file: &Rc<Node>, at: u64) -> Result<RawEntry> {
        let fixed = file.read_bytes(at, FIXED).await?;
        let [id_len, name_len] = [12, 14].map(|at| usize::from(fixed[at]) << 8 | usize::from(fixed[at + 1]));
        let extra_len = be32(&fixed[36..]);
        let extra_at = at + FIXED as u64;
        let strings_at = extra_at + u64::from(extra_len);
        let len = (strings_at - at + (id_len + name_len) as u64).next_multiple_of(8);
        let extra = file.read_bytes(extra_at, (extra_len as usize).min(MAX_EXTRA)).await?;
        let strings = file.read_bytes(strings_at, id_len + name_len).await?;
        Ok(RawEntry { fixed, extra, strings, extra_len, len })
    }

    /// The snapshot that it describes.
    pub(super) fn snapshot(&self, header: &Header) -> Snapshot {
        let (fixed, id_len) = (&self.fixed, usize::from(self.fixed[12]) << 8 | usize::from(self.fixed[13]));
        let (id, name) = self.strings.split_at(id_len);
        Snapshot {
            l1_offset: HostOffset(be64(fixed)),
            l1_entries: be32(&fixed[8..]),
            // Version 2 may leave it out: its disks keep their size while there are snapshots.
            disk_size: extra_field(&self.extra, 8).unwrap_or(header.size),
            info: SnapshotInfo {
                id: text::from_bytes(id),
                name: text::from_bytes(name),
                vm_state_size: self.vm_state_size(),
                date: (be32(&fixed[16..]), be32(&fixed[20..])),
                vm_clock_nsec: be64(&fixed[24..]),
                // All ones: recorded without instruction count.
                icount: extra_field(&self.extra, 16).filter(|&icount| icount != u64::MAX),
            },
            bytes: self.bytes(),
        }
    }

    /// As it may stand in a table, without padding.
    fn bytes(&self) -> Vec<u8> {
        let extra_len = (self.extra.len() as u32).to_be_bytes();
        [&self.fixed[..36], &extra_len, &self.extra, &self.strings].concat()
    }

    fn vm_state_size(&self) -> u64 {
        extra_field(&self.extra, 0).unwrap_or_else(|| u64::from(be32(&self.fixed[32..])))
    }
}

impl Snapshot {
    /// Refuses an L1 table that cannot be one.
    pub(super) fn check_l1(&self, header: &Header) -> Result<()> {
        let bytes = u64::from(self.l1_entries) * ENTRY;
        if bytes > MAX_L1_BYTES {
            return Err(Error::invalid_format("Snapshot L1 table too large"));
        }
        if !header.geometry.is_aligned(self.l1_offset.0) || self.l1_offset.0 > HOST_END - bytes {
            return Err(Error::invalid_format("Snapshot L1 table offset invalid"));
        }
        Ok(())
    }
}

/// Extra data with all fields that we know; those that are there stay.
fn completed_extra(extra: &[u8], vm_state_size: u64, disk_size: u64) -> Vec<u8> {
    let mut extra = extra.to_vec();
    for (at, value) in [(0, vm_state_size), (8, disk_size), (16, u64::MAX)] {
        if extra.len() < at + 8 {
            extra.truncate(at);
            extra.extend(value.to_be_bytes());
        }
    }
    extra
}

/// A 64-bit field of the extra data, if it goes that far.
fn extra_field(extra: &[u8], at: usize) -> Option<u64> {
    extra.get(at..at + 8).map(be64)
}
