//! The checksum of a disk: SHA-256 of all its bytes as a guest reads them, from the first to the last. It depends on
//! nothing but the content: not on the format, on what is allocated, compressed, encrypted, or in which image of a
//! chain it stands. `sha256sum` of the disk as a raw image is the same.
//!
//! ```text
//!   extents ─▶ pieces in order ─┬▶ pool: read ──┬─ in order ─▶ pool: hash
//!                               └▶ pool: read ──┘
//! ```
//! A hash has one chain of blocks and runs on one thread; the pieces behind are read meanwhile. Zeros are hashed
//! but not read. Memory: a few pieces of 1 MiB.

use super::place::{Extent, Place};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::{Error, Result};
use futures_util::stream::{FuturesOrdered, StreamExt};
use sha2::{Digest, Sha256};
use std::future::Future;
use std::rc::Rc;

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;
/// Zeros that are hashed at once: long enough for few steps, short enough for progress.
const ZEROS: u64 = 16 << 20;
/// Zeros are hashed from a block of so many bytes.
const BLOCK: usize = 64 << 10;
/// Pieces that are being read or wait for the hash.
const IN_FLIGHT: usize = 4;

/// Bytes of the disk, in order.
enum Piece {
    Data(Vec<u8>),
    Zeros(u64),
}

/// The SHA-256 of the disk of `node`. `progress` hears how many bytes are done.
///
/// # Errors
/// The first failed read.
pub async fn checksum(engine: &Engine, node: &Rc<Node>, progress: &dyn Fn(u64)) -> Result<[u8; 32]> {
    let mut walk = Walk { node, at: 0, extent: None };
    let (mut pieces, mut hash, mut done) = (FuturesOrdered::new(), Sha256::new(), 0);
    loop {
        while pieces.len() < IN_FLIGHT
            && let Some(piece) = walk.next(engine).await?
        {
            pieces.push_back(piece);
        }
        let Some(piece) = pieces.next().await else { return Ok(hash.finalize().into()) };
        let piece = piece?;
        done += piece.len();
        hash = engine.offload(move || piece.add_to(hash)).await;
        progress(done);
    }
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Piece::Data(bytes) => bytes.len() as u64,
            Piece::Zeros(len) => *len,
        }
    }

    fn add_to(&self, mut hash: Sha256) -> Sha256 {
        match self {
            Piece::Data(bytes) => hash.update(bytes),
            Piece::Zeros(len) => {
                let block = [0; BLOCK];
                (0..*len)
                    .step_by(BLOCK)
                    .for_each(|at| hash.update(&block[..(*len - at).min(BLOCK as u64) as usize]));
            }
        }
        hash
    }
}

/// Cuts a disk into pieces.
struct Walk<'a> {
    node: &'a Rc<Node>,
    at: u64,
    /// The last extent that was looked at.
    extent: Option<Extent>,
}

impl Walk<'_> {
    /// The next piece, still to be read.
    async fn next<'e>(
        &mut self,
        engine: &'e Engine,
    ) -> Result<Option<impl Future<Output = Result<Piece>> + use<'e>>> {
        let at = self.at;
        if at >= self.node.size() {
            return Ok(None);
        }
        let extent = match self.extent.take().filter(|extent| at < extent.end()) {
            Some(extent) => extent,
            None => Extent::at(self.node, at).await?,
        };
        let place = extent.place_at(at);
        let most = if matches!(place, Some(Place::Zeros)) { ZEROS } else { PIECE };
        let len = most.min(extent.end() - at);
        self.at += len;
        self.extent = Some(extent);
        let node = self.node.clone();
        Ok(Some(async move {
            match place {
                Some(Place::Zeros) => Ok(Piece::Zeros(len)),
                Some(place) => {
                    engine.offload(move || read_place(&place, len as usize)).await.map(Piece::Data)
                }
                None => node.read_bytes(at, len as usize).await.map(Piece::Data),
            }
        }))
    }
}

fn read_place(place: &Place, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    place.read(0, &mut bytes).map_err(Error::from_io)?;
    Ok(bytes)
}
