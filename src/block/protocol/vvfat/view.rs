//! What sectors show: the guest's own writes where it wrote, else what the tree makes of them.

use super::geometry::SECTOR;
use super::host::read_up_to;
use super::runs::Shows;
use super::tree::Id;
use super::volume::Volume;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Where the bytes of a piece are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum From {
    Zeros,
    /// Here.
    Memory(Vec<u8>),
    /// Where the guest's writes are, at the disk's own offset.
    Overlay,
    /// In the file of a node, at this offset.
    Host(Id, u64),
    /// All that the disk shows of the file of a node.
    Whole(Id),
}

/// Some bytes of the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) len: usize,
    pub(super) from: From,
}

/// A part of the disk, by how it is made.
enum Area<'a> {
    /// These bytes, and zeros behind them.
    Bytes(&'a [u8]),
    /// One of the FATs.
    Fat,
    Clusters,
}

impl Volume {
    /// What the sectors of a range show, in order.
    pub(super) fn pieces(&self, sectors: Range<u64>) -> Vec<Piece> {
        let (mut pieces, mut at) = (Vec::new(), sectors.start);
        while at < sectors.end {
            let (written, count) = self.written(at..sectors.end);
            match written {
                true => pieces.push(Piece { len: (count * SECTOR) as usize, from: From::Overlay }),
                false => self.made(at..at + count, &mut pieces),
            }
            at += count;
        }
        pieces
    }

    /// What sectors show that the guest did not write.
    fn made(&self, sectors: Range<u64>, pieces: &mut Vec<Piece>) {
        let mut at = sectors.start;
        while at < sectors.end {
            let (area, range) = self.area(at);
            let end = range.end.min(sectors.end);
            at = match area {
                Area::Bytes(bytes) => {
                    self.memory(bytes, at, range.start, end, pieces);
                    end
                }
                Area::Fat => {
                    self.fat(at - range.start..end - range.start, pieces);
                    end
                }
                Area::Clusters => self.clusters(at, end, pieces),
            };
        }
    }

    /// What a sector is in, and which sectors that has.
    fn area(&self, at: u64) -> (Area<'_>, Range<u64>) {
        let layout = &self.layout;
        let (fats, root, data) = (layout.fat_start(), layout.root_start(), layout.data_start());
        match at {
            at if at < layout.partition => (Area::Bytes(&self.master), 0..layout.partition),
            at if at < fats => (Area::Bytes(&self.reserved), layout.partition..fats),
            at if at < root => {
                let start = at - (at - fats) % layout.fat_sectors;
                (Area::Fat, start..start + layout.fat_sectors)
            }
            at if at < data => (Area::Bytes(&self.fixed_root), root..data),
            _ => (Area::Clusters, data..layout.total),
        }
    }

    /// Whether the first sector of a range is known to be zeros, and how many of the range are as it is. Clusters are
    /// one thing: what is behind the end of a file in its last one is short, and costs little to read.
    pub(super) fn extent(&self, sectors: Range<u64>) -> (bool, u64) {
        let (zeros, mut count) = self.extent_of_one(sectors.clone());
        while sectors.start + count < sectors.end {
            let (other, more) = self.extent_of_one(sectors.start + count..sectors.end);
            if other != zeros {
                break;
            }
            count += more;
        }
        (zeros, count)
    }

    /// As [`Volume::extent`], up to the end of an area or of what the guest wrote.
    fn extent_of_one(&self, sectors: Range<u64>) -> (bool, u64) {
        let (written, count) = self.written(sectors.clone());
        if written {
            return (false, count);
        }
        let at = sectors.start;
        let (area, range) = self.area(at);
        let end = range.end.min(at + count);
        let used = match area {
            Area::Bytes(bytes) => (bytes.len() as u64).div_ceil(SECTOR),
            Area::Fat => self.fat.used_sectors(),
            Area::Clusters => return self.cluster_extent(at, end),
        };
        match (range.start + used).checked_sub(at) {
            Some(left @ 1..) => (false, left.min(end - at)),
            _ => (true, end - at),
        }
    }

    fn cluster_extent(&self, at: u64, end: u64) -> (bool, u64) {
        let layout = &self.layout;
        let (data, size) = (layout.data_start(), layout.cluster_sectors);
        let number = |sector: u64| ((sector - data) / size) as u32 + 2;
        let (shows, count) = self.runs.extent(number(at), number(end - 1) + 1);
        (!shows, (at - (at - data) % size + u64::from(count) * size).min(end) - at)
    }

