//! Putting an overlay over another backing file, its disk unchanged.
//!
//! ```text
//!                overlay has it │ old and new have the same │  they differ: the old one's bytes go into the overlay
//!   overlay      ▓▓▓▓▓▓▓▓▓▓▓▓▓▓ │                           │  ▓▓▓▓▓▓▓▓▓
//!   old backing                 │  ░░░░░ (where allocated   │  ████████
//!   new backing                 │  ░░░░░  says so, unread)  │  ████████
//! ```
//! What is written to the overlay is what it shows anyway, so that it keeps its disk at every moment; the name of the
//! backing file changes last, by one switch, when all of that is durable ([`Overlay::change_backing`]).
//!
//! [`Overlay::change_backing`]: crate::block::graph::overlay::Overlay::change_backing

use super::pieces::{PIECE, Pieces, STATUS_REACH, Scratch, in_flight};
use super::{cluster_size, is_zero, unsupported, write_clusters};
use crate::block::graph::overlay::BackingName;
use crate::block::graph::status::{ChainStatus, chain_status};
use crate::block::graph::{ChildRole, Node};
use crate::block::{Error, Iov, Result};
use futures_util::future::try_join;
use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

/// What progress is counted in, in bytes.
const STEP: u64 = 2 << 20;

/// Names another backing file, whatever is in it: what the disk shows is the caller's business.
///
/// # Errors
/// [`Kind::Unsupported`](crate::block::Kind::Unsupported) for formats without backing files; as
/// [`Overlay::change_backing`](crate::block::graph::overlay::Overlay::change_backing).
pub async fn rename(image: &Node, backing: Option<&BackingName>) -> Result<()> {
    image.driver().overlay().ok_or_else(unsupported)?.change_backing(backing).await
}

/// Writes to `overlay` what it must have to show the same disk over `new` (nothing, if `None`) as over its backing
/// file: whole clusters compressed, if that is wanted. Durable on return. `progress` hears how many of how many steps
/// are begun.
///
/// # Errors
/// The first failure; the disk is the same then too.
pub async fn merge(
    overlay: &Rc<Node>,
    new: Option<&Rc<Node>>,
    compress: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    let old = overlay.child(ChildRole::Backing);
    let cluster = cluster_size(overlay);
    let allocated = overlay.driver().clusters().map_or(cluster, |clusters| clusters.allocated);
    let grain = if compress { cluster } else { allocated };
    let merge =
        Merge { overlay, backings: [old.as_ref(), new], grain, compress: compress.then_some(cluster) };
    let walk =
        Walk { merge: &merge, at: 0, run: 0..0, steps: 0, counted: 0, same_files: HashMap::new(), progress };
    in_flight(walk, async |piece, scratch| merge.piece(piece, scratch).await).await?;
    overlay.flush().await.map_err(not_written)
}

struct Merge<'a> {
    overlay: &'a Rc<Node>,
    /// The old and the new one; `None` reads as zeros.
    backings: [Option<&'a Rc<Node>>; 2],
    /// What is compared and written as a whole, in bytes.
    grain: u64,
    /// The size of a cluster, where clusters are to be compressed.
    compress: Option<u64>,
}

/// What is to be done with a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// The new backing file has it.
    Same,
    /// The overlay must have zeros.
    Zero,
    /// The overlay must have the old one's bytes.
    Data,
}

impl Merge<'_> {
    /// Compares what both backing files have, and writes what differs.
    async fn piece(&self, piece: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        let len = (piece.end - piece.start) as usize;
        let both = scratch.iov(2 * len);
        let old = read(self.backings[0], "old", piece.start, both.slice(0, len));
        let new = read(self.backings[1], "new", piece.start, both.slice(len, len));
        try_join(old, new).await?;
        drop(both);
        let (old, new) = scratch.bytes()?[..2 * len].split_at(len);
        let runs = runs(old, new, self.grain as usize);
        let old = scratch.iov(len);
        for (run, content) in runs {
            let (at, from) = (piece.start + run.start as u64, old.slice(run.start, run.len()));
            self.write(at, &from, content).await.map_err(not_written)?;
        }
        Ok(())
    }

    async fn write(&self, at: u64, from: &Iov, content: Content) -> Result<()> {
        match (content, self.compress) {
            (Content::Same, _) => Ok(()),
            (Content::Zero, _) => self.overlay.write_zeroes(at, from.len() as u64, false).await,
            (Content::Data, None) => self.overlay.write(at, from).await,
            (Content::Data, Some(cluster)) => write_clusters(self.overlay, cluster, at, from).await,
        }
    }
}

async fn read(backing: Option<&Rc<Node>>, which: &str, at: u64, into: Iov) -> Result<()> {
    match backing {
        Some(node) => {
            let failed =
                |error: Error| error.context(format!("error while reading from {which} backing file"));
            node.read(at, &into).await.map_err(failed)
        }
        None => {
            into.fill(0, into.len(), 0);
            Ok(())
        }
    }
}

fn not_written(error: Error) -> Error {
    error.terse().context("Error while writing to COW image")
}

