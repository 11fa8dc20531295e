//! VM state: bytes behind the disk, in the same tree.
//!
//! ```text
//!   L1 table   | of the disk … | first entry behind it: VM state from byte 0 on … |
//!   guest      0 ……… disk size    vm_state_start: a multiple of what an L2 table maps
//! ```
//! No guest request reaches there, and no backing file. While it is being written it hangs on the live L1
//! table; the snapshot that is made takes it over. A disk that grows would grow into it: it is given up first.

use super::driver::Qcow2;
use super::geometry::{ENTRY, GuestOffset};
use super::header::MAX_L1_BYTES;
use super::mapping::View;
use super::trees::Plan;
use crate::block::graph::snapshots::VmState;
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;

#[async_trait(?Send)]
impl VmState for Qcow2 {
    fn capacity(&self) -> u64 {
        self.vm_state_capacity(&self.active)
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.read_vm_state(&self.active, offset, into).await
    }

    async fn reserve(&self, end: u64) -> Result<()> {
        self.check_data_file()?;
        self.prepare_change().await?;
        let end = self.vm_state_at(&self.active, 0, end)?.add(end);
        // A cache for the disk alone may be full of its entries before all is written, and each time it is emptied a flush
        // waits for the data. The snapshot that is made brings the old size back.
        self.size_caches(end.0);
        self.grow_l1(self.geometry.l1_entries_for(end.0)).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.check_data_file()?;
        self.prepare_change().await?;
        let at = self.vm_state_at(&self.active, offset, from.len() as u64)?;
        self.grow_l1_for(at.add(from.len() as u64)).await?;
        let _user = self.users.enter();
        self.judged(self.write_disk(at, from).await).await
    }

    async fn discard(&self) -> Result<()> {
        self.prepare_change().await?;
        self.discard_vm_state().await
    }
}

impl Qcow2 {
    /// How many bytes of VM state fit behind the disk of a view.
    pub(super) fn vm_state_capacity(&self, view: &View) -> u64 {
        let disk = self.geometry.l1_entries_for(view.disk_size.get());
        let entries = (MAX_L1_BYTES / ENTRY).saturating_sub(disk);
        let start = self.geometry.vm_state_start(view.disk_size.get());
        entries.saturating_mul(self.geometry.l2_reach()).min((i64::MAX as u64).saturating_sub(start.0))
    }

    /// Where `len` bytes of VM state from `offset` on are.
    fn vm_state_at(&self, view: &View, offset: u64, len: u64) -> Result<GuestOffset> {
        match offset.checked_add(len) {
            Some(end) if end <= self.vm_state_capacity(view) => {
                Ok(self.geometry.vm_state_start(view.disk_size.get()).add(offset))
            }
            _ => Err(Error::new(Kind::NoSpace, "the VM state is too large for the image")
                .remedy("use an image with larger clusters")),
        }
    }

    pub(super) async fn read_vm_state(&self, view: &View, offset: u64, into: &Iov) -> Result<()> {
        let at = self.vm_state_at(view, offset, into.len() as u64)?;
        let _user = self.users.enter();
        self.read_view(view, at, into).await
    }

    /// Makes the L1 table reach to a byte, and further, as the next write will want it.
    async fn grow_l1_for(&self, end: GuestOffset) -> Result<()> {
        let (needed, have) = (self.geometry.l1_entries_for(end.0), self.l1_entries());
        if needed > have {
            self.grow_l1(needed.max(have + have / 2).min(MAX_L1_BYTES / ENTRY)).await?;
        }
        Ok(())
    }

    /// Cuts off what hangs behind the live disk. No request is in flight.
    pub(super) async fn discard_vm_state(&self) -> Result<()> {
        let (disk, behind) = self.live_l1();
        if behind.is_empty() {
            return Ok(());
        }
        let kept = self.snapshots.borrow().clone();
        let size = self.size.get();
        let (added, dropped, new) = (Vec::new(), Vec::new(), None);
        let plan = Plan { removed: behind, added, live: disk, size, kept, dropped, new, punch: true };
        self.switch_trees(plan).await?;
        self.return_space().await;
        Ok(())
    }
}
