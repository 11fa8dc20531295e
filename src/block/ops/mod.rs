//! Operations on images: what stands behind the commands of imgtool and the monitor and is no matter of words.

pub mod bench;
pub mod checksum;
pub mod compare;
pub mod copy;
pub mod create;
pub mod encrypt_options;
pub mod info;
pub mod map;
pub mod measure;
mod place;

use crate::block::Result;
use crate::block::graph::{BlockStatus, ChildRole, Node};

/// What the first bytes of `[offset, offset + len)` are, to one layer: as [`Node::block_status`], and zeros
/// where the layer has nothing and no backing file has either.
async fn layer_status(node: &Node, offset: u64, len: u64) -> Result<BlockStatus> {
    let mut status = node.block_status(offset, len).await?;
    if !status.allocated {
        let below = node.child(ChildRole::Backing).map_or(0, |backing| backing.size());
        if offset >= below {
            status.zero = true;
        }
    }
    Ok(status)
}
