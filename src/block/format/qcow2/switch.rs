//! Changing the header: the one door to the first cluster of an open image.
//!
//! Operations that must be atomic end in one change of the header, and the header is the old or the new one
//! whenever the process dies: what changes is written by one request that covers just the sectors that differ.
//! Fields of the fixed part stand in one sector. Extensions and the backing file's name may span more: where the old
//! or the new header has nothing behind the first sector, the rest is written while no header refers to it. Else
//! the change is as atomic as the host's write of a few sectors is.
//!
//! Where a write fails and the file does not say how it ended, or nobody waits for its end, the header on disk may be
//! either. The bytes that memory stands for are owed to the file then, and nothing else changes before they are
//! there.

use super::driver::Qcow2;
use super::header::Header;
use crate::block::Result;
use std::ops::Range;

/// A write of this many bytes reaches the disk as a whole or not at all.
pub(super) const SECTOR: usize = 512;

impl Qcow2 {
    /// Changes the header on disk, then in memory. Not durable until the file is flushed. After an error memory
    /// has the old header, and the file has it too or is owed it.
    pub(super) async fn change_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let _turn = self.switching.lock().await;
        self.pay_header().await?;
        let old = self.header.borrow().clone();
        let mut new = old.clone();
        change(&mut new);
        let before = self.file.read_bytes(0, self.geometry.cluster_size() as usize).await?;
        let mut after = before.clone();
        let bytes = new.rewrite(&old, &before[..old.used])?;
        after[..bytes.len()].copy_from_slice(&bytes);
        after[bytes.len()..old.used.max(bytes.len())].fill(0);
        if let Some(range) = changed_sectors(&before, &after) {
            let change = Change { before, after, old: old.used, new: bytes.len() };
            self.write_sectors(&change, range).await?;
        }
        self.header.replace(new);
        Ok(())
    }

    /// Changes the header durably.
    pub(super) async fn change_header_durably(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        self.change_header(change).await?;
        self.file.flush().await
    }

    /// Whether the file may have another header than memory.
    pub(super) fn owes_header(&self) -> bool {
        self.owed_header.borrow().is_some()
    }

    /// Gives the file the header that memory has, if a failed write left it unknown.
    pub(super) async fn settle_header(&self) -> Result<()> {
        let _turn = self.switching.lock().await;
        self.pay_header().await
    }

    async fn pay_header(&self) -> Result<()> {
        let Some((at, bytes)) = self.owed_header.borrow().clone() else { return Ok(()) };
        self.file.write_bytes(at, &bytes).await?;
        self.file.flush().await?;
        self.owed_header.replace(None);
        Ok(())
    }

    async fn write_sectors(&self, change: &Change, range: Range<usize>) -> Result<()> {
        let write = |range: Range<usize>| self.write_header(change, range);
        if range.start > 0 || range.end <= SECTOR || change.old.min(change.new) > SECTOR {
            return write(range).await;
        }
        if change.old <= SECTOR {
            write(SECTOR..range.end).await?;
            self.file.flush().await?;
            return write(0..SECTOR).await;
        }
        write(0..SECTOR).await?;
        // What is left there means nothing to the new header.
        if self.file.flush().await.is_ok() {
            let _ = write(SECTOR..range.end).await;
        }
        Ok(())
    }

    async fn write_header(&self, change: &Change, range: Range<usize>) -> Result<()> {
        let (at, before, after) =
            (range.start as u64, &change.before[range.clone()], &change.after[range.clone()]);
        // Also for whoever gives up waiting half-way.
        self.owed_header.replace(Some((at, before.to_vec())));
        let mut done = self.file.write_bytes(at, after).await;
        if done.is_err() {
            match self.file.read_bytes(at, after.len()).await {
                Ok(now) if now == after => done = Ok(()),
                Ok(now) if now == before => {}
                _ => return done,
            }
        }
        self.owed_header.replace(None);
        done
    }
}

/// The first cluster, of which the old header uses `old` bytes and the new one `new`.
struct Change {
    before: Vec<u8>,
    after: Vec<u8>,
    old: usize,
    new: usize,
}

/// The sectors from the first to the last that differ.
fn changed_sectors(before: &[u8], after: &[u8]) -> Option<Range<usize>> {
    let sectors = || before.chunks(SECTOR).zip(after.chunks(SECTOR));
    let first = sectors().position(|(old, new)| old != new)?;
    let same_behind = sectors().rev().position(|(old, new)| old != new)?;
    let end = before.len().div_ceil(SECTOR) - same_behind;
    Some(first * SECTOR..(end * SECTOR).min(after.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn just_the_sectors_that_differ_are_written() {
        let old = vec![0; 4096];
        assert_eq!(changed_sectors(&old, &old), None);
        let mut new = old.clone();
        new[600] = 1;
        assert_eq!(changed_sectors(&old, &new), Some(512..1024));
        new[1536] = 1;
        assert_eq!(changed_sectors(&old, &new), Some(512..2048));
    }
}
