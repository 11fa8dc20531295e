//! The FAT as it was made: computed where it is read, from the chains, which follow each other without gaps.
//!
//! ```text
//!   entry   0       1          2 …                         first free …
//!           medium  end mark   next cluster, or end mark   0
//! ```

use super::geometry::{FatType, SECTOR};

/// The chains of the disk, and how they are written.
pub(super) struct MadeFat {
    pub(super) fat_type: FatType,
    /// The byte that names the medium.
    pub(super) medium: u8,
    /// First clusters and lengths of all chains, in order, without gaps from cluster 2 on.
    pub(super) chains: Vec<(u32, u32)>,
}

impl MadeFat {
    /// The first cluster behind all chains.
    pub(super) fn first_free(&self) -> u32 {
        self.chains.last().map_or(2, |(start, len)| start + len)
    }

    /// Sectors from the FAT's start in which anything is not 0.
    pub(super) fn used_sectors(&self) -> u64 {
        (u64::from(self.first_free()) * self.fat_type.bits()).div_ceil(8 * SECTOR)
    }

    /// Where the chain ends that `cluster` was made part of.
    pub(super) fn chain_end(&self, cluster: u32) -> Option<u32> {
        let after = self.chains.partition_point(|(start, _)| *start <= cluster);
        let (start, len) = self.chains.get(after.checked_sub(1)?)?;
        (cluster - start < *len).then_some(start + len)
    }

    /// `count` entries from `first` on.
    fn entries(&self, first: u64, count: u64) -> Vec<u32> {
        let (end_mark, free) = (self.fat_type.end_mark(), u64::from(self.first_free()));
        let mut chain = self.chains.partition_point(|(start, len)| u64::from(start + len) <= first);
        let entry = |number: u64| match number {
            0 => end_mark & !0xff | u32::from(self.medium),
            1 => end_mark,
            number if number >= free => 0,
            number => {
                let next = number as u32 + 1;
                let is_last = self.chains.get(chain).is_none_or(|(start, len)| start + len == next);
                chain += usize::from(is_last);
                if is_last { end_mark } else { next }
            }
        };
        (first..first + count).map(entry).collect()
    }

    /// `len` bytes from `offset` on. Entries of 12 bits stand two in three bytes.
    pub(super) fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let count = len as u64;
        let mut bytes: Vec<u8> = match self.fat_type {
            FatType::Fat12 => {
                let pairs = offset / 3..(offset + count).div_ceil(3);
                let entries = self.entries(pairs.start * 2, (pairs.end - pairs.start) * 2);
                let packed = entries.chunks_exact(2).flat_map(|pair| {
                    let both = (pair[0] | pair[1] << 12).to_le_bytes();
                    [both[0], both[1], both[2]]
                });
                packed.skip((offset % 3) as usize).collect()
            }
            FatType::Fat16 => {
                let entries = self.entries(offset / 2, count / 2);
                entries.iter().flat_map(|entry| (*entry as u16).to_le_bytes()).collect()
            }
            FatType::Fat32 => {
                self.entries(offset / 4, count / 4).iter().flat_map(|entry| entry.to_le_bytes()).collect()
            }
        };
        bytes.truncate(len);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry, read from bytes as the specification has it.
    fn entry(fat_type: FatType, bytes: &[u8], number: usize) -> u32 {
        let wide = |at: usize| u32::from(bytes[at]) | u32::from(bytes[at + 1]) << 8;
        match fat_type {
            FatType::Fat12 => wide(number * 3 / 2) >> (number % 2 * 4) & 0xfff,
            FatType::Fat16 => wide(number * 2),
            FatType::Fat32 => wide(number * 4) | wide(number * 4 + 2) << 16,
        }
    }

    #[test]
    fn every_sector_has_the_entries_of_its_clusters() {
        let chains: Vec<(u32, u32)> = vec![(2, 1), (3, 700), (703, 1), (704, 40), (744, 1)];
        for fat_type in [FatType::Fat12, FatType::Fat16, FatType::Fat32] {
            let fat = MadeFat { fat_type, medium: 0xf8, chains: chains.clone() };
            let whole: Vec<u8> = (0..12).flat_map(|sector| fat.bytes(sector * 512, 512)).collect();
            assert_eq!(fat.bytes(0, 12 * 512), whole);
            for cluster in 2..760u32 {
                let end = chains.iter().map(|(start, len)| start + len).find(|end| cluster < *end);
                let expected = match end {
                    Some(end) if cluster + 1 == end => fat_type.end_mark(),
                    Some(_) => cluster + 1,
                    None => 0,
                };
                assert_eq!(entry(fat_type, &whole, cluster as usize), expected, "{fat_type:?} {cluster}");
                assert_eq!(fat.chain_end(cluster), end);
            }
            let used = fat.used_sectors() as usize * 512;
            assert!(whole[used - 512..used].iter().any(|byte| *byte != 0), "{fat_type:?}");
            assert!(whole[used..].iter().all(|byte| *byte == 0), "{fat_type:?}");
        }
    }
}
