//! An internal snapshot as a node: its disk, to read, and its VM state. It shares file, backing file and caches
//! with the image, which keeps the snapshot for as long as a view of it is open.

use super::driver::Qcow2;
use super::geometry::{GuestOffset, HostOffset};
use super::mapping::View;
use crate::block::graph::driver::Place;
use crate::block::graph::snapshots::VmState;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::rc::Rc;

/// Keeps a snapshot from being deleted.
pub(super) struct OpenView {
    image: Rc<Qcow2>,
    l1_offset: HostOffset,
}

impl OpenView {
    /// Keeps the snapshot whose L1 table is at `l1_offset`.
    pub(super) fn new(image: Rc<Qcow2>, l1_offset: HostOffset) -> OpenView {
        image.open_views.borrow_mut().push(l1_offset);
        OpenView { image, l1_offset }
    }
}

impl Drop for OpenView {
    fn drop(&mut self) {
        let mut open = self.image.open_views.borrow_mut();
        if let Some(at) = open.iter().position(|&l1| l1 == self.l1_offset) {
            open.swap_remove(at);
        }
    }
}

/// A snapshot that is being read.
pub(super) struct SnapshotView {
    kept: OpenView,
    view: View,
}

impl SnapshotView {
    /// The snapshot that `view` shows.
    pub(super) fn new(kept: OpenView, view: View) -> SnapshotView {
        SnapshotView { kept, view }
    }
}

#[async_trait(?Send)]
impl Driver for SnapshotView {
    fn format_name(&self) -> &'static str {
        "qcow2"
    }

    fn size(&self) -> u64 {
        self.view.disk_size.get()
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        self.kept.image.children()
    }

    fn limits(&self) -> Limits {
        self.kept.image.limits()
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        let _user = self.kept.image.users.enter();
        self.kept.image.read_view(&self.view, GuestOffset(offset), into).await
    }

    async fn write(&self, _offset: u64, _from: &Iov) -> Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let _user = self.kept.image.users.enter();
        self.kept.image.status(&self.view, GuestOffset(offset), len).await
    }

    fn lasting_place(&self, offset: u64, len: u64) -> Option<Place> {
        // In a writable image, what only the snapshot had could become the live disk's with it.
        let image = Some(&self.kept.image).filter(|image| !image.is_writable())?;
        image.lend_view(&self.view, GuestOffset(offset), len)
    }

    fn vm_state(&self) -> Option<&dyn VmState> {
        Some(self)
    }
}

#[async_trait(?Send)]
impl VmState for SnapshotView {
    fn capacity(&self) -> u64 {
        self.kept.image.vm_state_capacity(&self.view)
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.kept.image.read_vm_state(&self.view, offset, into).await
    }

    async fn reserve(&self, _end: u64) -> Result<()> {
        Err(read_only())
    }

    async fn write(&self, _offset: u64, _from: &Iov) -> Result<()> {
        Err(read_only())
    }

    async fn discard(&self) -> Result<()> {
        Err(read_only())
    }
}

fn read_only() -> Error {
    Error::new(Kind::ReadOnly, "a snapshot cannot be changed")
}
