//! Keeping what clusters show, before the host file that has it changes: in the overlay, as if the guest had written it.
//!
//! A cluster that is in use keeps its bytes, whoever it belongs to. One that is free may become zeros.

use super::fat::Fat;
use super::geometry::SECTOR;
use super::matching::segments;
use super::runs::Shows;
use super::sync::Sync;
use super::tree::{Chain, Id};
use super::volume::Volume;
use std::io;

/// Clusters that are kept at once.
const KEEP: u32 = 64;

impl Sync<'_> {
    /// Copies into the overlay what clusters show that stay in use while the file that they show changes.
    pub(super) fn keep_what_is_used(&mut self) -> io::Result<()> {
        let (state, mut fat) = (self.state, Fat::default());
        for (number, found) in
            state.found.iter().enumerate().filter(|(_, found)| !found.fields.is_directory())
        {
            let before = self.plan.ids[number].map(|id| self.chain_of(id)).unwrap_or_default();
            if before == found.chain {
                continue;
            }
            for moved in segments(&found.chain, &before).iter().filter(|segment| !segment.stayed()) {
                self.keep(moved.now, moved.len)?;
            }
            self.keep_rest(&mut fat, &before, &found.chain)?;
        }
        for id in self.plan.gone.clone() {
            if !self.plan.held.contains(&id) {
                self.keep_rest(&mut fat, &self.chain_of(id), &Chain::new())?;
            }
        }
        Ok(())
    }

    pub(super) fn chain_of(&self, id: Id) -> Chain {
        self.volume.tree.get(id).map(|node| node.chain.clone()).unwrap_or_default()
    }

    /// Keeps what a file had in `before` and has no longer, where it is in use and nobody's.
    fn keep_rest(&mut self, fat: &mut Fat, before: &Chain, now: &Chain) -> io::Result<()> {
        for left in segments(before, now).iter().filter(|segment| !segment.stayed()) {
            for cluster in left.now..left.now + left.len {
                if !self.state.claimed.has(cluster) && fat.entry(self.volume, cluster)? != 0 {
                    self.keep(cluster, 1)?;
                }
            }
        }
        Ok(())
    }

    /// Copies what clusters show of files into the overlay.
    pub(super) fn keep(&mut self, start: u32, len: u32) -> io::Result<()> {
        let (mut at, end) = (start, start + len);
        while at < end {
            let (shows, count) = self.volume.runs.at(at);
            let count = match shows {
                Some(Shows::File { .. }) => count.min(end - at).min(KEEP),
                _ => count.min(end - at),
            };
            if matches!(shows, Some(Shows::File { .. })) {
                self.volume.keep_clusters(at, count)?;
            }
            at += count;
        }
        Ok(())
    }
}

impl Volume {
    /// Copies clusters into the overlay, all that the guest did not write.
    fn keep_clusters(&mut self, start: u32, len: u32) -> io::Result<()> {
        let first = self.layout.sector_of(start);
        let end = first + u64::from(len) * self.layout.cluster_sectors;
        let mut at = first;
        while at < end {
            let Some((written, count)) = self.overlay.as_ref().map(|overlay| overlay.present().run(at..end))
            else {
                return Ok(());
            };
            if !written {
                // What a host file does not give any more was told to the user; it stops nothing else.
                let zeros = |_| vec![0; (count * SECTOR) as usize];
                let bytes = self.read(at..at + count).unwrap_or_else(zeros);
                if let Some(overlay) = &mut self.overlay {
                    overlay.keep(at, &bytes)?;
                }
            }
            at += count;
        }
        Ok(())
    }
}
