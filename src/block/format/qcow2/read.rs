//! Reading a view: one request to the node below for each extent.

use super::driver::Qcow2;
use super::geometry::GuestOffset;
use super::mapping::{Extent, Place, View};
use crate::block::graph::Event;
use crate::block::{Iov, Result};

impl Qcow2 {
    /// Reads `into.len()` bytes of a view.
    pub(super) async fn read_view(&self, view: &View, at: GuestOffset, into: &Iov) -> Result<()> {
        let want = into.len() as u64;
        if let Some(Extent { place: Place::Data { host, .. }, len }) = self.lookup(view, at, want)?
            && len == want
        {
            return self.read_data(host, at, into).await;
        }
        // Boxed, so that the future of the common case above stays small.
        Box::pin(self.read_extents(view, at, into)).await
    }

    async fn read_extents(&self, view: &View, at: GuestOffset, into: &Iov) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let from = at.add(done as u64);
            let extent = self.map(view, from, (into.len() - done) as u64).await?;
            done += self.read_extent(view, &extent, from, &into.slice(done, into.len() - done)).await?;
        }
        Ok(())
    }

    /// Reads what `into` starts with: an extent, or several of compressed clusters. Returns how many bytes.
    async fn read_extent(&self, view: &View, extent: &Extent, at: GuestOffset, into: &Iov) -> Result<usize> {
        let part = into.slice(0, extent.len as usize);
        // VM state has no backing file.
        let backing = self.backing().filter(|_| at < self.geometry.vm_state_start(view.disk_size.get()));
        match (extent.place, backing) {
            (Place::Compressed(_), _) => {
                self.file.debug_event(Event::ReadCompressed);
                return self.read_compressed(view, at, into).await;
            }
            (Place::Data { host, .. }, _) => self.read_data(host, at, &part).await?,
            (Place::Unallocated { .. }, Some(backing)) => {
                self.file.debug_event(Event::ReadBackingAio);
                backing.read(at.0, &part).await.map_err(|error| error.path(backing.filename()))?;
            }
            (Place::Zero { .. } | Place::Unallocated { .. }, _) => part.fill(0, part.len(), 0),
        }
        Ok(part.len())
    }
}
