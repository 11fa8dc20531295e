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
            let part = into.slice(done, extent.len as usize);
            self.read_place(extent.place, from, &part).await?;
            done += part.len();
        }
        Ok(())
    }

    /// Reads bytes that are all in one place.
    async fn read_place(&self, place: Place, at: GuestOffset, into: &Iov) -> Result<()> {
        match (place, &self.backing) {
            (Place::Data { host, .. }, _) => self.read_data(host, at, into).await,
            (Place::Unallocated { .. }, Some(backing)) => {
                self.file.debug_event(Event::ReadBackingAio);
                backing.read(at.0, into).await
            }
            (Place::Compressed(data), _) => {
                self.file.debug_event(Event::ReadCompressed);
                self.read_compressed(data, self.geometry.in_cluster(at.0) as usize, into).await
            }
            (Place::Zero { .. } | Place::Unallocated { .. }, _) => {
                into.fill(0, into.len(), 0);
                Ok(())
            }
        }
    }
}
