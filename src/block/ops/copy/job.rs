//! A piece on its way, on a thread of the pool: blocks that stay in its processor's cache between the read and the write.

use super::super::place::Place;
use super::plan::{Piece, failed};
use super::runs::{Run, data_grains, find_runs, gaps};
use crate::block::Error;
use crate::block::aio::{BulkFile, CopyError};
use crate::block::graph::filling::Room;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;

/// Cuts what is behind the first `len` bytes off a room.
pub(super) fn split_off(room: &mut Room, len: u64) -> Option<Room> {
    let rest = room.len.checked_sub(len).filter(|rest| *rest > 0)?;
    room.len = len;
    Some(Room { offset: room.offset + len, len: rest, ..room.clone() })
}

/// Bytes that stand in a room now.
pub(super) struct Shown {
    /// Distance from the start of the piece.
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) place: u64,
}

/// Why a piece could not be moved: which side, and how far into the piece.
pub(super) struct Broken {
    pub(super) reading: bool,
    pub(super) at: u64,
    pub(super) error: io::Error,
}

/// What comes back from a thread of the pool.
pub(super) type Moved<T> = std::result::Result<T, Broken>;

/// A piece on its way.
pub(super) struct Job {
    pub(super) source: Place,
    pub(super) len: u64,
    /// Where it goes on the target: runs of zeros are aligned there.
    pub(super) position: u64,
    /// Bytes that are looked at together.
    pub(super) block: u64,
    pub(super) sparse: u64,
    /// The file system does it.
    pub(super) offload: bool,
    pub(super) grain: u64,
    pub(super) in_place: bool,
    /// What is left of the room.
    pub(super) rooms: VecDeque<Room>,
    pub(super) shown: Vec<Shown>,
    pub(super) zeros: Vec<Range<u64>>,
    pub(super) bytes: Vec<u8>,
}

impl Broken {
    pub(super) fn told(self, piece: &Piece) -> Error {
        let (doing, start) = if self.reading { ("reading", piece.from) } else { ("writing", piece.to) };
        failed(doing, start + self.at, Error::from_io(self.error))
    }
}

impl Job {
    /// Moves everything. Blocks.
    pub(super) fn run(mut self) -> Moved<Job> {
        match (self.offload, self.source.clone()) {
            (true, Place::File(file, offset)) => self.copy_all(&file, offset)?,
            _ => {
                for start in (0..self.len).step_by(self.block as usize) {
                    self.copy_block(start, self.block.min(self.len - start))?;
                }
            }
        }
        Ok(self)
    }

    /// Lets the file system copy, zeros too.
    fn copy_all(&mut self, file: &BulkFile, offset: u64) -> Moved<()> {
        let mut done = 0;
        while let Some(mut room) = self.rooms.pop_front() {
            let len = room.len.min(self.len - done);
            file.copy(offset + done, &room.file, room.offset, len).map_err(|error| match error {
                CopyError::Reading(error) => Broken { reading: true, at: done, error },
                CopyError::Writing(error) => Broken { reading: false, at: done, error },
            })?;
            let whole = len.next_multiple_of(self.grain);
            if whole > len && !room.untouched {
                self.write(&room, len, &vec![0; (whole - len) as usize], done)?;
            }
            self.shown.push(Shown { start: done, len: whole, place: room.offset });
            done += len;
            let rest = split_off(&mut room, whole);
            self.rooms.extend(rest);
            if done == self.len {
                break;
            }
        }
        Ok(())
    }

    fn copy_block(&mut self, start: u64, len: u64) -> Moved<()> {
        let (source, end) = (self.source.clone(), len as usize);
        let room = len.next_multiple_of(self.grain) as usize;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(room.max(bytes.len()), 0);
        source.read(start, &mut bytes[..end]).map_err(|error| Broken { reading: true, at: start, error })?;
        // The rest of the last grain is behind the end of the disk.
        bytes[end..room].fill(0);
        let runs = find_runs(&bytes[..end], self.position + start, self.sparse);
        let done = match self.in_place {
            true => self.write_in_place(start, &bytes, &runs),
            false => self.write_grains(start, &bytes[..room], len, &runs),
        };
        self.bytes = bytes;
        done
    }

    /// Data goes where the disk has its place.
    fn write_in_place(&mut self, start: u64, bytes: &[u8], runs: &[Run]) -> Moved<()> {
        for (run, data) in runs {
            match (data, self.rooms.front()) {
                (true, Some(room)) => {
                    self.write(room, start + run.start, &bytes[run.start as usize..run.end as usize], start)?;
                }
                _ => self.zeros.push(start + run.start..start + run.end),
            }
        }
        Ok(())
    }

    /// Grains with data in them go to the next ones of the room.
    fn write_grains(&mut self, start: u64, bytes: &[u8], len: u64, runs: &[Run]) -> Moved<()> {
        let data = data_grains(runs, self.grain);
        for range in &data {
            let mut at = range.start;
            while at < range.end {
                // As much was taken as the piece can need.
                let Some(mut room) = self.rooms.pop_front() else { break };
                if let Some(rest) = split_off(&mut room, range.end - at) {
                    self.rooms.push_front(rest);
                }
                self.write_group(&room, at..at + room.len, bytes, runs, start)?;
                self.shown.push(Shown { start: start + at, len: room.len, place: room.offset });
                at += room.len;
            }
        }
        self.zeros.extend(gaps(&data, len).into_iter().map(|gap| start + gap.start..start + gap.end));
        Ok(())
    }

    /// Writes the grains of `group` to a room of their length: all of it, or what is data where nothing was before.
    fn write_group(
        &self,
        room: &Room,
        group: Range<u64>,
        bytes: &[u8],
        runs: &[Run],
        start: u64,
    ) -> Moved<()> {
        let write = |part: Range<u64>| {
            let of_room = part.start - group.start;
            self.write(room, of_room, &bytes[part.start as usize..part.end as usize], start)
        };
        if !room.untouched {
            return write(group.clone());
        }
        let inside = runs.iter().filter(|(_, data)| *data);
        let inside = inside.map(|(run, _)| run.start.max(group.start)..run.end.min(group.end));
        inside.filter(|part| part.start < part.end).try_for_each(write)
    }

    fn write(&self, room: &Room, at: u64, bytes: &[u8], start: u64) -> Moved<()> {
        let done = room.file.write(room.offset + at, bytes);
        done.map_err(|error| Broken { reading: false, at: start, error })
    }
}
