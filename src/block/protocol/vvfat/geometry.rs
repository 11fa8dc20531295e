//! Where everything is on the disk, in sectors of [`SECTOR`] bytes.
//!
//! ```text
//!   hard disk                                            floppy
//!   0          MBR                                       (none)
//!   63         ┌ reserved: boot sector, FAT32 also FSInfo and their copies   0
//!              │ FAT, and again
//!              │ root directory (FAT12, FAT16)
//!   data_start │ cluster 2, cluster 3, …
//!   total      └
//! ```
//!
//! Invariant: the number of clusters is one that the FAT's type may have (Microsoft's specification, "FAT type
//! determination"), and both FATs have room for all of them.

use std::ops::Range;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Where the partition of a hard disk begins: at the second track, as DOS wants it.
pub(super) const PARTITION: u64 = 63;
/// Sectors of a track of a hard disk.
pub(super) const TRACK: u64 = 63;
/// Sectors of a disk of 1024 cylinders and 16 heads: 504 MiB, what every BIOS can address.
pub(super) const COMMON_DISK: u64 = 1024 * 16 * TRACK;
/// Most bytes of a directory: 65,536 entries.
pub(super) const MAX_DIRECTORY: u64 = 2 << 20;
/// Bytes of a directory entry.
pub(super) const ENTRY: usize = 32;

/// Width of the FAT's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatType {
    /// 12 bits.
    Fat12,
    /// 16 bits.
    Fat16,
    /// 32 bits, 28 of them used.
    Fat32,
}

impl FatType {
    /// Width of an entry, in bits.
    pub(super) fn bits(self) -> u64 {
        match self {
            FatType::Fat12 => 12,
            FatType::Fat16 => 16,
            FatType::Fat32 => 32,
        }
    }

    /// Fewest and most clusters.
    fn clusters(self) -> (u64, u64) {
        match self {
            FatType::Fat12 => (1, 4084),
            FatType::Fat16 => (4085, 65524),
            FatType::Fat32 => (65525, 0x0fff_fff4),
        }
    }

    /// The mark of a chain's last cluster.
    pub(super) fn end_mark(self) -> u32 {
        match self {
            FatType::Fat12 => 0xfff,
            FatType::Fat16 => 0xffff,
            FatType::Fat32 => 0x0fff_ffff,
        }
    }
}

/// The places of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) fat_type: FatType,
    pub(super) floppy: bool,
    pub(super) heads: u16,
    pub(super) track: u16,
    /// First sector of the volume.
    pub(super) partition: u64,
    /// Sectors of the disk.
    pub(super) total: u64,
    /// Sectors before the first FAT.
    pub(super) reserved: u64,
    /// Sectors of one FAT.
    pub(super) fat_sectors: u64,
    /// Slots of the root directory; 0 where it is a chain.
    pub(super) root_entries: u64,
    /// Sectors of a cluster.
    pub(super) cluster_sectors: u64,
    /// Clusters, the first one numbered 2.
    pub(super) clusters: u32,
}

impl Layout {
    /// The layout of a disk of `total` sectors, if the numbers allow one.
    pub(super) fn of(
        fat_type: FatType,
        floppy: bool,
        cluster_sectors: u64,
        total: u64,
        root: u64,
    ) -> Option<Layout> {
        let is_chain = fat_type == FatType::Fat32;
        let default_root = if floppy { 224 } else { 512 };
        let root_entries =
            if is_chain { 0 } else { (root / ENTRY as u64).max(default_root).next_multiple_of(16) };
        let partition = if floppy { 0 } else { PARTITION };
        let reserved = if is_chain { 32 } else { 1 };
        let usable = (total - partition).checked_sub(reserved + root_entries / 16)?;
        let fat_sectors = ((usable / cluster_sectors + 2) * fat_type.bits()).div_ceil(8 * SECTOR);
        let clusters = usable.checked_sub(2 * fat_sectors)? / cluster_sectors;
        let (fewest, most) = fat_type.clusters();
        let sound =
            (fewest..=most).contains(&clusters) && root_entries <= 65520 && u32::try_from(total).is_ok();
        let (heads, track) = shape(floppy, total);
        sound.then_some(Layout {
            fat_type,
            floppy,
            heads,
            track,
            partition,
            total,
            reserved,
            fat_sectors,
            root_entries,
            cluster_sectors,
            clusters: clusters as u32,
        })
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        self.cluster_sectors * SECTOR
    }

    /// First sector of the FAT.
    pub(super) fn fat_start(&self) -> u64 {
        self.partition + self.reserved
    }

    /// First sector of the fixed root directory.
    pub(super) fn root_start(&self) -> u64 {
        self.fat_start() + 2 * self.fat_sectors
    }

    /// First sector of cluster 2.
    pub(super) fn data_start(&self) -> u64 {
        self.root_start() + self.root_entries / 16
    }

    /// First sector of a cluster.
    pub(super) fn sector_of(&self, cluster: u32) -> u64 {
        self.data_start() + (u64::from(cluster) - 2) * self.cluster_sectors
    }

    /// The clusters whose entries are, at least in part, in sectors of the FAT, counted from its start.
    pub(super) fn clusters_of_fat(&self, sectors: Range<u64>) -> Range<u32> {
        let (start, end) = (sectors.start * SECTOR * 8, sectors.end * SECTOR * 8);
        let bits = self.fat_type.bits();
        self.clusters_among(start / bits..end.div_ceil(bits))
    }

    /// The clusters of sectors, counted from that of cluster 2.
    pub(super) fn clusters_of_data(&self, sectors: Range<u64>) -> Range<u32> {
        let (start, end) = (sectors.start / self.cluster_sectors, sectors.end.div_ceil(self.cluster_sectors));
        self.clusters_among(start + 2..end + 2)
    }

    /// Of some numbers, those of clusters.
    fn clusters_among(&self, numbers: Range<u64>) -> Range<u32> {
        let number = |at: u64| at.clamp(2, u64::from(self.end_cluster())) as u32;
        number(numbers.start)..number(numbers.end)
    }

    /// The first number that is no cluster's any more.
    pub(super) fn end_cluster(&self) -> u32 {
        self.clusters + 2
    }

    /// Cylinders, for the MBR.
    pub(super) fn cylinders(&self) -> u64 {
        self.total / (u64::from(self.heads) * u64::from(self.track))
    }
}

/// Heads and sectors of a track.
fn shape(floppy: bool, total: u64) -> (u16, u16) {
    match (floppy, total) {
        (true, 2880) => (2, 18),
        (true, _) => (2, 36),
        (false, ..=COMMON_DISK) => (16, TRACK as u16),
        (false, _) => (255, TRACK as u16),
    }
}
