//! A data file that stands in the same file as its image, so that one log and one set of faults has both.
//!
//! ```text
//!   0 image, which thinks that it has the whole file | DATA_AT: data file
//! ```
//! Only for images of few tables. What the order of flushes of two files is, `data_file` shows: here one flush serves
//! both.

use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{Iov, Result};
use async_trait::async_trait;
use std::rc::Rc;

/// Where the data file begins: behind all that the image will ever use.
pub(super) const DATA_AT: u64 = 256 << 10;

/// The file from [`DATA_AT`] on.
pub(super) struct Window(Rc<Node>);

impl Window {
    /// The data file in `file`.
    pub(super) fn node(file: &Rc<Node>) -> Rc<Node> {
        Node::new("data", Box::new(Window(file.clone())))
    }
}

#[async_trait(?Send)]
impl Driver for Window {
    fn format_name(&self) -> &'static str {
        "window"
    }

    fn size(&self) -> u64 {
        self.0.size().saturating_sub(DATA_AT)
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        vec![(ChildRole::File, self.0.clone())]
    }

    fn limits(&self) -> Limits {
        self.0.driver().limits()
    }

    fn read_only(&self) -> bool {
        self.0.driver().read_only()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.0.read(DATA_AT + offset, into).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.0.write(DATA_AT + offset, from).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.0.write_zeroes(DATA_AT + offset, len, may_unmap).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(DATA_AT + offset, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        self.0.driver().block_status(DATA_AT + offset, len).await
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.0.truncate(DATA_AT + size, preallocation).await
    }
}
