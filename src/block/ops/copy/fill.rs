//! Pieces that go to a host file: threads of the pool move them, and here is taken and shown what they fill.
//!
//! ```text
//!   source   | data |0 0| data |0|          read a block, look for zeros
//!   room     | data | data |  left |        what is data goes to the next grains; what is left, others take
//! ```

use super::super::pieces::Scratch;
use super::super::place::Place;
use super::Copy;
use super::job::{Broken, Job, Moved, Rooms, split_off};
use super::plan::{Piece, failed, piece_len};
use super::runs::{data_grains, find_runs, gaps};
use crate::block::graph::filling::{NewRoom, Packer, Room};
use crate::block::{Buffer, Result};
use std::cell::RefCell;
use std::collections::VecDeque;

/// What a thread reads before it writes, in bytes: it stays in its processor's cache, and the file system finds blocks
/// for all of it at once.
const BLOCK: u64 = 512 << 10;

/// Room that was taken and not used.
#[derive(Default)]
pub(super) struct Spare(RefCell<Vec<Room>>);

impl Spare {
    /// Room for `len` bytes: first what is left, then new.
    pub(super) async fn take(&self, source: &dyn NewRoom, len: u64) -> Result<VecDeque<Room>> {
        let (mut rooms, mut missing) = (VecDeque::new(), len.next_multiple_of(source.grain()));
        while missing > 0 {
            let spare = self.0.borrow_mut().pop();
            let mut room = match spare {
                Some(room) => room,
                None => source.take_room(missing).await?,
            };
            self.keep(split_off(&mut room, missing));
            missing -= room.len;
            rooms.push_back(room);
        }
        Ok(rooms)
    }

    fn keep(&self, room: Option<Room>) {
        self.0.borrow_mut().extend(room);
    }
}

impl Copy<'_> {
    /// Lets a thread of the pool write a piece to `rooms`, where the target has it, in grains of `grain` bytes.
    pub(super) async fn overwrite(
        &self,
        piece: &Piece,
        grain: u64,
        mut rooms: Vec<Room>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        rooms.iter_mut().for_each(|room| room.untouched |= self.options.target_is_new);
        if let Some(job) = self.run(piece, grain, Rooms::InPlace(rooms), scratch).await? {
            self.zero_all(piece, &job).await?;
            scratch.put(job.bytes);
        }
        Ok(())
    }

    /// Lets a thread of the pool move a piece into `rooms`, new ones from `source`.
    pub(super) async fn fill(
        &self,
        piece: &Piece,
        source: &dyn NewRoom,
        rooms: VecDeque<Room>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        match self.run(piece, source.grain(), Rooms::New(rooms.clone()), scratch).await {
            Ok(Some(job)) => {
                let done = self.show(piece, source, &job).await;
                scratch.put(job.bytes);
                job.rooms.into_new().for_each(|room| self.spare.keep(Some(room)));
                done
            }
            salvaged_or_failed => {
                rooms.into_iter().for_each(|room| source.give_back(room));
                salvaged_or_failed.map(drop)
            }
        }
    }

    /// Lets a thread of the pool move a piece; `None` if it could not be read in one go and was salvaged. What only a
    /// driver can read is read here.
    async fn run(
        &self,
        piece: &Piece,
        grain: u64,
        rooms: Rooms,
        scratch: &mut Scratch,
    ) -> Result<Option<Job>> {
        if piece.place.is_none() {
            self.read_bytes(piece, piece.len.next_multiple_of(grain), scratch).await?;
        }
        let job = Job {
            source: piece.place.clone(),
            len: piece.len,
            position: piece.to,
            block: piece_len(self.options, grain).max(BLOCK),
            sparse: self.options.shortest_zeros(grain),
            offload: self.offload,
            grain,
            rooms,
            shown: Vec::new(),
            zeros: Vec::new(),
            bytes: scratch.take()?,
        };
        let permit = self.threads.acquire().await;
        let moved = self.engine.offload(move || job.run()).await;
        drop(permit);
        match moved {
            Ok(job) => Ok(Some(job)),
            Err(broken) if broken.reading && self.options.salvage => {
                self.copy_through(piece, scratch).await.map(|()| None)
            }
            Err(broken) => Err(broken.told(piece)),
        }
    }

    async fn show(&self, piece: &Piece, source: &dyn NewRoom, job: &Job) -> Result<()> {
        for shown in &job.shown {
            let at = piece.to + shown.start;
            let done = source.show(at, shown.len, shown.place).await;
            done.map_err(|error| failed("writing", at, error))?;
        }
        self.zero_all(piece, job).await
    }

    async fn zero_all(&self, piece: &Piece, job: &Job) -> Result<()> {
        for zeros in &job.zeros {
            self.zero(piece.to + zeros.start, zeros.end - zeros.start).await?;
        }
        Ok(())
    }

    /// Gives back what nobody took.
    pub(super) fn give_back_spare(&self) {
        if let Some(source) = self.filling.and_then(|filling| filling.new_room()) {
            self.spare.0.take().into_iter().for_each(|room| source.give_back(room));
        }
    }

    /// Lets a thread of the pool compress a piece; `store` gets what comes out in the order of the disk.
    pub(super) async fn pack(
        &self,
        piece: &Piece,
        place: Place,
        store: &dyn NewRoom,
        packer: Packer,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut room = scratch.take()?;
        let (len, to, grain) = (piece.len as usize, piece.to, store.grain());
        let sparse = self.options.shortest_zeros(grain);
        let job = move || -> Moved<_> {
            let bytes = room.first(len.next_multiple_of(grain as usize));
            place.read(0, &mut bytes[..len]).map_err(|error| Broken { reading: true, at: 0, error })?;
            // What lies behind the end of the disk reads as zeros, should it grow.
            bytes[len..].fill(0);
            let runs = find_runs(&bytes[..len], to, sparse);
            let data = data_grains(&runs, grain);
            let grains = data.iter().flat_map(|range| range.clone().step_by(grain as usize));
            let packed = grains.map(|at| (at, packer(&bytes[at as usize..(at + grain) as usize])));
            Ok((packed.collect::<Vec<_>>(), gaps(&data, len as u64), room))
        };
        let (packed, zeros, mut room) = match self.engine.offload(job).await {
            Ok(packed) => packed,
            Err(_) if self.options.salvage => return self.copy_through(piece, scratch).await,
            Err(broken) => return Err(broken.told(piece)),
        };
        if !self.options.out_of_order {
            self.turns.wait(piece.turn).await;
        }
        let bytes = room.first(len);
        for (start, packed) in packed {
            let (at, end) = (to + start, (start + grain).min(piece.len));
            let done = match packed {
                Some(packed) => store.write_packed(at, &packed).await,
                None => self.write_plain(at, &bytes[start as usize..end as usize]).await,
            };
            done.map_err(|error| failed("writing", at, error))?;
        }
        for zeros in zeros {
            self.zero(to + zeros.start, zeros.end - zeros.start).await?;
        }
        scratch.put(room);
        Ok(())
    }

    async fn write_plain(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.target.write(at, &Buffer::from_bytes(bytes).iov(bytes.len())).await
    }
}
