//! The way to the guest's bytes: all that is read from and written to clusters of data, as they stand.
//!
//! Whoever comes here has mapped the guest offset to the host offset already; both are handed over, as the form
//! in which bytes are stored may depend on either. Nothing here touches metadata, and no write gets past the
//! overlap check.
//!
//! Clusters of data stand in the image file, or all of them in an *external data file* (specification:
//! "Header", incompatible bit 2). There nothing is counted or moved: each cluster has the place that the guest's
//! offset says, and is taken and given up by its L2 entry alone.
//!
//! ```text
//!   image file   | header | tables …       |        nothing of the guest's
//!   data file    | cluster 0 | cluster 1 | … |      host offset = guest offset
//! ```
//! A *raw* external data file (autoclear bit 1) reads as the guest's disk without the image. It does so at every
//! instant, because then only the file changes: entries stay as they are when clusters are zeroed or discarded.

use super::driver::Qcow2;
use super::geometry::{GuestOffset, HostOffset};
use crate::block::graph::{Event, Node};
use crate::block::{Error, Iov, Kind, Result};
use std::ops::Range;
use std::rc::Rc;

/// The external data file.
pub(super) struct DataFile {
    /// `None` where the image was opened alone, for its metadata.
    pub(super) node: Option<Rc<Node>>,
    /// It must read as the guest's disk.
    pub(super) raw: bool,
}

impl Qcow2 {
    /// The node that data clusters are in.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the image was opened without its data file.
    pub(super) fn data_node(&self) -> Result<&Rc<Node>> {
        match &self.data_file {
            None => Ok(&self.file),
            Some(DataFile { node: Some(node), .. }) => Ok(node),
            Some(_) => Err(Error::new(Kind::Unsupported, "the image was opened without its data file")),
        }
    }

    /// Whether clusters of data stand in a file of their own.
    pub(super) fn has_data_file(&self) -> bool {
        self.data_file.is_some()
    }

    /// Whether the data file must read as the guest's disk.
    pub(super) fn is_raw(&self) -> bool {
        self.data_file.as_ref().is_some_and(|data| data.raw)
    }

    /// Reads guest bytes from `at` on, which stand at `host`.
    pub(super) async fn read_data(&self, host: HostOffset, at: GuestOffset, into: &Iov) -> Result<()> {
        let node = self.data_node()?;
        node.debug_event(Event::ReadAio);
        match &self.encryption {
            None => node.read(host.0, into).await,
            // Boxed, so that the future of the common case stays small.
            Some(encryption) => Box::pin(encryption.read(node, host, at, into)).await,
        }
    }

    /// Writes guest bytes from `at` on to `host`.
    pub(super) async fn write_data(&self, host: HostOffset, at: GuestOffset, from: &Iov) -> Result<()> {
        self.check_data(host, from.len() as u64)?;
        let node = self.data_node()?;
        match &self.encryption {
            None => node.write(host.0, from).await,
            Some(encryption) => Box::pin(encryption.write(node, host, at, from)).await,
        }
    }

    /// Writes zeros to a cluster that nothing refers to, and that is to be the guest's at `at`.
    pub(super) async fn write_zero_cluster(&self, host: HostOffset, at: GuestOffset) -> Result<()> {
        self.write_data(host, at, &self.zeros(self.geometry.cluster_size())).await
    }

    /// Gives the space of a range whose content the guest gave up back to the host; its entries keep the place. On
    /// disk they may still show it: zeros are as good there as what was written before.
    pub(super) async fn empty_place(&self, place: Range<u64>) {
        let Ok(node) = self.data_node() else { return };
        let len = place.end.min(node.size()).saturating_sub(place.start);
        if len > 0 && self.check_data(HostOffset(place.start), len).is_ok() {
            // A hint, as below.
            let _ = node.punch(place.start, len).await;
        }
    }

    /// Gives the space of a range that nobody uses back to the host.
    pub(super) async fn discard_data(&self, host: HostOffset, len: u64) {
        if let (true, Ok(node)) = (len > 0 && self.check_data(host, len).is_ok(), self.data_node()) {
            // A hint: the clusters will be free whether or not the host takes them.
            let _ = node.discard(host.0, len).await;
        }
    }

    /// Gives the space of clusters of the image itself that nobody uses back to the host.
    pub(super) async fn discard_clusters(&self, from: HostOffset, len: u64) {
        if self.overlap.check(from, len, None).is_ok() {
            // As above.
            let _ = self.file.discard(from.0, len).await;
        }
    }

    /// Refuses a write of data that would hit metadata; a data file has none.
    fn check_data(&self, host: HostOffset, len: u64) -> Result<()> {
        if self.has_data_file() { Ok(()) } else { self.overlap.check(host, len, None) }
    }
}
