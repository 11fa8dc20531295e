//! The sectors before the FAT: master boot record, boot sector, FSInfo.
//!
//! ```text
//!   boot sector                            FAT12, FAT16          FAT32
//!   0    jump                              0x24 drive number     0x24 sectors of a FAT (u32)
//!   3    "MSWIN4.1"                        0x26 0x29             0x2c root's cluster
//!   0x0b bytes a sector    0x0d cluster    0x27 serial number    0x30 FSInfo   0x32 copy
//!   0x0e reserved          0x10 FATs       0x2b label            0x40 drive number
//!   0x11 root entries      0x13 sectors    0x36 "FAT16   "       0x43 serial number
//!   0x15 medium  0x16 sectors of a FAT                           0x47 label
//!   0x18 track   0x1a heads                                      0x52 "FAT32   "
//!   0x1c hidden  0x20 sectors (u32)                              0x1fe 0x55 0xaa
//! ```

use super::geometry::{FatType, Layout, SECTOR};

/// What older DOS accepts without asking.
const OEM: &[u8; 8] = b"MSWIN4.1";
/// `int 0x18`: the BIOS goes on with the next disk; then halts.
const NOT_BOOTABLE: [u8; 5] = [0xcd, 0x18, 0xf4, 0xeb, 0xfd];
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Where FAT32 keeps FSInfo and the copies of both sectors.
const FSINFO: usize = 1;
const BACKUP: usize = 6;
/// The first cluster of FAT32's root directory.
pub(super) const ROOT_CLUSTER: u32 = 2;

/// What the boot sector says besides the layout.
pub(super) struct Identity {
    pub(super) label: [u8; 11],
    pub(super) serial: u32,
    /// Clusters in use, which are the first ones.
    pub(super) used: u32,
}

/// Writes `bytes` at `at`.
fn put(sector: &mut [u8], at: usize, bytes: &[u8]) {
    sector[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The byte that names the medium, in the boot sector and in the FAT.
pub(super) fn medium(layout: &Layout) -> u8 {
    if layout.floppy { 0xf0 } else { 0xf8 }
}

/// The first sector of a hard disk, with its one partition.
pub(super) fn master_boot_record(layout: &Layout, serial: u32) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    put(&mut sector, 0, &NOT_BOOTABLE);
    put(&mut sector, 0x1b8, &serial.to_le_bytes());
    let size = layout.total - layout.partition;
    let by_cylinders = layout.cylinders() <= 1024;
    let kind = match (layout.fat_type, by_cylinders) {
        (FatType::Fat12, _) => 0x01,
        (FatType::Fat16, true) => 0x06,
        (FatType::Fat16, false) => 0x0e,
        (FatType::Fat32, true) => 0x0b,
        (FatType::Fat32, false) => 0x0c,
    };
    sector[0x1be] = 0x80;
    put(&mut sector, 0x1bf, &chs(layout, layout.partition));
    sector[0x1c2] = kind;
    put(&mut sector, 0x1c3, &chs(layout, layout.total - 1));
    put(&mut sector, 0x1c6, &(layout.partition as u32).to_le_bytes());
    put(&mut sector, 0x1ca, &(size as u32).to_le_bytes());
    put(&mut sector, 0x1fe, &SIGNATURE);
    sector
}

/// A sector's address by head, sector and cylinder; the last one that there is for those beyond.
fn chs(layout: &Layout, sector: u64) -> [u8; 3] {
    let (heads, track) = (u64::from(layout.heads), u64::from(layout.track));
    let (cylinder, head, sector) = (sector / (heads * track), sector / track % heads, sector % track + 1);
    let (cylinder, head, sector) =
        if cylinder > 1023 { (1023, heads - 1, track) } else { (cylinder, head, sector) };
    [head as u8, (sector | (cylinder >> 8) << 6) as u8, cylinder as u8]
}

/// All reserved sectors of the volume.
pub(super) fn reserved_sectors(layout: &Layout, identity: &Identity) -> Vec<u8> {
    let mut area = vec![0; (layout.reserved * SECTOR) as usize];
    let boot = boot_sector(layout, identity);
    put(&mut area, 0, &boot);
    if layout.fat_type == FatType::Fat32 {
        let info = fs_info(layout, identity);
        let at = |sector: usize| sector * SECTOR as usize;
        put(&mut area, at(FSINFO), &info);
        put(&mut area, at(BACKUP), &boot);
        put(&mut area, at(BACKUP + FSINFO), &info);
    }
    area
}

fn boot_sector(layout: &Layout, identity: &Identity) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    let size = layout.total - layout.partition;
    let is_fat32 = layout.fat_type == FatType::Fat32;
    let small = u16::try_from(size).ok().filter(|_| !is_fat32);
    put(&mut sector, 3, OEM);
    put(&mut sector, 0x0b, &(SECTOR as u16).to_le_bytes());
    sector[0x0d] = layout.cluster_sectors as u8;
    put(&mut sector, 0x0e, &(layout.reserved as u16).to_le_bytes());
    sector[0x10] = 2;
    put(&mut sector, 0x11, &(layout.root_entries as u16).to_le_bytes());
    put(&mut sector, 0x13, &small.unwrap_or(0).to_le_bytes());
    sector[0x15] = medium(layout);
    put(&mut sector, 0x18, &layout.track.to_le_bytes());
    put(&mut sector, 0x1a, &layout.heads.to_le_bytes());
    put(&mut sector, 0x1c, &(layout.partition as u32).to_le_bytes());
    put(&mut sector, 0x20, &if small.is_some() { 0 } else { size as u32 }.to_le_bytes());
    if is_fat32 {
        put(&mut sector, 0x24, &(layout.fat_sectors as u32).to_le_bytes());
        put(&mut sector, 0x2c, &ROOT_CLUSTER.to_le_bytes());
        put(&mut sector, 0x30, &(FSINFO as u16).to_le_bytes());
        put(&mut sector, 0x32, &(BACKUP as u16).to_le_bytes());
    } else {
        put(&mut sector, 0x16, &(layout.fat_sectors as u16).to_le_bytes());
    }
    extended(&mut sector, layout, identity);
    sector
}

