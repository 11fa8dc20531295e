//! `window`: a part of a disk as a disk of its own, to read.

use crate::block::graph::driver::Place;
use crate::block::graph::status::chain_status;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::rc::Rc;

/// The bytes of `[start, start + len)`, as the whole chain below shows them.
pub struct Window {
    node: Rc<Node>,
    start: u64,
    len: u64,
}

impl Window {
    /// The `len` bytes of `node` from `start` on; what lies past its end is left out.
    pub fn new(node: Rc<Node>, start: u64, len: u64) -> Window {
        let size = node.size();
        let start = start.min(size);
        Window { node, start, len: len.min(size - start) }
    }
}

#[async_trait(?Send)]
impl Driver for Window {
    fn format_name(&self) -> &'static str {
        "window"
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        vec![(ChildRole::File, self.node.clone())]
    }

    fn limits(&self) -> Limits {
        // The node below aligns and splits what must be.
        Limits::ANY
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.node.read(self.start + offset, into).await
    }

    async fn write(&self, _offset: u64, _from: &Iov) -> Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let chain = chain_status(&self.node, self.start + offset, len).await?;
        // The chain was asked down to its end: nothing is left to ask.
        Ok(BlockStatus { len: chain.len, allocated: true, recurse: false, ..chain.status })
    }

    fn lasting_place(&self, offset: u64, len: u64) -> Option<Place> {
        self.node.driver().lasting_place(self.start + offset, len)
    }
}

fn read_only() -> Error {
    Error::new(Kind::ReadOnly, "a part of a disk is only to be read")
}
