//! What sectors show: the guest's own writes where it wrote, else what the tree makes of them.

use super::boot::medium;
use super::geometry::{FatType, SECTOR};
use super::runs::Shows;
use super::tree::Id;
use super::volume::Volume;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

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
}

/// Some bytes of the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) len: usize,
    pub(super) from: From,
}

impl Volume {
    /// What the sectors of a range show, in order.
    pub(super) fn pieces(&self, sectors: Range<u64>) -> Vec<Piece> {
        let (mut pieces, mut at) = (Vec::new(), sectors.start);
        while at < sectors.end {
            let (written, count) = match &self.overlay {
                Some(overlay) => overlay.present().run(at..sectors.end),
                None => (false, sectors.end - at),
            };
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
        let layout = &self.layout;
        let mut at = sectors.start;
        let fats = layout.fat_start()..layout.root_start();
        while at < sectors.end {
            let until = |end: u64| end.min(sectors.end);
            let end = match at {
                at if at < layout.partition => {
                    let end = until(layout.partition);
                    self.memory(&self.master, at, 0, end, pieces);
                    end
                }
                at if at < fats.start => {
                    let end = until(fats.start);
                    self.memory(&self.reserved, at, layout.partition, end, pieces);
                    end
                }
                at if at < fats.end => {
                    let within = (at - fats.start) % layout.fat_sectors;
                    let end = until(at - within + layout.fat_sectors);
                    let bytes = self.fat_bytes(within * SECTOR, ((end - at) * SECTOR) as usize);
                    pieces.push(Piece { len: bytes.len(), from: From::Memory(bytes) });
                    end
                }
                at if at < layout.data_start() => {
                    let end = until(layout.data_start());
                    self.memory(&self.fixed_root, at, fats.end, end, pieces);
                    end
                }
                at => self.clusters(at, sectors.end, pieces),
            };
            at = end;
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
                (there(size, offset(index)), From::Host(id, offset(index)))
            }
        };
        push_some(pieces, used, from);
        push_some(pieces, len - used, From::Zeros);
        end
    }

    /// An entry of the FAT as it was made.
    fn made_entry(&self, cluster: u32) -> u32 {
        let end_mark = self.layout.fat_type.end_mark();
        match cluster {
            0 => end_mark & !0xff | u32::from(medium(&self.layout)),
            1 => end_mark,
            _ => match self.made_chain(cluster) {
                Some(end) if cluster + 1 == end => end_mark,
                Some(_) => cluster + 1,
                None => 0,
            },
        }
    }

    /// Where the chain ends that `cluster` was made part of.
    pub(super) fn made_chain(&self, cluster: u32) -> Option<u32> {
        let after = self.chains.partition_point(|(start, _)| *start <= cluster);
        let (start, len) = self.chains.get(after.checked_sub(1)?)?;
        (cluster - start < *len).then_some(start + len)
    }

    /// `len` bytes of the FAT as it was made. Entries of 12 bits stand two in three bytes.
    fn fat_bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 4);
        let entry = |number: u64| match u32::try_from(number) {
            Ok(cluster) if cluster < self.layout.end_cluster() => self.made_entry(cluster),
            _ => 0,
        };
        match self.layout.fat_type {
            FatType::Fat12 => {
                let first = offset / 3;
                for pair in first..(offset + len as u64).div_ceil(3) {
                    let both = entry(pair * 2) | entry(pair * 2 + 1) << 12;
                    bytes.extend_from_slice(&both.to_le_bytes()[..3]);
                }
                bytes.drain(..(offset - first * 3) as usize);
            }
            FatType::Fat16 => {
                let first = offset / 2;
                (first..first + len as u64 / 2).for_each(|at| bytes.extend((entry(at) as u16).to_le_bytes()));
            }
            FatType::Fat32 => {
                let first = offset / 4;
                (first..first + len as u64 / 4).for_each(|at| bytes.extend(entry(at).to_le_bytes()));
            }
        }
        bytes.truncate(len);
        bytes
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
        match (from, &self.overlay) {
            (From::Overlay, Some(overlay)) => read_up_to(overlay.file(), disk, into),
            (From::Host(id, offset), _) => {
                if opened.as_ref().is_none_or(|(open, _)| open != id) {
                    *opened = Some((*id, self.open(*id)?));
                }
                opened.as_ref().map_or(Ok(()), |(_, file)| read_up_to(file, *offset, into))
            }
            _ => Ok(()),
        }
    }
}

fn push_some(pieces: &mut Vec<Piece>, len: usize, from: From) {
    if len > 0 {
        pieces.push(Piece { len, from });
    }
}

/// Reads what there is; the rest stays as it is.
fn read_up_to(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
