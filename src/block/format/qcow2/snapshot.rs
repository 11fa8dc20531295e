//! The snapshot table (specification: "Snapshots").
//!
//! ```text
//!   0 L1 offset  8 L1 entries  12 ID length  14 name length  16 date s  20 date ns  24 VM clock ns
//!   32 VM state size  36 extra data length
//!   40 extra data: VM state size (8), disk size (8), icount (8) | ID | name | padding to 8
//! ```

use super::extensions::{be32, be64};
use super::geometry::{ENTRY, HOST_END, HostOffset};
use super::header::{Header, MAX_L1_BYTES};
use crate::block::graph::Node;
use crate::block::graph::driver::SnapshotInfo;
use crate::block::{Error, Kind, Result};
use std::ops::Range;
use std::rc::Rc;

/// Bytes of an entry before its extra data.
const FIXED: usize = 40;
/// Limits that QEMU sets too.
const MAX_EXTRA: usize = 1024;
const MAX_TABLE: u64 = 64 << 20;

/// An internal snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) l1_offset: HostOffset,
    pub(super) l1_entries: u32,
    pub(super) info: SnapshotInfo,
}

/// Reads the snapshot table that `header` describes, and says where it stands.
pub(super) async fn read(file: &Rc<Node>, header: &Header) -> Result<(Vec<Snapshot>, Range<u64>)> {
    let start = header.snapshots_offset.0;
    let mut at = start;
    let mut snapshots = Vec::new();
    for _ in 0..header.snapshot_count {
        let (snapshot, len) = read_entry(file, header, at).await?;
        at += len;
        if at - start > MAX_TABLE || at > file.size().next_multiple_of(header.geometry.cluster_size()) {
            return Err(invalid("Snapshot table is too large"));
        }
        snapshots.push(snapshot);
    }
    Ok((snapshots, start..at))
}

/// One entry, and its length with padding.
async fn read_entry(file: &Rc<Node>, header: &Header, at: u64) -> Result<(Snapshot, u64)> {
    let fixed = file.read_bytes(at, FIXED).await?;
    let [id_len, name_len] = [12, 14].map(|at| usize::from(fixed[at]) << 8 | usize::from(fixed[at + 1]));
    let extra_len = be32(&fixed[36..]) as usize;
    if extra_len > MAX_EXTRA {
        return Err(invalid("Too much extra metadata in snapshot table entry"));
    }
    let len = extra_len + id_len + name_len;
    let variable = file.read_bytes(at + FIXED as u64, len).await?;
    let (extra, strings) = variable.split_at(extra_len);
    let (id, name) = strings.split_at(id_len);
    let snapshot = Snapshot {
        l1_offset: HostOffset(be64(&fixed)),
        l1_entries: be32(&fixed[8..]),
        info: SnapshotInfo {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            vm_state_size: extra_field(extra, 0).unwrap_or_else(|| u64::from(be32(&fixed[32..]))),
            date: (be32(&fixed[16..]), be32(&fixed[20..])),
            vm_clock_nsec: be64(&fixed[24..]),
            // All ones: recorded without instruction count.
            icount: extra_field(extra, 16).filter(|&icount| icount != u64::MAX),
        },
    };
    check_l1(&snapshot, header)?;
    Ok((snapshot, (FIXED + len).next_multiple_of(8) as u64))
}

/// A 64-bit field of the extra data, if it goes that far.
fn extra_field(extra: &[u8], at: usize) -> Option<u64> {
    extra.get(at..at + 8).map(be64)
}

fn check_l1(snapshot: &Snapshot, header: &Header) -> Result<()> {
    let bytes = u64::from(snapshot.l1_entries) * ENTRY;
    let offset = snapshot.l1_offset.0;
    if bytes > MAX_L1_BYTES {
        return Err(invalid("Snapshot L1 table too large"));
    }
    if !header.geometry.is_aligned(offset) || offset > HOST_END - bytes {
        return Err(invalid("Snapshot L1 table offset invalid"));
    }
    Ok(())
}

fn invalid(message: &str) -> Error {
    Error::new(Kind::InvalidFormat, message)
}
