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

use super::copy::{CopyOptions, Layers, Reports, copy};
use super::unsupported;
use crate::block::Result;
use crate::block::aio::Engine;
use crate::block::graph::{ChildRole, Node};
use crate::block::options::Preallocation;
use std::rc::Rc;

/// Pieces in flight.
const WORKERS: usize = 8;

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

/// Copies all that the layers above `base` have into it, durably. `progress` hears how many of how many bytes of
/// data were begun.
///
/// # Errors
/// The first failure. The base holds a part of what is above it then, and the layers above are as they were.
pub async fn commit(
    engine: &Rc<Engine>,
    top: &Rc<Node>,
    base: &Rc<Node>,
    options: &CommitOptions,
    progress: Option<&dyn Fn(u64, u64)>,
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
    progress: Option<&dyn Fn(u64, u64)>,
) -> Result<()> {
    if base.size() < top.size() {
        base.truncate(top.size(), Preallocation::Off).await?;
    }
    let options = CopyOptions {
        layers: Layers::Above(base.clone()),
        workers: WORKERS,
        out_of_order: true,
        rate,
        ..CopyOptions::default()
    };
    let reports = Reports { progress, warn: &|_, _, _| {} };
    copy(engine, std::slice::from_ref(top), base, &options, &reports).await?;
    base.flush().await
}
