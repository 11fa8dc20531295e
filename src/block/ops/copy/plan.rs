//! What is to be copied: the sources, cut into pieces of one kind each.

use super::super::pieces::{PIECE, STATUS_REACH};
use super::super::place::{Place, place_of};
use super::super::{SECTOR, cluster_size, layer_status};
use super::{CopyOptions, Layers, Reports};
use crate::block::graph::status::status_above;
use crate::block::graph::{BlockStatus, Node};
use crate::block::{Error, Result};
use std::rc::Rc;

/// Largest piece that goes through memory as a whole, where zeros are only looked for in longer runs.
const MAX_PIECE: u64 = 2 << 20;
/// What progress is counted in, and what a thread of the pool copies at once, in bytes.
const STEP: u64 = 2 << 20;

/// What is to be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Read it and write it.
    Data,
    /// Make it zero.
    Zero,
    /// Leave it as the target has it, or its backing file.
    Backing,
}

/// A range to copy.
pub(super) struct Piece {
    pub(super) source: Rc<Node>,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) len: u64,
    pub(super) content: Content,
    /// Where its bytes are, if they are data that any thread can read.
    pub(super) place: Option<Place>,
    /// Its place in the order of writes.
    pub(super) turn: u64,
    /// How much progress starting it means, in bytes.
    pub(super) counts: u64,
}

/// How pieces are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// What pieces begin and end at multiples of on the target, in bytes.
    pub(super) grain: u64,
    /// Data whose place is known goes in long pieces: they need no memory as a whole.
    pub(super) long: bool,
}

/// A run of bytes of a source that are alike.
#[derive(Clone)]
struct Run {
    start: u64,
    end: u64,
    content: Content,
    /// Where its first bytes are, up to `place_end`.
    place: Option<Place>,
    place_end: u64,
}

