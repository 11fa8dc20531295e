//! A piece on its way, on a thread of the pool: blocks that stay in its processor's cache between the read and the write.

use super::super::place::Place;
use super::plan::{Piece, failed};
use super::runs::{Run, data_grains, find_runs, gaps};
use crate::block::aio::{BulkFile, CopyError};
use crate::block::graph::filling::Room;
use crate::block::{AlignedBytes, Error};
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

/// Where the bytes of a piece go.
#[derive(Clone)]
pub(super) enum Rooms {
    /// Where the target has them, in order.
    InPlace(Vec<Room>),
    /// What is left of new room; it was taken for the whole piece.
    New(VecDeque<Room>),
}

impl Rooms {
    /// New room that is left.
    pub(super) fn into_new(self) -> impl Iterator<Item = Room> {
        let rooms = match self {
            Rooms::InPlace(_) => VecDeque::new(),
            Rooms::New(rooms) => rooms,
        };
        rooms.into_iter()
    }

    /// The next `len` bytes or less of new room.
    fn take(&mut self, len: u64) -> Option<Room> {
        let Rooms::New(rooms) = self else { return None };
        let mut room = rooms.pop_front()?;
        if let Some(rest) = split_off(&mut room, len) {
            rooms.push_front(rest);
        }
        Some(room)
    }
}

/// A piece on its way.
pub(super) struct Job {
    /// Where its bytes are; `None` if they were read.
    pub(super) source: Option<Place>,
    pub(super) len: u64,
    /// Where it goes on the target: runs of zeros are aligned there.
    pub(super) position: u64,
    /// Bytes that are looked at together; all that were read.
    pub(super) block: u64,
    pub(super) sparse: u64,
    /// The file system does it.
    pub(super) offload: bool,
    pub(super) grain: u64,
    pub(super) rooms: Rooms,
    pub(super) shown: Vec<Shown>,
    pub(super) zeros: Vec<Range<u64>>,
    pub(super) bytes: AlignedBytes,
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
            (true, Some(Place::File(file, offset))) => self.copy_all(&file, offset)?,
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
        let copy = |room: &Room, done: u64, len: u64| {
            file.copy(offset + done, &room.file, room.offset, len).map_err(|error| match error {
                CopyError::Reading(error) => Broken { reading: true, at: done, error },
                CopyError::Writing(error) => Broken { reading: false, at: done, error },
            })
        };
        let mut done = 0;
        if let Rooms::InPlace(rooms) = &self.rooms {
            for room in rooms {
                copy(room, done, room.len)?;
                done += room.len;
            }
        }
        while done < self.len
            && let Some(room) = self.rooms.take((self.len - done).next_multiple_of(self.grain))
        {
            let len = room.len.min(self.len - done);
            copy(&room, done, len)?;
            if room.len > len && !room.untouched {
                self.write(&room, len, &vec![0; (room.len - len) as usize], done)?;
            }
            self.shown.push(Shown { start: done, len: room.len, place: room.offset });
            done += len;
        }
        Ok(())
    }

    fn copy_block(&mut self, start: u64, len: u64) -> Moved<()> {
        let end = len as usize;
        let room = len.next_multiple_of(self.grain) as usize;
        let mut memory = std::mem::take(&mut self.bytes);
        let bytes = memory.first(room);
        if let Some(source) = &self.source {
            let read = source.read(start, &mut bytes[..end]);
            read.map_err(|error| Broken { reading: true, at: start, error })?;
        }
        // The rest of the last grain is behind the end of the disk.
        bytes[end..room].fill(0);
        let runs = find_runs(&bytes[..end], self.position + start, self.sparse);
        let done = match &self.rooms {
            Rooms::InPlace(rooms) => self.write_in_place(rooms, start, bytes, &runs),
            Rooms::New(_) => self.write_grains(start, bytes, len, &runs),
        };
        self.zeros.extend(done?);
        self.bytes = memory;
        Ok(())
    }

    /// Data goes where the disk has its place. Returns what is zero.
    fn write_in_place(
        &self,
        rooms: &[Room],
        start: u64,
        bytes: &[u8],
        runs: &[Run],
    ) -> Moved<Vec<Range<u64>>> {
        let mut room_start = 0;
        for room in rooms {
            let room_end = room_start + room.len;
            for (run, _) in runs.iter().filter(|(_, data)| *data) {
                let part = (start + run.start).max(room_start)..(start + run.end).min(room_end);
                if part.start < part.end {
                    let bytes = &bytes[(part.start - start) as usize..(part.end - start) as usize];
                    self.write(room, part.start - room_start, bytes, start)?;
                }
            }
            room_start = room_end;
        }
        let zeros = runs.iter().filter(|(_, data)| !data);
        Ok(zeros.map(|(run, _)| start + run.start..start + run.end).collect())
    }

    /// Grains with data in them go to the next ones of the room. Returns what is zero.
    fn write_grains(&mut self, start: u64, bytes: &[u8], len: u64, runs: &[Run]) -> Moved<Vec<Range<u64>>> {
        let data = data_grains(runs, self.grain);
        for range in &data {
            let mut at = range.start;
            // As much was taken as the piece can need.
            while at < range.end
                && let Some(room) = self.rooms.take(range.end - at)
            {
                self.write_group(&room, at..at + room.len, bytes, runs, start)?;
                self.shown.push(Shown { start: start + at, len: room.len, place: room.offset });
                at += room.len;
            }
        }
        Ok(gaps(&data, len).into_iter().map(|gap| start + gap.start..start + gap.end).collect())
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
        let offset = room.offset + at;
        let done = match room.untouched {
            true => room.file.write_new(offset, bytes),
            false => room.file.write(offset, bytes),
        };
        done.map_err(|error| Broken { reading: false, at: start, error })
    }
}
