//! Opening a graph: the image, the files below it, its backing chain.

use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::options::OpenOptions;
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

/// Opens `filename` and all below it.
pub async fn open(_engine: &Rc<Engine>, filename: &str, _options: &OpenOptions) -> Result<Rc<Node>> {
    Err(Error::new(Kind::Unsupported, "opening").path(filename))
}
