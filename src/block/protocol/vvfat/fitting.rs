//! Which disk holds a directory: the first of those of its kind, from the usual one to the largest, that has room.

use super::geometry::{COMMON_DISK, FatType, Layout, PARTITION, SECTOR, TRACK};
use crate::block::{Error, Kind, Result};

/// Sectors of a disk of 64 cylinders: what FAT12 can hold in clusters of 8 KiB.
const SMALL_DISK: u64 = 64 * 16 * TRACK;
/// Free space of a disk that is to be written to, in bytes.
const ROOM: u64 = 64 << 20;

/// What the disk is to be, as the user says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// `None` leaves it to the content.
    pub fat_type: Option<FatType>,
    /// No partition, and a floppy's size.
    pub floppy: bool,
    /// There must be free space.
    pub writable: bool,
}

/// What the disk has to hold.
pub(super) struct Content<'a> {
    /// Bytes of all files and of all directories but the root.
    pub(super) sizes: &'a [u64],
    /// Bytes of the root directory.
    pub(super) root: u64,
}

impl Content<'_> {
    fn clusters(&self, cluster: u64, with_root: bool) -> u64 {
        let root = if with_root { self.root.div_ceil(cluster).max(1) } else { 0 };
        root + self.sizes.iter().map(|size| size.div_ceil(cluster)).sum::<u64>()
    }
}

/// Sizes of a disk to try: type, sectors of a cluster, sectors of the disk.
type Try = (FatType, u64, u64);

impl Layout {
    /// A layout for `content`.
    ///
    /// # Errors
    /// [`Kind::TooLarge`] where no disk of that kind can hold it.
    pub(super) fn fitting(wish: Wish, content: &Content<'_>) -> Result<Layout> {
        let tries = match wish.floppy {
            true => floppy_tries(wish.fat_type)?,
            false => disk_tries(wish, content),
        };
        let fits = |&(fat_type, cluster, total): &Try| {
            Layout::of(fat_type, wish.floppy, cluster, total, content.root)
                .filter(|layout| layout.needed(content) <= u64::from(layout.clusters))
        };
        tries.iter().find_map(fits).ok_or_else(|| too_large(wish, &tries))
    }

    fn needed(&self, content: &Content<'_>) -> u64 {
        content.clusters(self.cluster_bytes(), self.root_entries == 0)
    }
}

fn floppy_tries(fat_type: Option<FatType>) -> Result<Vec<Try>> {
    match fat_type {
        None => Ok(vec![(FatType::Fat12, 2, 5760)]),
        Some(FatType::Fat12) => Ok(vec![(FatType::Fat12, 1, 2880)]),
        Some(FatType::Fat16) => Ok(vec![(FatType::Fat16, 1, 5760)]),
        Some(FatType::Fat32) => {
            let message = "a floppy has too few clusters for FAT32";
            Err(Error::new(Kind::InvalidArgument, message).remedy("use fat:floppy: or fat:floppy:16:"))
        }
    }
}

/// From the usual size to the largest, for the type that is wished. Without a wish: 504 MiB of FAT16, else FAT32.
fn disk_tries(wish: Wish, content: &Content<'_>) -> Vec<Try> {
    let room = if wish.writable { ROOM } else { 0 };
    let grown = |fat_type, usual: u64, clusters: &[u64], room: u64| -> Vec<Try> {
        let sized = |&cluster: &u64| {
            let total = usual.max(disk_for(fat_type, cluster, content, room));
            (total <= reach(fat_type, cluster)).then_some((fat_type, cluster, total))
        };
        clusters.iter().filter_map(sized).collect()
    };
    match wish.fat_type {
        Some(FatType::Fat12) => grown(FatType::Fat12, SMALL_DISK, &[16, 32, 64], 0),
        Some(FatType::Fat16) => grown(FatType::Fat16, COMMON_DISK, &[16, 32, 64], 0),
        Some(FatType::Fat32) => grown(FatType::Fat32, COMMON_DISK, &[8, 16, 32, 64], room),
        None => {
            let mut tries = vec![(FatType::Fat16, 16, COMMON_DISK)];
            tries.retain(|_| disk_for(FatType::Fat16, 16, content, room) <= COMMON_DISK);
            tries.extend(grown(FatType::Fat32, COMMON_DISK, &[8, 16, 32, 64], room));
            tries
        }
    }
}