/// Cuts two equally long runs of bytes into what is to be done, at multiples of `grain`.
fn runs(old: &[u8], new: &[u8], grain: usize) -> Vec<(Range<usize>, Content)> {
    let mut runs: Vec<(Range<usize>, Content)> = Vec::new();
    let mut at = 0;
    for (old, new) in old.chunks(grain).zip(new.chunks(grain)) {
        let content = match () {
            () if old == new => Content::Same,
            () if is_zero(old) => Content::Zero,
            () => Content::Data,
        };
        let end = at + old.len();
        match runs.last_mut() {
            Some((run, last)) if *last == content => run.end = end,
            _ => runs.push((at..end, content)),
        }
        at = end;
    }
    runs
}

/// Finds the pieces that must be compared.
struct Walk<'a> {
    merge: &'a Merge<'a>,
    at: u64,
    /// What the overlay does not have, around the current position.
    run: Range<u64>,
    steps: u64,
    /// Up to where steps were counted.
    counted: u64,
    /// Which files are one, by the nodes that have them open.
    same_files: HashMap<[*const Node; 2], bool>,
    progress: &'a dyn Fn(u64, u64),
}

impl Pieces for Walk<'_> {
    type Piece = Range<u64>;

    async fn next(&mut self) -> Result<Option<Range<u64>>> {
        let failed = |error: Error| error.terse().context("error while reading image metadata");
        while self.find_run().await.map_err(failed)? {
            let at = self.at;
            let (end, same) = self.compare_status().await.map_err(failed)?;
            self.at = end;
            self.count(end);
            if !same {
                return Ok(Some(at..end));
            }
        }
        Ok(None)
    }
}

impl Walk<'_> {
    /// Moves on to what the overlay does not have; false at the end of the disk.
    async fn find_run(&mut self) -> Result<bool> {
        let overlay = self.merge.overlay;
        while self.at >= self.run.end {
            if self.at == overlay.size() {
                return Ok(false);
            }
            let status = overlay.block_status(self.at, STATUS_REACH).await?;
            let end = self.at + status.len;
            match status.allocated {
                true => self.at = end,
                false => (self.run, self.counted) = (self.at..end, self.at),
            }
        }
        Ok(true)
    }

    /// Where the next piece ends, and whether its bytes are the same in both backing files, as far as can be told
    /// without reading them.
    async fn compare_status(&mut self) -> Result<(u64, bool)> {
        let (at, grain) = (self.at, self.merge.grain);
        let old = status(self.merge.backings[0], at, self.run.end).await?;
        let new = status(self.merge.backings[1], at, self.run.end).await?;
        let end = old.0.min(new.0);
        let same = match (&old.1, &new.1) {
            (None, None) => true,
            (Some(old), Some(new)) => self.is_one(old, new),
            _ => false,
        };
        // What ends inside of a unit is compared with it.
        let whole = if end == self.run.end { end } else { end / grain * grain };
        if same && whole > at {
            return Ok((whole, true));
        }
        let piece = PIECE.max(grain);
        let end = end.next_multiple_of(grain).min(at - at % piece + piece);
        Ok((end.min(self.run.end), false))
    }

    /// Whether two chains have their bytes from one place: from one cluster of a layer that both have, or from one
    /// place of a file.
    fn is_one(&mut self, old: &ChainStatus, new: &ChainStatus) -> bool {
        let is_mapped = |status: &ChainStatus| status.node.driver().clusters().is_some();
        if is_mapped(old) && is_mapped(new) && self.is_one_file(&old.node, &new.node) {
            return true;
        }
        match (&old.status.mapped, &new.status.mapped) {
            (Some((old, from)), Some((new, to))) => from == to && self.is_one_file(old, new),
            _ => false,
        }
    }

    fn is_one_file(&mut self, one: &Rc<Node>, other: &Rc<Node>) -> bool {
        let identity = |node: &Node| {
            let name = node.filename();
            let metadata = std::fs::metadata(name.strip_prefix("file:").unwrap_or(name)).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        let compare = || identity(one).is_some_and(|one| Some(one) == identity(other));
        *self.same_files.entry([one, other].map(Rc::as_ptr)).or_insert_with(compare)
    }

    /// Tells how far it is.
    fn count(&mut self, end: u64) {
        let size = self.merge.overlay.size();
        let step = size.min(STEP);
        while self.counted < end {
            self.counted = (self.counted + STEP).min(self.run.end);
            self.steps += 1;
            (self.progress)(self.steps * step, size / step * step);
        }
    }
}

/// Up to where, before `end`, the bytes from `at` on come from one place, and from which; `None` for zeros.
async fn status(backing: Option<&Rc<Node>>, at: u64, end: u64) -> Result<(u64, Option<ChainStatus>)> {
    match backing.filter(|backing| at < backing.size()) {
        None => Ok((end, None)),
        Some(backing) => {
            let status = chain_status(backing, at, end - at).await?;
            Ok((at + status.len, Some(status).filter(|status| !status.status.zero)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_units_that_differ_are_written_and_zeros_as_such() {
        use Content::{Data, Same, Zero};
        let old = [1, 1, 0, 0, 2, 2, 3, 3, 0];
        let new = [1, 1, 4, 0, 2, 0, 0, 0, 0];
        assert_eq!(runs(&old, &new, 2), [(0..2, Same), (2..4, Zero), (4..8, Data), (8..9, Same)]);
        assert_eq!(runs(&old, &new, 4), [(0..8, Data), (8..9, Same)]);
        assert_eq!(runs(&[], &[], 4), []);
    }
}