    /// Whether the guest wrote the first sector of a range, and of how many of the range that is so.
    fn written(&self, sectors: Range<u64>) -> (bool, u64) {
        match &self.overlay {
            Some(overlay) => overlay.present().run(sectors),
            None => (false, sectors.end - sectors.start),
        }
    }

    /// Sectors `at..end` of an area that begins at sector `start` with `bytes` and goes on in zeros.
    fn memory(&self, bytes: &[u8], at: u64, start: u64, end: u64, pieces: &mut Vec<Piece>) {
        let (from, len) = (((at - start) * SECTOR) as usize, ((end - at) * SECTOR) as usize);
        let there = bytes.get(from..).map_or(&[][..], |rest| &rest[..rest.len().min(len)]);
        push_some(pieces, there.len(), From::Memory(there.to_vec()));
        push_some(pieces, len - there.len(), From::Zeros);
    }

    /// The run of clusters at a sector. Returns where it ends.
    fn clusters(&self, at: u64, end: u64, pieces: &mut Vec<Piece>) -> u64 {
        let layout = &self.layout;
        let within = at - layout.data_start();
        let cluster = (within / layout.cluster_sectors) as u32 + 2;
        let (shows, count) = self.runs.at(cluster);
        let run_end = at - within % layout.cluster_sectors + u64::from(count) * layout.cluster_sectors;
        let end = run_end.min(end);
        let len = ((end - at) * SECTOR) as usize;
        let skip = within % layout.cluster_sectors * SECTOR;
        let offset = |index: u32| u64::from(index) * layout.cluster_bytes() + skip;
        let there = |size: u64, offset: u64| (size.saturating_sub(offset) as usize).min(len);
        let (used, from) = match shows {
            None => (0, From::Zeros),
            Some(Shows::Directory { number, index }) => {
                let bytes = &self.directories[number as usize];
                let (from, used) = (offset(index) as usize, there(bytes.len() as u64, offset(index)));
                (used, From::Memory(bytes.get(from..from + used).unwrap_or_default().to_vec()))
            }
            Some(Shows::File { id, index }) => {
                let size = self.tree.get(id).map_or(0, |node| u64::from(node.fields.size));
                match (offset(index), there(size, offset(index))) {
                    (0, used) if used as u64 == size => (used, From::Whole(id)),
                    (offset, used) => (used, From::Host(id, offset)),
                }
            }
        };
        push_some(pieces, used, from);
        push_some(pieces, len - used, From::Zeros);
        end
    }

    /// Some sectors of a FAT, counted from its start.
    fn fat(&self, sectors: Range<u64>, pieces: &mut Vec<Piece>) {
        let used = self.fat.used_sectors().clamp(sectors.start, sectors.end);
        let bytes = self.fat.bytes(sectors.start * SECTOR, ((used - sectors.start) * SECTOR) as usize);
        push_some(pieces, bytes.len(), From::Memory(bytes));
        push_some(pieces, ((sectors.end - used) * SECTOR) as usize, From::Zeros);
    }

    /// Reads sectors, waiting for the host's disks.
    pub(super) fn read(&mut self, sectors: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(((sectors.end - sectors.start) * SECTOR) as usize);
        let mut opened = None;
        for piece in self.pieces(sectors.clone()) {
            let disk = sectors.start * SECTOR + bytes.len() as u64;
            let start = bytes.len();
            match piece.from {
                From::Memory(made) => bytes.extend(made),
                from => {
                    bytes.resize(start + piece.len, 0);
                    self.read_piece(&from, disk, &mut bytes[start..], &mut opened)?;
                }
            }
        }
        Ok(bytes)
    }

    /// Reads what is not in memory into zeros. `opened` is the host file that was read last.
    fn read_piece(
        &mut self,
        from: &From,
        disk: u64,
        into: &mut [u8],
        opened: &mut Option<(Id, File)>,
    ) -> io::Result<()> {
        let (id, offset) = match (from, &self.overlay) {
            (From::Overlay, Some(overlay)) => return read_up_to(overlay.file(), disk, into),
            (From::Host(id, offset), _) => (*id, *offset),
            (From::Whole(id), _) => (*id, 0),
            _ => return Ok(()),
        };
        if opened.as_ref().is_none_or(|(open, _)| *open != id) {
            *opened = Some((id, self.open(id)?));
        }
        opened.as_ref().map_or(Ok(()), |(_, file)| read_up_to(file, offset, into))
    }
}

fn push_some(pieces: &mut Vec<Piece>, len: usize, from: From) {
    if len > 0 {
        pieces.push(Piece { len, from });
    }
}
