//! Which layer of a backing chain holds which part of the disk, and where.

use super::layer_status;
use crate::block::Result;
use crate::block::graph::{ChildRole, Node};
use std::rc::Rc;

/// A run of bytes of the disk that are all the same to the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte, on the disk.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
    /// How many backing files down the content is decided.
    pub depth: usize,
    /// A layer has decided it, and not only the end of the chain.
    pub present: bool,
    /// It reads as zeros.
    pub zero: bool,
    /// Reading it fetches bytes.
    pub data: bool,
    /// It is stored compressed.
    pub compressed: bool,
    /// File and offset where the bytes stand as they are.
    pub mapped: Option<(String, u64)>,
}

impl Extent {
    /// Whether `next`, which follows this one, continues it.
    fn continues_in(&self, next: &Extent) -> bool {
        let place = match (&self.mapped, &next.mapped) {
            (Some((file, offset)), Some((next_file, next_offset))) => {
                file == next_file && offset.checked_add(self.len) == Some(*next_offset)
            }
            (None, None) => true,
            _ => false,
        };
        let facts = |of: &Extent| (of.depth, of.present, of.zero, of.data, of.compressed);
        place && facts(self) == facts(next)
    }
}

/// Hands out the extents of `[start, end)` of the chain under `top`, in order, neighbours that are alike as one.
pub struct Walk {
    top: Rc<Node>,
    at: u64,
    end: u64,
    pending: Option<Extent>,
}

impl Walk {
    /// A walk that ends at the disk's end where `end` is beyond it.
    pub fn new(top: &Rc<Node>, start: u64, end: u64) -> Walk {
        Walk { top: top.clone(), at: start, end: end.min(top.size()), pending: None }
    }

    /// The next extent.
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub async fn next(&mut self) -> Result<Option<Extent>> {
        while self.at < self.end {
            let next = extent(&self.top, self.at, self.end - self.at).await?;
            self.at += next.len;
            match &mut self.pending {
                Some(pending) if pending.continues_in(&next) => pending.len += next.len,
                pending => {
                    if let Some(done) = pending.replace(next) {
                        return Ok(Some(done));
                    }
                }
            }
        }
        Ok(self.pending.take())
    }
}

/// What the first bytes of a range of the chain are.
async fn extent(top: &Rc<Node>, start: u64, len: u64) -> Result<Extent> {
    let (mut node, mut depth, mut len) = (top.clone(), 0, len);
    loop {
        let status = layer_status(&node, start, len).await?;
        len = status.len;
        let backing = node.child(ChildRole::Backing).filter(|_| !status.zero && !status.data);
        let Some(below) = backing else {
            // A file without a format holds its own bytes.
            let is_file = node.driver().children().is_empty();
            let mapped = status.mapped.or_else(|| is_file.then(|| (node.clone(), start)));
            let mapped = mapped.map(|(file, offset)| (file.filename().to_owned(), offset));
            let (present, zero, data) = (status.allocated, status.zero, status.data);
            return Ok(Extent {
                start,
                len,
                depth,
                present,
                zero,
                data,
                compressed: status.compressed,
                mapped,
            });
        };
        (node, depth) = (below, depth + 1);
    }
}
