//! Going through a disk piece by piece, several pieces in flight, in no order.
//!
//! ```text
//!   pieces, one after the other ──▶ worker 1: a buffer of its own, one piece at a time
//!                               └─▶ worker n: …
//! ```
//! Memory is bounded by [`WORKERS`] buffers.

use crate::block::aio::Engine;
use crate::block::{AlignedBytes, Buffer, Error, Iov, Kind, Result};
use async_lock::Mutex;
use futures_util::future::join_all;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Pieces in flight.
const WORKERS: usize = 8;
/// A piece of data, in bytes: it stays in the processor's cache between read and write.
pub(super) const PIECE: u64 = 256 << 10;
/// How far one question for the allocation status reaches, in bytes.
pub(super) const STATUS_REACH: u64 = 1 << 30;

/// What hands out pieces.
pub(super) trait Pieces {
    /// What is to be done with a piece.
    type Piece;

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Self::Piece>>;
}

/// Does `work` on all pieces. After an error no further piece begins, but those in flight come to their end: none of
/// their requests may reach a file that someone has closed.
///
/// # Errors
/// The first one.
pub(super) async fn in_flight<P: Pieces>(
    pieces: P,
    work: impl AsyncFn(P::Piece, &mut Scratch) -> Result<()>,
) -> Result<()> {
    let (pieces, failed) = (Mutex::new(pieces), Cell::new(false));
    let worker = async || {
        let mut scratch = Scratch::default();
        while !failed.get() {
            let done = match pieces.lock().await.next().await {
                Ok(None) => return Ok(()),
                Ok(Some(piece)) => work(piece, &mut scratch).await,
                Err(error) => Err(error),
            };
            if done.is_err() {
                failed.set(true);
                return done;
            }
        }
        Ok(())
    };
    join_all((0..WORKERS).map(|_| worker())).await.into_iter().collect()
}

/// A worker's buffer, as large as its largest piece was.
#[derive(Default)]
pub(super) struct Scratch(Option<Buffer>);

impl Scratch {
    /// The first `len` bytes. What they hold is left from the last piece.
    pub(super) fn iov(&mut self, len: usize) -> Iov {
        self.0.take_if(|buffer| buffer.len() < len);
        self.0.get_or_insert_with(|| Buffer::new(len)).iov(len)
    }

    /// The bytes that were read, when no [`Iov`] of them is about any more.
    pub(super) fn bytes(&mut self) -> Result<&[u8]> {
        let bytes = self.0.as_mut().and_then(Buffer::bytes);
        bytes.map(|bytes| &*bytes).ok_or_else(|| Error::new(Kind::Io, "a finished read holds its buffer"))
    }

    /// The memory with what was read, for another thread, when no [`Iov`] of it is about any more.
    pub(super) fn take(&mut self) -> Result<AlignedBytes> {
        self.0.take().map_or_else(|| Ok(AlignedBytes::default()), Buffer::into_bytes)
    }

    /// Memory for the next piece.
    pub(super) fn put(&mut self, bytes: AlignedBytes) {
        self.0 = Some(bytes.into());
    }
}

/// Keeps a copy from being faster than its user wants.
pub(super) struct Pace {
    engine: Rc<Engine>,
    /// Bytes a second; 0 for as fast as may be.
    rate: u64,
    begun: Instant,
    done: Cell<u64>,
}

impl Pace {
    pub(super) fn new(engine: &Rc<Engine>, rate: u64) -> Pace {
        Pace { engine: engine.clone(), rate, begun: Instant::now(), done: Cell::new(0) }
    }

    /// Waits until `bytes` more may be copied.
    pub(super) async fn wait(&self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let due = Duration::from_secs_f64(self.done.get() as f64 / self.rate as f64);
        self.done.set(self.done.get() + bytes);
        self.engine.sleep(due.saturating_sub(self.begun.elapsed())).await;
    }
}
