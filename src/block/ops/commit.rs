//! Committing: what an overlay, and all layers between it and a base, have goes into the base.
//!
//! ```text
//!   top ─┐
//!   mid ─┴─ status above the base ─▶ data: read through the top ─▶ base      zeros ─▶ base
//!  base ◀──────────────────────────────────┴──────────────────────────────────┘
//! ```
//! 1. The base becomes as long as the top, if it is shorter.
//! 2. The content goes into it. Nobody who reads through the top sees a difference at any moment: what is written to
//!    the base is what stands above it.
//! 3. The base is flushed. Only then the top may be emptied, by one switch ([`Overlay::make_empty`]).
//!
//! Whoever dies in between leaves the top as it was.
//!
//! [`Overlay::make_empty`]: crate::block::graph::overlay::Overlay::make_empty

use super::pieces::{PIECE, Pace, Pieces, STATUS_REACH, in_flight};
use super::{cluster_size, unsupported};
use crate::block::Result;
use crate::block::aio::Engine;
use crate::block::graph::status::status_above;
use crate::block::graph::{ChildRole, Node};
use crate::block::options::Preallocation;
use std::rc::Rc;

/// How to commit.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommitOptions {
    /// Bytes of data a second; 0 for as many as may be.
    pub rate: u64,
    /// The top is emptied when all of it is in the base.
    pub make_empty: bool,
}

/// The layer below `top` that was opened to be written ([`OpenOptions::base`]).
///
/// [`OpenOptions::base`]: crate::block::options::OpenOptions::base
pub fn base_of(top: &Rc<Node>) -> Option<Rc<Node>> {
    let mut layer = top.child(ChildRole::Backing);
    while let Some(node) = &layer
        && node.driver().read_only()
    {
        layer = node.child(ChildRole::Backing);
    }
    layer
}

/// Copies all that the layers above `base` have into it, durably. `progress` hears how many of how many bytes of the
/// disk were looked at.
///
/// # Errors
/// The first failure. The base holds a part of what is above it then, and the layers above are as they were.
pub async fn commit(
    engine: &Rc<Engine>,
    top: &Rc<Node>,
    base: &Rc<Node>,
    options: &CommitOptions,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    let copied = copy_down(engine, top, base, options.rate, progress).await;
    copied.map_err(|error| error.terse().context("Block job failed"))?;
    if !options.make_empty {
        return Ok(());
    }
    let overlay = top.driver().overlay().ok_or_else(unsupported)?;
    let emptied = overlay.make_empty().await;
    emptied.map_err(|error| error.context(format!("Could not empty '{}'", top.filename())))
}

async fn copy_down(
    engine: &Rc<Engine>,
    top: &Rc<Node>,
    base: &Rc<Node>,
    rate: u64,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    if base.size() < top.size() {
        base.truncate(top.size(), Preallocation::Off).await?;
    }
    let pace = Pace::new(engine, rate);
    let piece = PIECE.max(cluster_size(base));
    let layers = Layers { top, base, at: 0, piece, known: None, progress };
    in_flight(layers, async |piece: Piece, scratch| {
        if piece.zero {
            return base.write_zeroes(piece.at, piece.len, true).await;
        }
        pace.wait(piece.len).await;
        let iov = scratch.iov(piece.len as usize);
        top.read(piece.at, &iov).await?;
        base.write(piece.at, &iov).await
    })
    .await?;
    base.flush().await
}

/// A range that is above the base.
struct Piece {
    at: u64,
    len: u64,
    zero: bool,
}

/// Cuts what is above the base into pieces.
struct Layers<'a> {
    top: &'a Rc<Node>,
    base: &'a Rc<Node>,
    at: u64,
    /// Longest piece of data, in bytes; they end at multiples of it.
    piece: u64,
    /// Up to where what the current position has goes, and whether that is zeros.
    known: Option<(u64, bool)>,
    progress: &'a dyn Fn(u64, u64),
}

impl Pieces for Layers<'_> {
    type Piece = Piece;

    async fn next(&mut self) -> Result<Option<Piece>> {
        let Some((end, zero)) = self.look().await? else { return Ok(None) };
        let at = self.at;
        let len = if zero { end - at } else { (end - at).min(self.piece - at % self.piece) };
        self.at += len;
        (self.progress)(at, self.top.size());
        Ok(Some(Piece { at, len, zero }))
    }
}

impl Layers<'_> {
    /// Moves on to what is above the base, and says up to where it goes and whether it is zeros.
    async fn look(&mut self) -> Result<Option<(u64, bool)>> {
        let size = self.top.size();
        while self.known.is_none_or(|(end, _)| end <= self.at) {
            if self.at == size {
                return Ok(None);
            }
            let reach = (size - self.at).min(STATUS_REACH);
            let found = status_above(self.top, Some(self.base), self.at, reach).await?;
            match found.status.allocated {
                true => self.known = Some((self.at + found.len, found.status.zero)),
                false => self.at += found.len,
            }
        }
        Ok(self.known)
    }
}
