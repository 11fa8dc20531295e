//! The first FAT as it is now, read as it is needed.
//!
//! What was read is kept until the flush is over: at most the whole FAT, four bytes a cluster. A chain that jumps to and fro
//! in it costs no more than one that does not.

use super::geometry::{FatType, SECTOR};
use super::volume::Volume;
use std::io;

/// Sectors that are read at once; a multiple of three, so that no entry of 12 bits is cut.
const CHUNK: u64 = 24;

/// The parts that were read.
#[derive(Default)]
pub(super) struct Fat {
    chunks: Vec<Option<Box<[u8]>>>,
}

impl Fat {
    /// From a cluster to the end of a run of clusters that follow each other, and what the last one's entry says.
    pub(super) fn run(&mut self, volume: &mut Volume, cluster: u32) -> io::Result<(u32, u32)> {
        // As it was made, where the guest has not written.
        if let Some(end) = volume.fat.chain_end(cluster) {
            let sectors = sector_of(volume, cluster)..sector_of(volume, end - 1) + 2;
            if !volume.overlay.as_ref().is_some_and(|overlay| overlay.present().has_any(sectors)) {
                return Ok((end, volume.layout.fat_type.end_mark()));
            }
        }
        Ok((cluster + 1, self.entry(volume, cluster)?))
    }

    /// The entry of a cluster.
    pub(super) fn entry(&mut self, volume: &mut Volume, cluster: u32) -> io::Result<u32> {
        let offset = u64::from(cluster) * volume.layout.fat_type.bits() / 8;
        let at = (offset % (CHUNK * SECTOR)) as usize;
        let chunk = self.chunk(volume, offset / (CHUNK * SECTOR))?;
        let byte = |index: usize| u32::from(chunk.get(at + index).copied().unwrap_or(0));
        let pair = byte(0) | byte(1) << 8;
        Ok(match volume.layout.fat_type {
            FatType::Fat12 if cluster.is_multiple_of(2) => pair & 0xfff,
            FatType::Fat12 => pair >> 4,
            FatType::Fat16 => pair,
            FatType::Fat32 => (pair | byte(2) << 16 | byte(3) << 24) & 0x0fff_ffff,
        })
    }

    fn chunk(&mut self, volume: &mut Volume, number: u64) -> io::Result<&[u8]> {
        if self.chunks.is_empty() {
            self.chunks.resize_with(volume.layout.fat_sectors.div_ceil(CHUNK) as usize, || None);
        }
        let Some(chunk) = self.chunks.get_mut(number as usize) else { return Ok(&[]) };
        let bytes = match chunk.take() {
            Some(bytes) => bytes,
            None => {
                let start = volume.layout.fat_start() + number * CHUNK;
                let end = (start + CHUNK).min(volume.layout.fat_start() + volume.layout.fat_sectors);
                volume.read(start..end)?.into()
            }
        };
        Ok(chunk.insert(bytes))
    }
}

/// The sector of the first FAT in which the entry of a cluster begins.
fn sector_of(volume: &Volume, cluster: u32) -> u64 {
    volume.layout.fat_start() + u64::from(cluster) * volume.layout.fat_type.bits() / 8 / SECTOR
}
