//! Copying the content of images into another one: holes are never read, runs of zeros never written as data.
//!
//! ```text
//!   sources ─ allocation status ─▶ Plan: pieces ──▶ worker 1 ─┬─ to a host file: a pool thread moves them (fill)
//!                                    (one lock)  └─▶ worker n ─┴─ else: read and write through the nodes (through)
//! ```
//!
//! Each worker owns one buffer, so memory is bounded by workers times the longest piece. Pieces that go through the nodes
//! are written in order, unless that is not wanted: the target then grows like a file that is written from start to
//! end. Room in a new image is taken in order too. What only a driver can read is read through its node in any case.

mod fill;
mod job;
mod plan;
mod runs;
mod through;
mod turns;

pub(super) use plan::piece_len;
pub(super) use runs::find_runs;
pub use through::Reports;

use super::pieces::{Pace, Scratch};
use super::place::Place;
use super::{SECTOR, cluster_size};
use crate::block::aio::Engine;
use crate::block::cluster_map::ClusterMap;
use crate::block::graph::filling::{Filling, Held, NewRoom, Packer, Room};
use crate::block::graph::{ChildRole, Node};
use crate::block::{Error, Result};
use async_lock::{Mutex, Semaphore};
use fill::Spare;
use futures_util::future::join_all;
use plan::{Content, Cut, Piece, Plan, disk_size, failed};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::thread::available_parallelism;
use turns::Turns;

/// Shortest piece that another thread writes when it has been read here, in bytes.
const SHORT: u64 = 64 << 10;

/// Which layers of a source are copied.
#[derive(Clone, Debug, Default)]
pub enum Layers {
    /// All: the disk as it reads.
    #[default]
    All,
    /// The top one alone. The rest is left to the target's backing file, of which this is the size.
    Top(u64),
    /// Those above this one, which is the target.
    Above(Rc<Node>),
}

/// How to copy; as a rule all of it, in order, as it is, and as fast as may be.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// Of which layers.
    pub layers: Layers,
    /// Shortest run of zeros within data that is left out, in bytes; 0 writes everything, zeros too.
    pub sparse: u64,
    /// How many pieces are in flight; 0 is as 1.
    pub workers: usize,
    /// Write pieces as they come.
    pub out_of_order: bool,
    /// Write whole clusters of the target compressed, on all processors.
    pub compress: bool,
    /// Let the file system copy data, without looking for zeros in it.
    pub offload: bool,
    /// The target reads as zeros where nothing was written to it.
    pub target_is_zero: bool,
    /// Nothing was written to the target yet.
    pub target_is_new: bool,
    /// Take sectors that cannot be read for zeros.
    pub salvage: bool,
    /// Bytes of data a second; 0 for as fast as may be.
    pub rate: u64,
}

impl CopyOptions {
    /// Shortest run of zeros that is left out of data that was read, in bytes; 0 for none. What is compressed goes in
    /// clusters of `grain` bytes, and each that is zero is left out.
    pub(super) fn shortest_zeros(&self, grain: u64) -> u64 {
        match self.sparse {
            0 => 0,
            _ if self.offload => 0,
            _ if self.compress => grain,
            sparse => sparse,
        }
    }
}

/// Copies the disks of `sources`, one behind the other, to the start of `target`.
///
/// # Errors
/// The first failed read or write. Nothing is in flight any more then.
pub async fn copy(
    engine: &Rc<Engine>,
    sources: &[Rc<Node>],
    target: &Rc<Node>,
    options: &CopyOptions,
    reports: &Reports<'_>,
) -> Result<()> {
    let filling = target.driver().filling().filter(|_| options.target_is_new || !options.compress);
    let store = filling.filter(|_| options.compress).and_then(|filling| filling.new_room());
    let grain = if options.compress { cluster_size(target) } else { SECTOR };
    let cut = Cut { grain, long: filling.is_some() && !options.compress };
    let mut total = 0;
    // As qemu-img does it, what has no status is told twice.
    if reports.progress.is_some() || options.salvage {
        let mut plan = Plan::new(sources, options, reports, cut);
        while let Some(piece) = plan.next().await? {
            total += piece.counts;
        }
    }
    let offload = options.offload && can_offload(target);
    // The file system locks the target for every copy of its own: two would only wait for each other.
    let threads = if offload { 1 } else { available_parallelism().map_or(1, |cores| cores.get() + 1) };
    let copy = Copy {
        engine,
        target,
        options,
        reports,
        total,
        done: Cell::new(0),
        plan: Mutex::new(Plan::new(sources, options, reports, cut)),
        grain,
        turns: Turns::default(),
        filling,
        packer: store.map(|store| (store.packer(), store)),
        spare: Spare::default(),
        offload,
        threads: Semaphore::new(threads),
        pace: Pace::new(engine, options.rate),
        failed: RefCell::default(),
    };
    join_all((0..options.workers.max(1)).map(|_| copy.work())).await;
    copy.give_back_spare();
    // What pool threads wrote, no request told of.
    target.written_elsewhere(0);
    copy.failed.take().map_or(Ok(()), Err)
}

/// Which clusters of a copy of `sources` have data, as far as their allocation status tells.
///
/// # Errors
/// When the status cannot be read.
pub async fn data_clusters(
    sources: &[Rc<Node>],
    options: &CopyOptions,
    cluster_size: u64,
) -> Result<ClusterMap> {
    let mut map = ClusterMap::new(total_size(sources), cluster_size)?;
    let reports = Reports { progress: None, warn: &|_, _, _| {} };
    let mut plan = Plan::new(sources, options, &reports, Cut { grain: SECTOR, long: true });
    while let Some(piece) = plan.next().await? {
        if piece.content == Content::Data {
            map.add(piece.to..piece.to + piece.len);
        }
    }
    Ok(map)
}