/// Sectors of a disk, in whole cylinders, that holds `content` and `room` bytes more.
fn disk_for(fat_type: FatType, cluster: u64, content: &Content<'_>, room: u64) -> u64 {
    let room = if room > 0 { room + content.sizes.iter().sum::<u64>() / 8 } else { 0 };
    let clusters = content.clusters(cluster * SECTOR, true) + room / (cluster * SECTOR) + 2;
    let fats_for = |clusters: u64| 2 * (clusters * fat_type.bits()).div_ceil(8 * SECTOR) + 8;
    // A FAT is as long as if its own sectors were clusters too.
    let fats = fats_for(clusters + fats_for(clusters).div_ceil(cluster));
    let sectors = PARTITION + 32 + (content.root / SECTOR).max(32) + fats + clusters * cluster;
    let heads = if sectors <= COMMON_DISK { 16 } else { 255 };
    sectors.next_multiple_of(heads * TRACK)
}

/// The largest disk that is made with clusters of this many sectors.
fn reach(fat_type: FatType, cluster: u64) -> u64 {
    match (fat_type, cluster) {
        (FatType::Fat32, 8) => (8 << 30) / SECTOR,
        (FatType::Fat32, 16) => (16 << 30) / SECTOR,
        (FatType::Fat32, 32) => (32 << 30) / SECTOR,
        _ => u64::from(u32::MAX),
    }
}

fn too_large(wish: Wish, tries: &[Try]) -> Error {
    let (fat_type, capacity) = match (tries.last(), wish.fat_type) {
        (Some(&(fat_type, _, total)), _) if wish.floppy => (fat_type, total * SECTOR),
        (_, Some(FatType::Fat12)) => (FatType::Fat12, 4084 * (32 << 10)),
        (_, Some(FatType::Fat16)) => (FatType::Fat16, 65524 * (32 << 10)),
        _ => (FatType::Fat32, 2 << 40),
    };
    let (bits, capacity) = (fat_type.bits(), capacity as f64 / 1e6);
    let message = format!("Directory does not fit in FAT{bits} (capacity {capacity:.2} MB)");
    Error::new(Kind::TooLarge, message).remedy(match fat_type {
        FatType::Fat32 => "show a part of it",
        _ if wish.floppy => "show it as a hard disk: leave out floppy",
        _ => "leave out the FAT's type, or use fat:32:",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(fat_type: Option<FatType>, floppy: bool, sizes: &[u64]) -> Result<Layout> {
        let wish = Wish { fat_type, floppy, writable: false };
        Layout::fitting(wish, &Content { sizes, root: 64 })
    }

    #[test]
    fn small_directories_get_the_disks_that_qemu_makes() {
        for (fat_type, floppy, bytes) in [
            (None, false, 528_482_304),
            (Some(FatType::Fat12), false, 33_030_144),
            (Some(FatType::Fat16), false, 528_482_304),
            (Some(FatType::Fat32), false, 528_482_304),
            (None, true, 2_949_120),
            (Some(FatType::Fat12), true, 1_474_560),
            (Some(FatType::Fat16), true, 2_949_120),
        ] {
            assert_eq!(layout(fat_type, floppy, &[100]).unwrap().total * SECTOR, bytes);
        }
        assert!(layout(Some(FatType::Fat32), true, &[]).is_err());
    }

    #[test]
    fn the_disk_has_room_for_what_it_was_made_for() {
        let clusters = (64_901_300..64_901_330).chain([2_000_000, 7_654_321, 33_333_333]);
        for clusters in clusters {
            let sizes = [clusters << 15];
            let content = Content { sizes: &sizes, root: 64 };
            let total = disk_for(FatType::Fat32, 64, &content, 0);
            let layout = Layout::of(FatType::Fat32, false, 64, total, content.root).unwrap();
            assert!(layout.needed(&content) <= u64::from(layout.clusters), "{clusters}");
        }
    }

    #[test]
    fn what_is_more_than_fat16_holds_gets_fat32() {
        let mib = 1 << 20;
        assert_eq!(layout(None, false, &[490 * mib]).unwrap().fat_type, FatType::Fat16);
        for size in [504 * mib, 2048 * mib, 100 << 30, 1 << 40] {
            let found = layout(None, false, &vec![1 << 30; (size >> 30) as usize + 1]).unwrap();
            assert_eq!(found.fat_type, FatType::Fat32);
            assert_eq!(found.total % (u64::from(found.heads) * 63), 0);
        }
        assert!(layout(None, false, &[4 << 40]).is_err());
        assert!(layout(Some(FatType::Fat16), false, &[3 << 30]).is_err());
        assert!(layout(Some(FatType::Fat16), false, &[1900 * mib]).is_ok());
        assert!(layout(Some(FatType::Fat12), false, &[120 * mib]).is_ok());
        assert!(layout(None, true, &[3 * mib]).is_err());
    }
}
