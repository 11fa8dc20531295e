//! Allocation status of a view.

use super::driver::Qcow2;
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::{Place, View};
use crate::block::Result;
use crate::block::graph::{BlockStatus, Node};
use std::rc::Rc;

impl Qcow2 {
    /// What the first bytes of a range are, in this layer.
    pub(super) async fn status(&self, view: &View, at: GuestOffset, len: u64) -> Result<BlockStatus> {
        let first = self.map(view, at, len).await?;
        let mut covered = first.len;
        // Extents end with their slice: go on while the next one continues this one.
        while covered < len {
            let next = self.map(view, at.add(covered), len - covered).await?;
            if !continues(first.place, next.place, covered) {
                break;
            }
            covered += next.len;
        }
        let status = self.describe(first.place, covered);
        if self.encryption.is_some() {
            // The bytes do not stand in the file as they are.
            return Ok(BlockStatus { mapped: None, ..status });
        }
        let recurse = matches!(first.place, Place::Data { .. }) && self.has_unwritten_clusters().await?;
        Ok(BlockStatus { recurse, ..status })
    }

    /// Whether the image has allocated clusters that its file has no space for: then tables were made before
    /// the data (`preallocation=metadata`), and the file knows what reads as zeros. Ten per cent are enough.
    async fn has_unwritten_clusters(&self) -> Result<bool> {
        if let Some(known) = self.unwritten.get() {
            return Ok(known);
        }
        let cluster = self.geometry.cluster_size();
        let real = self.file.driver().allocated_size().unwrap_or(u64::MAX) / cluster;
        let wanted = (real.saturating_mul(10) / 9).max(real.saturating_add(2));
        // Clusters of a file that is smaller cannot be that many: most files are answered here.
        let found = self.file.size() / cluster + 1 >= wanted && self.counts_at_least(wanted).await?;
        self.unwritten.set(Some(found));
        Ok(found)
    }

    /// Whether at least `wanted` clusters of the file have a refcount.
    async fn counts_at_least(&self, wanted: u64) -> Result<bool> {
        let clusters = self.geometry.clusters_for(self.file.size());
        let blocks = clusters.div_ceil(self.geometry.block_entries()).min(self.refcounts.table_len());
        let mut found = 0;
        for block in 0..blocks {
            found += self.refcounts.in_use(block).await?;
            if found >= wanted {
                return Ok(true);
            }
            // An image may claim many blocks that count nothing.
            self.engine.yield_now().await;
        }
        Ok(false)
    }

    fn describe(&self, place: Place, len: u64) -> BlockStatus {
        let status = BlockStatus {
            len,
            allocated: true,
            data: false,
            zero: false,
            compressed: false,
            mapped: None,
            recurse: false,
        };
        let node = self.data_node().ok();
        let at = |host: HostOffset| -> Option<(Rc<Node>, u64)> { Some((node?.clone(), host.0)) };
        match place {
            Place::Unallocated { host } => {
                BlockStatus { allocated: false, mapped: host.and_then(at), ..status }
            }
            Place::Zero { host, .. } => BlockStatus { zero: true, mapped: host.and_then(at), ..status },
            Place::Data { host, .. } => BlockStatus { data: true, mapped: at(host), ..status },
            Place::Compressed(_) => BlockStatus { data: true, compressed: true, ..status },
        }
    }
}

/// Whether `next` continues an extent that began `covered` bytes before it.
fn continues(first: Place, next: Place, covered: u64) -> bool {
    match (first, next) {
        (Place::Compressed(_), Place::Compressed(_)) => true,
        (Place::Unallocated { host: a }, Place::Unallocated { host: b })
        | (Place::Zero { host: a, .. }, Place::Zero { host: b, .. }) => a.map(|host| host.add(covered)) == b,
        (Place::Data { host: a, .. }, Place::Data { host: b, .. }) => a.add(covered) == b,
        _ => false,
    }
}
