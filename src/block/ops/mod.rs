//! Operations on images: what stands behind the commands of imgtool and the monitor and is no matter of words.

pub mod amend;
pub mod bench;
pub mod checksum;
pub mod commit;
pub mod compare;
pub mod copy;
pub mod create;
mod draft;
pub mod encrypt_options;
pub mod info;
pub mod map;
pub mod measure;
mod pieces;
mod place;
pub mod rebase;
pub mod streams;

use crate::block::format::raw::SECTOR;
use crate::block::graph::{BlockStatus, ChildRole, Node};
use crate::block::{Error, Iov, Kind, Result};

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

/// What an image is best read and written in, in bytes.
fn cluster_size(image: &Node) -> u64 {
    let block = u64::from(image.driver().limits().request_alignment).max(SECTOR);
    image.driver().clusters().map_or(block, |clusters| clusters.size)
}

/// Writes data: whole clusters compressed, parts of clusters at its ends as they are.
async fn write_clusters(target: &Node, cluster: u64, at: u64, from: &Iov) -> Result<()> {
    let end = at + from.len() as u64;
    let first = at.next_multiple_of(cluster).min(end);
    let last = if end == target.size() { end } else { first.max(end - end % cluster) };
    let part = |start: u64, end: u64| from.slice((start - at) as usize, (end - start) as usize);
    if first > at {
        target.write(at, &part(at, first)).await?;
    }
    if last > first {
        target.write_compressed(first, &part(first, last)).await?;
    }
    if end > last {
        target.write(last, &part(last, end)).await?;
    }
    Ok(())
}

/// Whether all bytes are zero; 64 at a time, which the compiler turns into vector instructions.
fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    rest.iter().all(|&byte| byte == 0)
        && blocks.iter().all(|block| block.iter().fold(0, |all, &byte| all | byte) == 0)
}

fn unsupported() -> Error {
    Error::new(Kind::Unsupported, "Operation not supported").remedy("only qcow2 images have backing files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_from_data_at_every_place() {
        for len in [0, 1, 63, 64, 65, 512] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
