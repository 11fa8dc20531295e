//! Block status of an export, by context: what the chain of the drive says, in the protocol's flags.

use super::export::Context;
use crate::block::drive::Local;
use crate::block::graph::bitmaps::bitmap_holder;
use crate::block::{Error, Kind, Result};
use crate::util::nbd::context;

/// Most places that are looked up for one answer, which may then be short: a disk may be scattered. More than the
/// smallest clusters of a [`super::budget::PIECE`].
const MAX_LOOKUPS: usize = 16 << 10;
/// Lookups until others have their turn.
const TURN: usize = 64;

/// A part of a disk with its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) len: u64,
    pub(super) flags: u64,
}

/// The extents of `[offset, offset + len)` in a context, `limit` of them at most.
pub(super) async fn extents(
    local: &Local,
    of: &Context,
    offset: u64,
    len: u64,
    limit: usize,
) -> Result<Vec<Extent>> {
    match of {
        Context::Allocation => allocation(local, offset, len, limit).await,
        Context::Depth => walk(local, offset, len, limit, Flags::Depth).await,
        Context::Bitmap(name) => bitmap(local, name, offset, len, limit).await,
    }
}

/// Holes and zeros ("The `base:allocation` metadata context").
pub(super) async fn allocation(local: &Local, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
    walk(local, offset, len, limit, Flags::Allocation).await
}

#[derive(Clone, Copy)]
enum Flags {
    Allocation,
    Depth,
}

async fn walk(local: &Local, offset: u64, len: u64, limit: usize, which: Flags) -> Result<Vec<Extent>> {
    let (mut out, mut at, end) = (Vec::new(), offset, offset + len);
    for lookups in 1.. {
        if at >= end || lookups > MAX_LOOKUPS {
            break;
        }
        if lookups % TURN == 0 {
            local.engine().yield_now().await;
        }
        let found = local.status(at, end - at).await?;
        let status = &found.status;
        let flags = match which {
            Flags::Allocation => {
                let hole = if status.data { 0 } else { context::HOLE };
                hole | if status.zero { context::ZERO } else { 0 }
            }
            Flags::Depth if status.allocated => found.depth as u64 + 1,
            Flags::Depth => 0,
        };
        if !push(&mut out, Extent { len: found.len, flags }, limit) {
            break;
        }
        at += found.len;
    }
    Ok(out)
}

async fn bitmap(local: &Local, name: &str, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
    let gone = || Error::new(Kind::NotFound, format!("Bitmap '{name}' is not found"));
    let holder = bitmap_holder(&local.root(), name).ok_or_else(gone)?;
    let bitmaps = holder.driver().bitmaps().ok_or_else(gone)?;
    let (mut out, mut at, end) = (Vec::new(), offset, offset + len);
    // One range more than is needed shows where the last clean part ends.
    for dirty in bitmaps.dirty(name, offset, limit.min(1024) + 1).await? {
        let (start, stop) = (dirty.start.clamp(at, end), dirty.end.clamp(at, end));
        for (until, flags) in [(start, 0), (stop, context::DIRTY)] {
            if until > at && !push(&mut out, Extent { len: until - at, flags }, limit) {
                return Ok(out);
            }
            at = until.max(at);
        }
    }
    let complete = out.len() < limit;
    if at < end && complete {
        push(&mut out, Extent { len: end - at, flags: 0 }, limit);
    }
    Ok(out)
}

/// Adds an extent, to the last one where they are alike; false when there is no room for it.
fn push(out: &mut Vec<Extent>, extent: Extent, limit: usize) -> bool {
    let room = out.len() < limit;
    match out.last_mut() {
        Some(last) if last.flags == extent.flags => last.len += extent.len,
        _ if room => out.push(extent),
        _ => return false,
    }
    true
}
