//! Allocation status: of one node with the layer that it maps to, and of a whole backing chain.

use super::driver::{BlockStatus, ChildRole};
use super::node::Node;
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

/// What the first bytes of a range of a chain are.
#[derive(Clone)]
pub struct ChainStatus {
    /// How many bytes, from the start of the range, this speaks of (never 0).
    pub len: u64,
    /// How many backing files down the content is decided; the depth of the chain where nowhere.
    pub depth: usize,
    /// The layer that decides.
    pub node: Rc<Node>,
    /// What it says. `allocated` is false where no layer has anything.
    pub status: BlockStatus,
}

impl Node {
    /// What the first bytes of `[offset, offset + len)` are in this layer, and in the file it maps them to.
    ///
    /// # Errors
    /// [`Kind::OutOfRange`] at or past the end.
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let len = len.min(self.size().saturating_sub(offset));
        if len == 0 {
            return Err(Error::new(Kind::OutOfRange, "block status past the end").path(self.filename()));
        }
        let mut status = self.driver.block_status(offset, len).await?;
        status.len = status.len.clamp(1, len);
        let Some((below, at)) = status.mapped.clone().filter(|_| status.recurse) else { return Ok(status) };
        if at >= below.size() {
            status.zero = true;
            return Ok(status);
        }
        let under = Box::pin(below.block_status(at, status.len)).await?;
        status.len = status.len.min(under.len);
        status.zero |= under.zero;
        status.data |= under.data;
        Ok(status)
    }
}

/// What the first bytes of `[offset, offset + len)` are, as seen through the backing chain of `top`.
pub async fn chain_status(top: &Rc<Node>, offset: u64, len: u64) -> Result<ChainStatus> {
    status_above(top, None, offset, len).await
}

/// As [`chain_status`], of the layers above `base` alone: what it says of a range that is not allocated there is what
/// the lowest of them says.
pub async fn status_above(
    top: &Rc<Node>,
    base: Option<&Rc<Node>>,
    offset: u64,
    len: u64,
) -> Result<ChainStatus> {
    let (mut node, mut depth) = (top.clone(), 0);
    let mut len = len;
    loop {
        let mut status = node.block_status(offset, len).await?;
        len = status.len;
        let backing = node.child(ChildRole::Backing).filter(|_| !status.allocated);
        match backing {
            Some(below) if base.is_some_and(|base| Rc::ptr_eq(base, &below)) => {
                return Ok(ChainStatus { len, depth, node, status });
            }
            Some(below) if offset < below.size() => (node, depth) = (below, depth + 1),
            Some(below) => {
                // Past the end of a shorter backing file: zeros that this chain decides there.
                (status.allocated, status.zero, status.data) = (true, true, false);
                return Ok(ChainStatus { len, depth: depth + 1, node: below, status });
            }
            None => {
                status.zero |= !status.allocated;
                return Ok(ChainStatus { len, depth, node, status });
            }
        }
    }
}