/// The size that the disks of `sources` have together.
pub fn total_size(sources: &[Rc<Node>]) -> u64 {
    sources.iter().map(|source| disk_size(source)).fold(0, u64::saturating_add)
}

/// Whether the file system of an image may do better than to copy bytes.
fn can_offload(image: &Node) -> bool {
    let file = image.child(ChildRole::File).and_then(|file| file.driver().bulk_file());
    file.is_none_or(|file| file.can_offload())
}

/// A copy that is under way.
struct Copy<'a> {
    engine: &'a Rc<Engine>,
    target: &'a Rc<Node>,
    options: &'a CopyOptions,
    reports: &'a Reports<'a>,
    total: u64,
    done: Cell<u64>,
    plan: Mutex<Plan<'a>>,
    grain: u64,
    turns: Turns,
    /// How pool threads can write to the target, if they can.
    filling: Option<&'a dyn Filling>,
    /// What compresses, and who stores what comes out.
    packer: Option<(Packer, &'a dyn NewRoom)>,
    /// Room that was taken and not used.
    spare: Spare,
    /// The file system copies.
    offload: bool,
    /// As many threads move bytes at once as keep the processors busy.
    threads: Semaphore,
    pace: Pace,
    /// What failed first: no further piece begins.
    failed: RefCell<Option<Error>>,
}

/// Which way a piece goes.
enum Way<'a> {
    /// Through the nodes.
    Through,
    /// A pool thread moves it to where the target, with grains of so many bytes, has it.
    Overwrite(u64, Vec<Room>),
    /// A pool thread moves it into this new room.
    Fill(&'a dyn NewRoom, VecDeque<Room>),
    /// A pool thread compresses it.
    Pack(Place, &'a dyn NewRoom, Packer),
}

impl<'a> Copy<'a> {
    async fn work(&self) {
        let mut scratch = Scratch::default();
        while let Some((piece, way)) = self.next().await {
            let done = self.copy_piece(&piece, way, &mut scratch).await;
            done.unwrap_or_else(|error| self.fail(error));
            // Whatever came of it, others wait for their turn.
            self.turns.finish(piece.turn);
        }
    }

    fn fail(&self, error: Error) {
        self.failed.borrow_mut().get_or_insert(error);
    }

    /// The next piece; none after a failure.
    async fn next(&self) -> Option<(Piece, Way<'a>)> {
        let mut plan = self.plan.lock().await;
        if self.failed.borrow().is_some() {
            return None;
        }
        let next = async {
            let Some(piece) = plan.next().await? else { return Ok(None) };
            let way = self.way(&piece).await?;
            Ok(Some((piece, way)))
        };
        let next = next.await.unwrap_or_else(|error| {
            self.fail(error);
            None
        });
        if let Some((piece, _)) = &next {
            self.count(piece).await;
        }
        next
    }

    /// Tells of a piece that begins, and waits until it may.
    async fn count(&self, piece: &Piece) {
        if let (Some(progress), true) = (self.reports.progress, piece.counts > 0) {
            self.done.set(self.done.get() + piece.counts);
            progress(self.done.get(), self.total);
        }
        if piece.content == Content::Data {
            self.pace.wait(piece.len).await;
        }
    }

    async fn way(&self, piece: &Piece) -> Result<Way<'a>> {
        let Some(filling) = self.filling.filter(|_| piece.content == Content::Data) else {
            return Ok(Way::Through);
        };
        let end = piece.to + piece.len;
        let whole = piece.to.is_multiple_of(filling.grain())
            && (end.is_multiple_of(filling.grain()) || end == self.target.size());
        match (&self.packer, &piece.place) {
            (Some((packer, store)), Some(place)) if whole => {
                Ok(Way::Pack(place.clone(), *store, packer.clone()))
            }
            _ if self.options.compress => Ok(Way::Through),
            // Another thread takes longer to begin than it takes to write so little.
            (_, None) if piece.len < SHORT => Ok(Way::Through),
            _ => {
                let way = self.way_by_thread(filling, piece, whole).await;
                way.map_err(|error| failed("writing", piece.to, error))
            }
        }
    }

    /// How a pool thread can move a piece; `whole` if it is made of whole grains. Room is taken in the order of the
    /// pieces, so that a new image has its clusters in the order of the disk.
    async fn way_by_thread(&self, filling: &'a dyn Filling, piece: &Piece, whole: bool) -> Result<Way<'a>> {
        match (filling.held(piece.to, piece.len).await?, filling.new_room()) {
            (Held::Own(rooms), _) => Ok(Way::Overwrite(filling.grain(), rooms)),
            (Held::Nothing, Some(source)) if whole => {
                let rooms = self.spare.take(source, piece.len).await?;
                Ok(Way::Fill(source, rooms))
            }
            _ => Ok(Way::Through),
        }
    }

    async fn copy_piece(&self, piece: &Piece, way: Way<'a>, scratch: &mut Scratch) -> Result<()> {
        match way {
            Way::Through => self.copy_through(piece, scratch).await,
            Way::Overwrite(grain, rooms) => self.overwrite(piece, grain, rooms, scratch).await,
            Way::Fill(source, rooms) => self.fill(piece, source, rooms, scratch).await,
            Way::Pack(place, store, packer) => self.pack(piece, place, store, packer, scratch).await,
        }
    }
}
