//! Copying the content of images into another one: holes are never read, runs of zeros never written as data.
//!
//! ```text
//!   sources ─ allocation status ─▶ Plan: pieces ──▶ worker 1 ─ read, look for zeros, wait for its turn ─▶ target
//!                                    (one lock)  └─▶ worker n ─ …
//! ```
//!
//! Each worker owns one buffer, so memory is bounded by workers times `MAX_PIECE`. Unless the writes may come
//! out of order, a piece is written when all before it are: the target then grows like a file that is written
//! from start to end.

use super::pieces::{PIECE, STATUS_REACH};
use super::{SECTOR, cluster_size, is_zero, layer_status, write_clusters};
use crate::block::graph::Node;
use crate::block::graph::status::chain_status;
use crate::block::{Buffer, Error, Iov, Kind, Result};
use async_lock::Mutex;
use futures_util::future::try_join_all;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Largest piece, where zeros are only looked for in longer runs.
const MAX_PIECE: u64 = 2 << 20;
/// What progress is counted in, in bytes.
const STEP: u64 = 2 << 20;

/// How to copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    /// Shortest run of zeros within data that is left out, in bytes; 0 writes everything, zeros too.
    pub sparse: u64,
    /// How many pieces are in flight.
    pub workers: usize,
    /// Write pieces as they come.
    pub out_of_order: bool,
    /// Write whole clusters of the target compressed; those come out of order, so that all processors compress.
    pub compress: bool,
    /// The target reads as zeros where nothing was written to it.
    pub target_is_zero: bool,
    /// Size of the target's backing file: what the source's top layer does not have is left to it.
    pub target_backing: Option<u64>,
}

/// Copies the disks of `sources`, one behind the other, to the start of `target`. `progress` hears how many of
/// how many bytes are done.
///
/// # Errors
/// The first failed read or write.
pub async fn copy(
    sources: &[Rc<Node>],
    target: &Rc<Node>,
    options: &CopyOptions,
    progress: Option<&dyn Fn(u64, u64)>,
) -> Result<()> {
    let grain = if options.compress { cluster_size(target) } else { SECTOR };
    let mut total = 0;
    if progress.is_some() {
        let mut plan = Plan::new(sources, options, grain);
        while let Some(piece) = plan.next().await? {
            total += piece.counts;
        }
    }
    let copy = Copy {
        target,
        options,
        progress,
        total,
        done: Cell::new(0),
        plan: Mutex::new(Plan::new(sources, options, grain)),
        grain,
        turns: Turns::default(),
    };
    try_join_all((0..options.workers.max(1)).map(|_| copy.work())).await.map(drop)
}

/// The size that the disks of `sources` have together.
pub fn total_size(sources: &[Rc<Node>]) -> u64 {
    sources.iter().map(|source| disk_size(source)).fold(0, u64::saturating_add)
}

fn disk_size(source: &Node) -> u64 {
    source.size().next_multiple_of(SECTOR)
}

/// What is to be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Read it and write it.
    Data,
    /// Make it zero.
    Zero,
    /// Leave it to the target's backing file.
    Backing,
}

/// A range to copy.
struct Piece {
    source: Rc<Node>,
    from: u64,
    to: u64,
    len: u64,
    content: Content,
    /// Its place in the order of writes.
    turn: u64,
    /// How much progress starting it means, in bytes.
    counts: u64,
}

/// Cuts the sources into pieces.
struct Plan<'a> {
    sources: &'a [Rc<Node>],
    options: &'a CopyOptions,
    /// What runs begin and end at multiples of on the target, in bytes.
    grain: u64,
    /// What the first source is best read in, in bytes.
    cluster: u64,
    /// Where the first source that is left starts on the target.
    base: u64,
    /// Position in that source.
    at: u64,
    /// What was found out about the bytes from `at` to its end.
    known: Option<(u64, Content)>,
    /// Up to where progress was counted, in that source.
    counted: u64,
    turn: u64,
}

