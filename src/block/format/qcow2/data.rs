//! The way to the guest's bytes: all that is read from and written to clusters of data, as they stand.
//!
//! Whoever comes here has mapped the guest offset to the host offset already; both are handed over, as the form
//! in which bytes are stored may depend on either. Nothing here touches metadata, and no write gets past the
//! overlap check.

use super::driver::Qcow2;
use super::geometry::{GuestOffset, HostOffset};
use crate::block::graph::{Event, Node};
use crate::block::{Iov, Result};
use std::rc::Rc;

impl Qcow2 {
    /// The node that data clusters are in.
    pub(super) fn data_node(&self) -> &Rc<Node> {
        &self.file
    }

    /// Reads guest bytes from `at` on, which stand at `host`.
    pub(super) async fn read_data(&self, host: HostOffset, _at: GuestOffset, into: &Iov) -> Result<()> {
        self.file.debug_event(Event::ReadAio);
        self.file.read(host.0, into).await
    }

    /// Writes guest bytes from `at` on to `host`.
    pub(super) async fn write_data(&self, host: HostOffset, _at: GuestOffset, from: &Iov) -> Result<()> {
        self.overlap.check(host, from.len() as u64, None)?;
        self.file.write(host.0, from).await
    }

    /// Writes zeros to a cluster that nothing refers to.
    pub(super) async fn write_zero_cluster(&self, host: HostOffset) -> Result<()> {
        let size = self.geometry.cluster_size();
        self.overlap.check(host, size, None)?;
        self.file.write(host.0, &self.zeros(size)).await
    }

    /// Gives the space of a range that nobody uses back to the host.
    pub(super) async fn discard_data(&self, host: HostOffset, len: u64) {
        if len > 0 && self.overlap.check(host, len, None).is_ok() {
            // A hint: the clusters will be free whether or not the host takes them.
            let _ = self.file.discard(host.0, len).await;
        }
    }
}
