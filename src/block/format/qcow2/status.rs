//! Allocation status of a view.

use super::driver::Qcow2;
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::{Place, View};
use crate::block::Result;
use crate::block::graph::{BlockStatus, Node};
use std::rc::Rc;

impl Qcow2 {
    /// What the first bytes of a range are, in this layer.
    pub(super) async fn status(&self, view: &View, at: GuestOffset, len: u64) -> Result<BlockStatus> {
        let first = self.map(view, at, len).await?;
        let mut covered = first.len;
        // Extents end with their slice: go on while the next one continues this one.
        while covered < len {
            let next = self.map(view, at.add(covered), len - covered).await?;
            if !continues(first.place, next.place, covered) {
                break;
            }
            covered += next.len;
        }
        Ok(self.describe(first.place, covered))
    }

    fn describe(&self, place: Place, len: u64) -> BlockStatus {
        let status = BlockStatus {
            len,
            allocated: true,
            data: false,
            zero: false,
            compressed: false,
            mapped: None,
            recurse: false,
        };
        let at = |host: HostOffset| -> Option<(Rc<Node>, u64)> { Some((self.file.clone(), host.0)) };
        match place {
            Place::Unallocated => BlockStatus { allocated: false, ..status },
            Place::Zero { host, .. } => BlockStatus { zero: true, mapped: host.and_then(at), ..status },
            Place::Data { host, .. } => BlockStatus { data: true, mapped: at(host), ..status },
            Place::Compressed(_) => BlockStatus { data: true, compressed: true, ..status },
        }
    }
}

/// Whether `next` continues an extent that began `covered` bytes before it.
fn continues(first: Place, next: Place, covered: u64) -> bool {
    match (first, next) {
        (Place::Unallocated, Place::Unallocated) | (Place::Compressed(_), Place::Compressed(_)) => true,
        (Place::Zero { host: a, .. }, Place::Zero { host: b, .. }) => a.map(|host| host.add(covered)) == b,
        (Place::Data { host: a, .. }, Place::Data { host: b, .. }) => a.add(covered) == b,
        _ => false,
    }
}
