//! Changing the header: the one door to the first cluster of an open image.
//!
//! Operations that must be atomic end in one change of the header, and the header is the old or the new one
//! whenever the process dies: what changes is written by one request that covers just the sectors that differ.
//! Fields of the fixed part stand in one sector. Extensions and the backing file's name may span more: where the old
//! or the new header has nothing behind the first sector, the rest is written while no header refers to it. Else
//! the change is as atomic as the host's write of a few sectors is.

use super::driver::Qcow2;
use super::header::Header;
use crate::block::Result;
use std::ops::Range;

/// A write of this many bytes reaches the disk as a whole or not at all.
const SECTOR: usize = 512;

impl Qcow2 {
    /// Changes the header on disk, then in memory. Not durable until the file is flushed. After an error it is
    /// the file that says which header it has; if it does not answer either, nobody may write any more.
    pub(super) async fn change_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let _turn = self.switching.lock().await;
        let old = self.header.borrow().clone();
        let mut new = old.clone();
        change(&mut new);
        let before = self.file.read_bytes(0, self.geometry.cluster_size() as usize).await?;
        let mut after = before.clone();
        let bytes = new.rewrite(&old, &before[..old.used])?;
        after[..bytes.len()].copy_from_slice(&bytes);
        after[bytes.len()..old.used.max(bytes.len())].fill(0);
        if let Some(range) = changed_sectors(&before, &after) {
            self.write_sectors(&after, range, old.used, bytes.len()).await?;
        }
        self.header.replace(new);
        Ok(())
    }

    /// Writes sectors of the first cluster, of which the old header uses `old` bytes and the new one `new`.
    async fn write_sectors(&self, bytes: &[u8], range: Range<usize>, old: usize, new: usize) -> Result<()> {
        let write = |range: Range<usize>| self.write_header(range.start as u64, &bytes[range]);
        if range.start > 0 || range.end <= SECTOR || old.min(new) > SECTOR {
            return write(range).await;
        }
        if old <= SECTOR {
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

    async fn write_header(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let Err(error) = self.file.write_bytes(at, bytes).await else { return Ok(()) };
        match self.file.read_bytes(at, bytes.len()).await {
            Ok(now) if now == bytes => Ok(()),
            Ok(_) => Err(error),
            Err(_) => {
                self.read_only.set(true);
                Err(error)
            }
        }
    }
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
