//! A guest for tests: it changes a copy of a FAT16 disk as a file system would, and writes the sectors that changed.

use super::geometry::{ENTRY, SECTOR};
use super::volume::Volume;
use std::os::unix::fs::FileExt;

/// The disk as the guest sees it, to be changed.
pub(super) struct Guest {
    pub(super) image: Vec<u8>,
    fat: usize,
    data: usize,
    cluster: usize,
}

impl Guest {
    pub(super) fn new(volume: &mut Volume) -> Guest {
        let byte = |sector: u64| (sector * SECTOR) as usize;
        let layout = volume.layout;
        Guest {
            image: volume.read(0..layout.total).unwrap(),
            fat: byte(layout.fat_start()),
            data: byte(layout.data_start()),
            cluster: layout.cluster_bytes() as usize,
        }
    }

    fn half(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.image[at], self.image[at + 1]]))
    }

    pub(super) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Where the entry of an 8.3 name is.
    pub(super) fn entry(&self, short: &[u8; 11]) -> usize {
        let mut slots = self.image.chunks(ENTRY);
        slots.position(|slot| slot.starts_with(short) && slot[0x0b] & 8 == 0).unwrap() * ENTRY
    }

    /// Gives each the name of the next one, and the last that of the first.
    pub(super) fn rotate(&mut self, names: &[&[u8; 11]]) {
        let places: Vec<usize> = names.iter().map(|name| self.entry(name)).collect();
        for (number, place) in places.into_iter().enumerate() {
            self.set(place, names[(number + 1) % names.len()]);
        }
    }

    pub(super) fn rename(&mut self, from: &[u8; 11], to: &[u8; 11]) {
        let place = self.entry(from);
        self.set(place, to);
    }

    pub(super) fn delete(&mut self, short: &[u8; 11]) {
        let at = self.entry(short);
        let mut cluster = self.half(at + 0x1a);
        self.image[at] = 0xe5;
        while (2..0xfff0).contains(&cluster) {
            let link = self.fat + 2 * cluster;
            cluster = self.half(link);
            self.set(link, &[0, 0]);
        }
    }

    pub(super) fn overwrite(&mut self, short: &[u8; 11], byte: u8) {
        let at = self.entry(short);
        let size = self.half(at + 0x1c);
        let place = self.data + (self.half(at + 0x1a) - 2) * self.cluster;
        self.set(place, &vec![byte; size]);
    }

    /// Makes a file of two sectors in the slot at `at`, which is free.
    pub(super) fn create(&mut self, at: usize, short: &[u8; 11], byte: u8) {
        let count = 1024usize.div_ceil(self.cluster);
        // Not what was just freed: it would be the same file, renamed.
        let first = (200..).find(|cluster| self.half(self.fat + 2 * cluster) == 0).unwrap();
        for cluster in first..first + count {
            let next = if cluster + 1 == first + count { 0xffff } else { cluster as u16 + 1 };
            self.set(self.fat + 2 * cluster, &next.to_le_bytes());
        }
        self.set(self.data + (first - 2) * self.cluster, &[byte; 1024]);
        self.set(at, short);
        self.set(at + 0x1a, &(first as u16).to_le_bytes());
        self.set(at + 0x1c, &1024u32.to_le_bytes());
    }

    pub(super) fn write(&self, volume: &mut Volume) {
        let old = volume.read(0..volume.layout.total).unwrap();
        let overlay = volume.overlay.as_mut().unwrap();
        for (sector, (old, new)) in old.chunks(512).zip(self.image.chunks(512)).enumerate() {
            if old != new {
                overlay.file().write_all_at(new, sector as u64 * SECTOR).unwrap();
                overlay.wrote(sector as u64..sector as u64 + 1);
            }
        }
    }
}
