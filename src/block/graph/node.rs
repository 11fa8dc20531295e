//! A node: a driver instance with its name and what the pipeline must know of it.

use super::driver::{ChildRole, Driver};
use super::event::Event;
use crate::block::Result;
use crate::block::options::Preallocation;
use crate::block::range_lock::RangeLock;
use std::cell::Cell;
use std::rc::Rc;
use tracing::trace;

/// One driver instance in the graph of a disk. Its requests are in [`super::io`].
pub struct Node {
    pub(super) driver: Box<dyn Driver>,
    filename: String,
    /// Orders read-modify-write cycles against the writes that they overlap; unused where any request fits.
    pub(super) writes: RangeLock,
    /// Counts changes, each when it is over: a flush that began earlier need not have seen it.
    pub(super) changes: Cell<u64>,
    /// How many changes had been counted when the last flush began.
    pub(super) flushed: Cell<u64>,
}

/// A change under way; it is counted when the guard is dropped.
pub(super) struct Changing<'a>(&'a Cell<u64>);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Node {
    /// A node over `driver`, known to users by `filename` (as they or the overlay's header wrote it).
    pub fn new(filename: impl Into<String>, driver: Box<dyn Driver>) -> Rc<Node> {
        Rc::new(Node {
            driver,
            filename: filename.into(),
            writes: RangeLock::default(),
            changes: Cell::new(0),
            flushed: Cell::new(0),
        })
    }

    /// The driver, for capabilities and facts; requests go through the node.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The name users know the image by.
    pub fn filename(&self) -> &str {
        &self.filename
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.driver.size()
    }

    /// Tells the driver what the one above is about to do.
    pub fn debug_event(&self, event: Event) {
        trace!(name: "step", file = ?self.filename, event = event.name());
        self.driver.debug_event(event);
    }

    /// The node below in `role`.
    pub fn child(&self, role: ChildRole) -> Option<Rc<Node>> {
        self.driver.children().into_iter().find(|(of, _)| *of == role).map(|(_, node)| node)
    }

    /// Bytes up to `end` are written to the node's host file, or may be from now on, without a request: it takes a
    /// flush to make them durable.
    pub fn written_elsewhere(&self, end: u64) {
        let _change = self.changing();
        self.driver.written_elsewhere(end);
    }

    /// Notes that something is being changed: it takes a flush that begins later to make it durable.
    pub(super) fn changing(&self) -> Changing<'_> {
        Changing(&self.changes)
    }

    /// Changes the size. No request may be in flight.
    ///
    /// # Errors
    /// When the driver cannot, or the host has no room.
    pub async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        trace!(name: "block_truncate", node = ?self, size, ?preallocation);
        let _change = self.changing();
        self.driver.truncate(size, preallocation).await
    }

    /// Writes back what the drivers of this node and of all below it cache. For the end of a graph's life.
    pub async fn close(&self) -> Result<()> {
        trace!(name: "image_close", node = ?self);
        let mut result = self.driver.close().await;
        for (_, child) in self.driver.children() {
            result = result.and(Box::pin(child.close()).await);
        }
        result
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} '{}'", self.driver.format_name(), self.filename)
    }
}