impl<'a> Plan<'a> {
    fn new(sources: &'a [Rc<Node>], options: &'a CopyOptions, grain: u64) -> Plan<'a> {
        let cluster = sources.first().map_or(SECTOR, |source| cluster_size(source));
        Plan { sources, options, grain, cluster, base: 0, at: 0, known: None, counted: 0, turn: 0 }
    }

    async fn next(&mut self) -> Result<Option<Piece>> {
        while let Some(source) = self.sources.first().cloned() {
            let size = disk_size(&source);
            if self.at == size {
                let next = Plan::new(&self.sources[1..], self.options, self.grain);
                *self = Plan { base: self.base + size, turn: self.turn, ..next };
                continue;
            }
            let (end, content) = self.look(&source, size).await?;
            return Ok(Some(self.cut(source, end, content)));
        }
        Ok(None)
    }

    /// The first piece of the run that ends at `end`.
    fn cut(&mut self, source: Rc<Node>, end: u64, content: Content) -> Piece {
        let mut piece = Piece {
            source,
            from: self.at,
            to: self.base + self.at,
            len: end - self.at,
            content,
            turn: self.turn,
            counts: 0,
        };
        if content == Content::Data {
            let phase = if self.options.compress { piece.to } else { self.at };
            piece.len = piece.len.min(self.piece_len() - phase % self.piece_len());
            if self.at >= self.counted {
                piece.counts = (end - self.at).min(STEP);
                self.counted = self.at + piece.counts;
            }
        }
        self.turn += 1;
        self.at += piece.len;
        piece
    }

    /// Long enough that a run of zeros of the wanted length can be seen in it.
    fn piece_len(&self) -> u64 {
        self.options.sparse.next_power_of_two().clamp(PIECE, MAX_PIECE).max(self.grain)
    }

    /// What starts at the current position, and where it ends.
    async fn look(&mut self, source: &Rc<Node>, size: u64) -> Result<(u64, Content)> {
        if let Some(known) = self.known.filter(|(end, _)| *end > self.at) {
            return Ok(known);
        }
        let (at, len) = (self.at, (size - self.at).min(STATUS_REACH));
        let (len, content) = if at >= source.size() {
            (len, Content::Zero)
        } else if let Some(backing) = self.options.target_backing {
            self.look_at_layer(source, len, backing).await?
        } else {
            let status = chain_status(source, at, len).await?;
            let zero = status.status.zero;
            (status.len, if zero { Content::Zero } else { Content::Data })
        };
        // Whole sectors: a run that ends inside of one ends with it. Whole clusters where that leaves something:
        // none is read twice.
        let end = (at + len).next_multiple_of(SECTOR).min(size);
        let tail = end % self.cluster;
        let end = if end - at > tail { end - tail } else { end };
        let all = content == Content::Zero && self.options.sparse == 0;
        let known = self.whole_grains(end, size, if all { Content::Data } else { content });
        self.known = Some(known);
        Ok(known)
    }

    /// A run that begins at the current position and ends at `end`, with whole grains of the target: those that
    /// are data in part count as data.
    fn whole_grains(&self, end: u64, size: u64, content: Content) -> (u64, Content) {
        let tail = (self.base + end) % self.grain;
        match content {
            _ if tail == 0 || end == size => (end, content),
            Content::Zero | Content::Backing if end - self.at > tail => (end - tail, content),
            _ => ((end + self.grain - tail).min(size), Content::Data),
        }
    }

    /// As [`Plan::look`], of the source's top layer only; the target has a backing file of size `backing`.
    async fn look_at_layer(&self, source: &Node, len: u64, backing: u64) -> Result<(u64, Content)> {
        let position = self.base + self.at;
        let len = if position < backing { len.min(backing - position) } else { len };
        let status = layer_status(source, self.at, len).await?;
        let content = match (status.zero, status.data) {
            // Behind the end of the target's backing file is nothing but zeros.
            (true, _) if position >= backing => Content::Backing,
            (true, _) => Content::Zero,
            (false, true) => Content::Data,
            (false, false) if status.allocated => Content::Data,
            (false, false) => Content::Backing,
        };
        Ok((status.len, content))
    }
}

/// A copy that is under way.
struct Copy<'a> {
    target: &'a Rc<Node>,
    options: &'a CopyOptions,
    progress: Option<&'a dyn Fn(u64, u64)>,
    total: u64,
    done: Cell<u64>,
    plan: Mutex<Plan<'a>>,
    grain: u64,
    turns: Turns,
}

