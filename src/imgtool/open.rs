//! Opening images for a command: the options that all commands have in common.

use super::output::Failure;
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::open::open;
use crate::block::options::{CacheMode, OpenOptions};
use std::rc::Rc;

/// How a command that only reads opens images; other processes must not write them meanwhile.
pub(super) fn for_reading() -> OpenOptions {
    OpenOptions { exclusive: true, ..OpenOptions::default() }
}

/// Opens an image.
pub(super) async fn image(
    engine: &Rc<Engine>,
    filename: &str,
    options: &OpenOptions,
) -> Result<Rc<Node>, Failure> {
    open(engine, filename, options).await.map_err(|error| Failure::open(filename, &error))
}

/// Reads the value of `-T`.
pub(super) fn source_cache(word: &str) -> Result<CacheMode, Failure> {
    CacheMode::parse(word).map_err(|_| Failure::message(format!("Invalid source cache option: {word}")))
}

/// Reads the value of `-t`.
pub(super) fn target_cache(word: &str) -> Result<CacheMode, Failure> {
    CacheMode::parse(word).map_err(|_| Failure::message(format!("Invalid cache option: {word}")))
}