/// The part with serial number and label, behind it the code, before it the jump there.
fn extended(sector: &mut [u8], layout: &Layout, identity: &Identity) {
    let at = if layout.fat_type == FatType::Fat32 { 0x40 } else { 0x24 };
    sector[at] = if layout.floppy { 0 } else { 0x80 };
    sector[at + 2] = 0x29;
    put(sector, at + 3, &identity.serial.to_le_bytes());
    put(sector, at + 7, &identity.label);
    let name: &[u8; 8] = match layout.fat_type {
        FatType::Fat12 => b"FAT12   ",
        FatType::Fat16 => b"FAT16   ",
        FatType::Fat32 => b"FAT32   ",
    };
    put(sector, at + 18, name);
    put(sector, at + 26, &NOT_BOOTABLE);
    put(sector, 0, &[0xeb, (at + 26 - 2) as u8, 0x90]);
    put(sector, 0x1fe, &SIGNATURE);
}

/// Whether a boot sector still describes the volume that `ours` does: parameters and serial number. The byte in which
/// systems note that the volume is mounted, and the label, are theirs.
pub(super) fn is_same_volume(layout: &Layout, ours: &[u8], theirs: &[u8]) -> bool {
    let (end, serial) = if layout.fat_type == FatType::Fat32 { (0x34, 0x43) } else { (0x24, 0x27) };
    [0x0b..end, serial..serial + 4].into_iter().all(|range| ours.get(range.clone()) == theirs.get(range))
}

fn fs_info(layout: &Layout, identity: &Identity) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    put(&mut sector, 0, b"RRaA");
    put(&mut sector, 0x1e4, b"rrAa");
    put(&mut sector, 0x1e8, &(layout.clusters - identity.used).to_le_bytes());
    put(&mut sector, 0x1ec, &(identity.used + 1).to_le_bytes());
    put(&mut sector, 0x1fe, &SIGNATURE);
    sector
}