impl Copy<'_> {
    async fn work(&self) -> Result<()> {
        let mut buffer = Buffer::new(0);
        let mut room = 0;
        while let Some(piece) = self.next().await? {
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            if piece.content == Content::Data && len > room {
                (buffer, room) = (Buffer::new(len), len);
            }
            self.copy_piece(&piece, &mut buffer).await?;
            self.turns.finish(piece.turn);
        }
        Ok(())
    }

    async fn next(&self) -> Result<Option<Piece>> {
        let mut plan = self.plan.lock().await;
        let Some(piece) = plan.next().await? else { return Ok(None) };
        if let (Some(progress), true) = (self.progress, piece.counts > 0) {
            self.done.set(self.done.get() + piece.counts);
            progress(self.done.get(), self.total);
        }
        Ok(Some(piece))
    }

    async fn copy_piece(&self, piece: &Piece, buffer: &mut Buffer) -> Result<()> {
        let runs = match piece.content {
            Content::Backing => return Ok(()),
            Content::Zero => vec![(0..piece.len, false)],
            Content::Data => self.read(piece, buffer).await?,
        };
        if !(self.options.out_of_order || self.options.compress) {
            self.turns.wait(piece.turn).await;
        }
        for (run, data) in runs {
            let (at, len) = (piece.to + run.start, run.end - run.start);
            if data {
                // The piece fits into memory, so its parts do.
                let iov = buffer.iov(piece.len as usize).slice(run.start as usize, len as usize);
                self.write(at, &iov).await.map_err(|error| failed("writing", at, error))?;
            } else if !self.options.target_is_zero {
                let done = self.target.write_zeroes(at, len, true).await;
                done.map_err(|error| failed("writing", at, error))?;
            }
        }
        Ok(())
    }

    /// Writes data, whole clusters compressed if that is wanted; where sources meet inside of a cluster, neither has
    /// all of it.
    async fn write(&self, at: u64, from: &Iov) -> Result<()> {
        match self.options.compress {
            true => write_clusters(self.target, self.grain, at, from).await,
            false => self.target.write(at, from).await,
        }
    }

    /// Reads a piece and finds its runs of zeros.
    async fn read(&self, piece: &Piece, buffer: &mut Buffer) -> Result<Vec<(Range<u64>, bool)>> {
        let iov = buffer.iov(piece.len as usize);
        piece.source.read(piece.from, &iov).await.map_err(|error| failed("reading", piece.from, error))?;
        drop(iov);
        if self.options.sparse == 0 {
            return Ok(vec![(0..piece.len, true)]);
        }
        let bytes = buffer.bytes().ok_or_else(|| Error::new(Kind::Io, "a finished read holds its buffer"))?;
        let bytes = &bytes[..piece.len as usize];
        Ok(find_runs(bytes, piece.to, self.options.sparse.max(self.grain)))
    }
}

fn failed(doing: &str, at: u64, error: Error) -> Error {
    error.context(format!("error while {doing} at byte {at}"))
}

/// Cuts `bytes`, which stand at `position`, into runs of data (true) and of zeros, the latter at least
/// `sparse` bytes long unless they are all of it, and aligned so.
fn find_runs(bytes: &[u8], position: u64, sparse: u64) -> Vec<(Range<u64>, bool)> {
    // The largest power of two up to the wanted length.
    let grain = 1 << sparse.max(SECTOR).ilog2();
    let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
    let (mut at, end) = (0, bytes.len() as u64);
    while at < end {
        let next = (at + grain - (position + at) % grain).min(end);
        let data = !is_zero(&bytes[at as usize..next as usize]);
        match runs.last_mut() {
            Some((run, kind)) if *kind == data => run.end = next,
            _ => runs.push((at..next, data)),
        }
        at = next;
    }
    runs
}

/// Lets each worker write when all pieces before its own are written.
#[derive(Default)]
struct Turns {
    next: Cell<u64>,
    /// Finished before their turn.
    early: RefCell<BTreeSet<u64>>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Turns {
    async fn wait(&self, turn: u64) {
        poll_fn(|cx| {
            if self.next.get() == turn {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().insert(turn, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn finish(&self, turn: u64) {
        self.early.borrow_mut().insert(turn);
        while self.early.borrow_mut().remove(&self.next.get()) {
            self.next.set(self.next.get() + 1);
        }
        if let Some(waker) = self.waiting.borrow_mut().remove(&self.next.get()) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_runs_are_aligned_and_cover_the_piece_without_gaps() {
        let mut bytes = vec![0; 5 * 4096 + 100];
        bytes[4096 + 7] = 1;
        bytes[4 * 4096] = 1;
        let (a, b, end) = (4096, 4 * 4096, bytes.len() as u64);
        let expect =
            vec![(0..a, false), (a..2 * a, true), (2 * a..b, false), (b..b + a, true), (b + a..end, false)];
        assert_eq!(find_runs(&bytes, 0, 4096), expect);
        // From another position the grain falls elsewhere.
        let runs = find_runs(&bytes, 512, 4096);
        assert_eq!(runs[0], (0..4096 - 512, false));
        assert_eq!(runs[1], (4096 - 512..2 * 4096 - 512, true));
    }

    #[test]
    fn turns_come_in_order_whatever_the_order_of_finishing() {
        let turns = Turns::default();
        turns.finish(1);
        turns.finish(2);
        assert_eq!(turns.next.get(), 0);
        turns.finish(0);
        assert_eq!(turns.next.get(), 3);
    }
}
