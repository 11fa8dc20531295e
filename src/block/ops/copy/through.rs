//! Pieces that go through the nodes: the driver must see the bytes, or the target does.

use super::super::pieces::Scratch;
use super::super::{SECTOR, write_clusters};
use super::Copy;
use super::plan::{Content, Piece, failed};
use super::runs::{Run, find_runs};
use crate::block::{Error, Iov, Kind, Result};

/// Who hears of a copy.
pub struct Reports<'a> {
    /// How many of how many bytes are done.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
    /// What could not be read, where that is no reason to stop: what was done, where, and why it failed.
    pub warn: &'a dyn Fn(&str, u64, &Error),
}

impl Copy<'_> {
    pub(super) async fn copy_through(&self, piece: &Piece, scratch: &mut Scratch) -> Result<()> {
        let runs = match piece.content {
            Content::Backing => return Ok(()),
            Content::Zero => vec![(0..piece.len, false)],
            Content::Data => self.read(piece, scratch).await?,
        };
        // Who compresses does so as part of the write: all at once then.
        if !(self.options.out_of_order || self.options.compress) {
            self.turns.wait(piece.turn).await;
        }
        for (run, data) in runs {
            let (at, len) = (piece.to + run.start, run.end - run.start);
            if data {
                // The piece fits into memory, so its parts do.
                let iov = scratch.iov(piece.len as usize).slice(run.start as usize, len as usize);
                self.write(at, &iov).await.map_err(|error| failed("writing", at, error))?;
            } else {
                self.zero(at, len).await?;
            }
        }
        Ok(())
    }

    /// Makes a range of the target zero, if it is not.
    pub(super) async fn zero(&self, at: u64, len: u64) -> Result<()> {
        if self.options.target_is_zero {
            return Ok(());
        }
        self.target.write_zeroes(at, len, true).await.map_err(|error| failed("writing", at, error))
    }

    /// Writes data, whole clusters compressed if that is wanted; where sources meet inside of a cluster, neither has
    /// all of it.
    async fn write(&self, at: u64, from: &Iov) -> Result<()> {
        match self.options.compress {
            true => {
                self.check_unallocated(at, from.len() as u64).await?;
                write_clusters(self.target, self.grain, at, from).await
            }
            false => self.target.write(at, from).await,
        }
    }

    /// Clusters that have data or a place already cannot become compressed ones, as in qemu-img.
    async fn check_unallocated(&self, at: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while !self.options.target_is_new && done < len {
            let status = self.target.block_status(at + done, len - done).await?;
            if status.data || status.mapped.is_some() {
                return Err(
                    Error::new(Kind::Io, "Input/output error").remedy("convert to a new image: leave out -n")
                );
            }
            done += status.len;
        }
        Ok(())
    }

    /// Reads a piece and finds its runs of zeros.
    async fn read(&self, piece: &Piece, scratch: &mut Scratch) -> Result<Vec<Run>> {
        self.read_bytes(piece, piece.len, scratch).await?;
        let bytes = &scratch.bytes()?[..piece.len as usize];
        Ok(find_runs(bytes, piece.to, self.options.shortest_zeros(self.grain)))
    }

    /// Reads a piece into memory of `room` bytes.
    pub(super) async fn read_bytes(&self, piece: &Piece, room: u64, scratch: &mut Scratch) -> Result<()> {
        let iov = scratch.iov(room as usize).slice(0, piece.len as usize);
        let done = piece.source.read(piece.from, &iov).await;
        match done {
            Err(_) if self.options.salvage => {
                // In the order of the disk, as they are told.
                self.turns.wait(piece.turn).await;
                self.read_sectors(piece, &iov).await;
                Ok(())
            }
            done => done.map_err(|error| failed("reading", piece.from, error)),
        }
    }

    /// Reads sector by sector; those that cannot be read are zeros.
    async fn read_sectors(&self, piece: &Piece, into: &Iov) {
        for at in (0..piece.len).step_by(SECTOR as usize) {
            let sector = into.slice(at as usize, SECTOR as usize);
            if let Err(error) = piece.source.read(piece.from + at, &sector).await {
                (self.reports.warn)("reading", piece.from + at, &error);
                sector.fill(0, sector.len(), 0);
            }
        }
    }
}
