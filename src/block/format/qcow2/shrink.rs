//! Making the disk smaller, and giving up what is mapped behind its end.
//!
//! ```text
//!   L1 table   | of what stays … | goes with the switch … |
//!   its last L2 table   | stays | behind the end: goes afterwards |
//! ```
//! The new size, and an L1 table without what lies behind it, come with one switch of the header (see
//! [`super::trees`]). Then the last L2 table gives up what it maps behind the end; and when that is durable, the
//! file is cut behind the last cluster in use, and an external data file at the disk's end. Dying after the switch
//! leaves clusters mapped behind the end, where nobody sees them: growing gives them up before they could be seen.

use super::driver::Qcow2;
use super::geometry::GuestOffset;
use super::trees::Plan;
use crate::block::graph::Node;
use crate::block::options::Preallocation;
use crate::block::{Kind, Result};

impl Qcow2 {
    /// Makes the disk `size` bytes long, less than it is. No request is in flight.
    pub(super) async fn shrink(&self, size: u64) -> Result<()> {
        let switched = self.switch_size_down(size).await;
        if self.size.get() == size {
            self.resize_bitmaps(size);
        }
        switched?;
        // The size has changed. Space that cannot be given back now stays mapped where nobody sees it.
        match self.give_up_behind(size).await {
            Err(error) if error.kind() == Kind::Corrupt => Err(error),
            _ => Ok(()),
        }
    }

    async fn switch_size_down(&self, size: u64) -> Result<()> {
        let mut live = self.active.l1.borrow().clone();
        let removed = live.split_off(self.geometry.l1_entries_for(size) as usize);
        let kept = self.snapshots.borrow().clone();
        let (added, dropped, new) = (Vec::new(), Vec::new(), None);
        self.switch_trees(Plan { removed, added, live, size, kept, dropped, new, punch: true }).await
    }

    async fn give_up_behind(&self, size: u64) -> Result<()> {
        self.drop_behind(size).await?;
        self.cut_file().await?;
        match self.has_data_file() {
            true => cut(self.data_node()?, size).await,
            false => Ok(()),
        }
    }

    /// Cuts the file behind the last cluster in use.
    pub(super) async fn cut_file(&self) -> Result<()> {
        // Refcounts too: none may count a cluster that was cut off.
        self.settle().await?;
        let end = self.refcounts.end_in_use().await? << self.geometry.cluster_bits;
        cut(&self.file, end).await
    }

    /// Gives up what the last L2 table maps behind the first `size` bytes.
    pub(super) async fn drop_behind(&self, size: u64) -> Result<()> {
        let first = GuestOffset(size.next_multiple_of(self.geometry.cluster_size()));
        self.drop_clusters(first, self.geometry.vm_state_start(size)).await
    }
}

/// Makes a file end at `end`, if it does not already end before.
async fn cut(file: &Node, end: u64) -> Result<()> {
    if end < file.size() { file.truncate(end, Preallocation::Off).await } else { Ok(()) }
}