/// Cuts the sources into pieces.
pub(super) struct Plan<'a> {
    sources: &'a [Rc<Node>],
    options: &'a CopyOptions,
    reports: &'a Reports<'a>,
    cut: Cut,
    /// What the first source is best read in, in bytes.
    cluster: u64,
    /// Where the first source that is left starts on the target.
    base: u64,
    /// Position in that source.
    at: u64,
    /// What was found out about the bytes around `at`.
    known: Option<Run>,
    /// Up to where progress was counted, in that source.
    counted: u64,
    turn: u64,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        sources: &'a [Rc<Node>],
        options: &'a CopyOptions,
        reports: &'a Reports<'a>,
        cut: Cut,
    ) -> Plan<'a> {
        let cluster = sources.first().map_or(SECTOR, |source| cluster_size(source));
        Plan { sources, options, reports, cut, cluster, base: 0, at: 0, known: None, counted: 0, turn: 0 }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Piece>> {
        while let Some(source) = self.sources.first().cloned() {
            let size = disk_size(&source);
            if self.at == size {
                let next = Plan::new(&self.sources[1..], self.options, self.reports, self.cut);
                *self = Plan { base: self.base + size, turn: self.turn, ..next };
                continue;
            }
            let run = self.look(&source, size).await?;
            return Ok(Some(self.cut(source, &run)));
        }
        Ok(None)
    }

    /// The first piece of what is left of a run.
    fn cut(&mut self, source: Rc<Node>, run: &Run) -> Piece {
        let (at, end) = (self.at, run.end);
        let mut piece = Piece {
            source,
            from: at,
            to: self.base + at,
            len: end - at,
            content: run.content,
            place: None,
            turn: self.turn,
            counts: 0,
        };
        if run.content == Content::Data {
            self.cut_data(&mut piece, run);
            // Steps begin where the run does, and pieces at whole grains: no piece has two beginnings in it.
            let step = self.counted.max(run.start);
            if step < at + piece.len {
                piece.counts = (end - step).min(STEP);
                self.counted = step + piece.counts;
            }
        }
        self.turn += 1;
        self.at += piece.len;
        piece
    }

    /// Data of a known place first, as long as there is any.
    fn cut_data(&self, piece: &mut Piece, run: &Run) {
        let place_end = run.place_end.saturating_sub((self.base + run.place_end) % self.cut.grain);
        if run.place.is_some() && place_end > piece.from {
            piece.place = run.place.as_ref().map(|place| place.skip(piece.from - run.start));
            piece.len = place_end - piece.from;
        }
        let longest = if piece.place.is_some() && self.cut.long { STEP } else { self.piece_len() };
        piece.len = piece.len.min(longest - piece.to % longest);
    }

    /// Long enough that a run of zeros of the wanted length can be seen in it.
    fn piece_len(&self) -> u64 {
        piece_len(self.options, self.cut.grain)
    }

    /// What starts at the current position.
    async fn look(&mut self, source: &Rc<Node>, size: u64) -> Result<Run> {
        if let Some(known) = self.known.clone().filter(|run| run.end > self.at) {
            return Ok(known);
        }
        let (at, len) = (self.at, (size - self.at).min(STATUS_REACH));
        let mut status = self.status(source, len).await;
        if status.is_err() && self.options.salvage {
            // Only the sectors that cannot be told of are lost.
            status = self.status(source, SECTOR).await;
        }
        let (status, content) = match status {
            Ok(found) => found,
            Err(error) if self.options.salvage => {
                (self.reports.warn)("reading block status at", at, &error);
                (None, Content::Data)
            }
            Err(error) => {
                return Err(error.context(format!("error while reading block status at offset {at}")));
            }
        };
        let len = status.as_ref().map_or(len.min(SECTOR), |status| status.len);
        // Whole sectors: a run that ends inside of one ends with it. Whole clusters where that leaves something:
        // none is read twice.
        let end = (at + len).next_multiple_of(SECTOR).min(size);
        let tail = end % self.cluster;
        let end = if end - at > tail { end - tail } else { end };
        // A whole disk can be written as it reads; of layers, zeros are what the upper ones say of the lower ones.
        let above = matches!(self.options.layers, Layers::Above(_));
        let all = content == Content::Zero && self.options.sparse == 0 && !above;
        let (end, content) = self.whole_grains(end, size, if all { Content::Data } else { content });
        let place = status.as_ref().and_then(place_of);
        let run = Run { start: at, end, content, place, place_end: end.min(at + len) };
        self.known = Some(run.clone());
        Ok(run)
    }

    /// What starts at the current position, as far as the sources can tell; no status is zeros past the end.
    async fn status(&self, source: &Rc<Node>, len: u64) -> Result<(Option<BlockStatus>, Content)> {
        if self.at >= source.size() {
            return Ok((None, Content::Zero));
        }
        let base = match &self.options.layers {
            Layers::All => None,
            Layers::Above(base) => Some(base),
            Layers::Top(backing) => {
                let (status, content) = self.look_at_layer(source, len, *backing).await?;
                return Ok((Some(status), content));
            }
        };
        let chain = status_above(source, base, self.at, len).await?;
        let content = match (base, chain.status.allocated) {
            (Some(_), false) => Content::Backing,
            _ if chain.status.zero => Content::Zero,
            _ => Content::Data,
        };
        Ok((Some(BlockStatus { len: chain.len, ..chain.status }), content))
    }

    /// A run that begins at the current position and ends at `end`, with whole grains of the target: those that
    /// are data in part count as data.
    fn whole_grains(&self, end: u64, size: u64, content: Content) -> (u64, Content) {
        let (grain, tail) = (self.cut.grain, (self.base + end) % self.cut.grain);
        match content {
            _ if tail == 0 || end == size => (end, content),
            Content::Zero | Content::Backing if end - self.at > tail => (end - tail, content),
            _ => ((end + grain - tail).min(size), Content::Data),
        }
    }

    /// As [`Plan::status`], of the source's top layer only; the target has a backing file of size `backing`.
    async fn look_at_layer(&self, source: &Node, len: u64, backing: u64) -> Result<(BlockStatus, Content)> {
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
        Ok((status, content))
    }
}

/// What data is looked at in, in bytes: long enough that a run of zeros of the wanted length can be seen.
pub(in crate::block::ops) fn piece_len(options: &CopyOptions, grain: u64) -> u64 {
    options.sparse.next_power_of_two().clamp(PIECE, MAX_PIECE).max(grain)
}

/// A disk's size in whole sectors.
pub(super) fn disk_size(source: &Node) -> u64 {
    source.size().next_multiple_of(SECTOR)
}

/// What failed, with its place.
pub(super) fn failed(doing: &str, at: u64, error: Error) -> Error {
    error.context(format!("error while {doing} at byte {at}"))
}
