//! What is at the root of a drive without a medium: no bytes, and every request for some fails.

use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::rc::Rc;

/// What a request to an empty drive hears.
pub(super) fn no_medium() -> Error {
    Error::new(Kind::NoMedium, "No medium found").remedy("put one in with: change DRIVE FILE")
}

/// The root of an empty drive.
pub(super) fn no_root() -> Rc<Node> {
    Node::new("", Box::new(Empty))
}

/// A drive without a medium.
struct Empty;

#[async_trait(?Send)]
impl Driver for Empty {
    fn format_name(&self) -> &'static str {
        ""
    }

    fn size(&self) -> u64 {
        0
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }

    fn limits(&self) -> Limits {
        Limits::ANY
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, _: u64, _: &Iov) -> Result<()> {
        Err(no_medium())
    }

    async fn write(&self, _: u64, _: &Iov) -> Result<()> {
        Err(no_medium())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, _: u64, _: u64) -> Result<BlockStatus> {
        Err(no_medium())
    }

    async fn truncate(&self, _: u64, _: Preallocation) -> Result<()> {
        Err(no_medium())
    }
}
