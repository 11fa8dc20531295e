//! Comparing the disks of two images: what is allocated where, and what is in it.
//!
//! ```text
//!   image 1 ─ extents ─┐                      ┌─▶ pool: read a block of both, compare, next block ─┐
//!                      ├─▶ Walk: steps in order ─▶ pool: …                                          ├─▶ first verdict
//!   image 2 ─ extents ─┘                      └─▶ here, where bytes must pass a driver             ─┘
//! ```
//!
//! Steps are looked at in parallel and judged in the order of the disk, so that the first difference is the one
//! that is told. What reads as zeros is never read. Memory: two blocks a step in flight, which later steps take over.

use super::SECTOR;
use super::place::{Extent, Place};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::{AlignedBytes, Buffer, Error};
use futures_util::future::join;
use futures_util::stream::{FuturesOrdered, StreamExt};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::thread::available_parallelism;

/// Most bytes of a step: a read error is told with the place where its step began, which is qemu-img's.
const STEP: u64 = 2 << 20;
/// What is read of each image at once, in bytes: the host copies long runs a fifth faster than 64 KiB.
const BLOCK: usize = 512 << 10;
/// The same through a driver: long enough that one who decrypts or decompresses uses several threads.
const THROUGH: usize = 256 << 10;

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no difference.
    Identical,
    /// The first difference in what is allocated is here.
    StatusDiffers(u64),
    /// The first difference in content is in the sector that begins here.
    ContentDiffers(u64),
}

/// Why a comparison ended without a verdict.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Which of the images, 0 or 1.
    pub image: usize,
    /// The start of what could not be read; `None` where it could not be found out what is allocated.
    pub at: Option<u64>,
    /// What went wrong.
    pub error: Error,
}

/// Compares what both images have, up to the end of the shorter one. With `strict`, what is allocated must be the
/// same too, and an extent that ends with the disk differs from one that does not, as for qemu-img. `progress`
/// hears where the comparison has come to.
///
/// # Errors
/// The first failure in the order of the disk.
pub async fn compare(
    engine: &Engine,
    images: [&Rc<Node>; 2],
    strict: bool,
    progress: &dyn Fn(u64),
) -> Result<Verdict, Failed> {
    let end = images[0].size().min(images[1].size());
    Walk { images: images.map(Some), at: 0, end, strict, extents: [None, None] }.judge(engine, progress).await
}

/// Compares what only the longer image has with zeros.
///
/// # Errors
/// As [`compare`].
pub async fn compare_rest(
    engine: &Engine,
    images: [&Rc<Node>; 2],
    progress: &dyn Fn(u64),
) -> Result<Verdict, Failed> {
    let sizes = images.map(|image| image.size());
    let (at, end) = (sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
    let images = [0, 1].map(|index| (sizes[index] == end).then_some(images[index]));
    Walk { images, at, end, strict: false, extents: [None, None] }.judge(engine, progress).await
}

/// A block of each image.
type Blocks = [AlignedBytes; 2];

/// Memory for steps to come.
type Spare = RefCell<Vec<Blocks>>;

/// Cuts two disks into steps.
struct Walk<'a> {
    /// `None` has nothing and reads as zeros.
    images: [Option<&'a Rc<Node>>; 2],
    at: u64,
    end: u64,
    strict: bool,
    /// What each image has at the current position, once it was asked.
    extents: [Option<Extent>; 2],
}

/// What is to be done up to some place of the disk.
enum Task {
    /// Nothing: both read as zeros.
    Skip,
    /// Compare, on a thread of the pool.
    OnPool([Place; 2]),
    /// Compare here; `None` is zeros.
    Here([Option<Rc<Node>>; 2]),
    /// Stop.
    End(Result<Verdict, Failed>),
}

impl Walk<'_> {
    async fn judge(mut self, engine: &Engine, progress: &dyn Fn(u64)) -> Result<Verdict, Failed> {
        let in_flight = available_parallelism().map_or(4, |cores| cores.get().clamp(4, 16));
        let spare = Spare::default();
        let mut steps = FuturesOrdered::new();
        loop {
            while steps.len() < in_flight
                && let Some(step) = self.next(engine, &spare).await
            {
                steps.push_back(step);
            }
            match steps.next().await {
                None => return Ok(Verdict::Identical),
                Some((end, Ok(Verdict::Identical))) => progress(end),
                Some((_, verdict)) => return verdict,
            }
        }
    }

    /// The next step: where it ends, and its verdict.
    async fn next<'e>(
        &mut self,
        engine: &'e Engine,
        spare: &'e Spare,
    ) -> Option<impl Future<Output = (u64, Result<Verdict, Failed>)> + use<'e>> {
        if self.at >= self.end {
            return None;
        }
        let at = self.at;
        let (end, task) = match self.look().await {
            Ok(()) => self.plan(),
            Err(failed) => (self.end, Task::End(Err(failed))),
        };
        self.at = end;
        Some(async move { (end, task.run(engine, spare, at, (end - at) as usize).await) })
    }

    /// Finds out what both images have at the current position.
    async fn look(&mut self) -> Result<(), Failed> {
        for (image, node) in self.images.iter().enumerate() {
            let known = self.extents[image].as_ref().is_some_and(|extent| self.at < extent.end());
            if let (Some(node), false) = (node, known) {
                let extent = Extent::at(node, self.at).await;
                self.extents[image] = Some(extent.map_err(|error| Failed { image, at: None, error })?);
            }
        }
        Ok(())
    }

    /// What is to be done at the current position, and up to where.
    fn plan(&self) -> (u64, Task) {
        let extents = [&self.extents[0], &self.extents[1]].map(Option::as_ref);
        let end = extents.into_iter().flatten().fold(self.end, |end, extent| end.min(extent.end()));
        if self.strict && self.facts(0) != self.facts(1) {
            return (self.end, Task::End(Ok(Verdict::StatusDiffers(self.at))));
        }
        let read_by_driver = [0, 1].map(|image| {
            let node = extents[image].filter(|extent| !extent.status.status.zero).and(self.images[image]);
            node.cloned()
        });
        let place = |extent: Option<&Extent>| match extent {
            None => Some(Place::Zeros),
            Some(extent) => extent.place_at(self.at),
        };
        let task = match (&read_by_driver, extents.map(place)) {
            ([None, None], _) => return (end, Task::Skip),
            (_, [Some(one), Some(other)]) => Task::OnPool([one, other]),
            _ => Task::Here(read_by_driver),
        };
        (end.min(self.at + STEP), task)
    }

    /// What strict comparison compares of an image at the current position.
    fn facts(&self, image: usize) -> Option<[bool; 6]> {
        let extent = self.extents[image].as_ref()?;
        let (status, disk) = (&extent.status.status, self.images[image]?.size());
        // For qemu-img every compressed cluster is an extent.
        let ends = extent.end() == disk && !status.compressed;
        Some([status.allocated, status.data, status.zero, status.compressed, status.mapped.is_some(), ends])
    }
}

impl Task {
    async fn run(self, engine: &Engine, spare: &Spare, at: u64, len: usize) -> Result<Verdict, Failed> {
        let found = match self {
            Task::Skip => Ok(None),
            Task::End(verdict) => return verdict,
            Task::OnPool(places) => {
                let mut blocks = spare.borrow_mut().pop().unwrap_or_default();
                let work = move || (compare_places(&places, len, &mut blocks), blocks);
                let (found, blocks) = engine.offload(work).await;
                spare.borrow_mut().push(blocks);
                found
            }
            Task::Here(nodes) => compare_nodes(&nodes, at, len).await,
        };
        match found {
            Ok(None) => Ok(Verdict::Identical),
            Ok(Some(distance)) => Ok(Verdict::ContentDiffers(at + distance as u64)),
            Err((image, error)) => Err(Failed { image, at: Some(at), error }),
        }
    }
}

/// How far into `len` bytes of both places the first difference is. Blocks.
fn compare_places(
    places: &[Place; 2],
    len: usize,
    buffers: &mut Blocks,
) -> Result<Option<usize>, (usize, Error)> {
    for at in (0..len).step_by(BLOCK) {
        let part = BLOCK.min(len - at);
        for (image, (place, buffer)) in places.iter().zip(&mut *buffers).enumerate() {
            let read = place.read(at as u64, buffer.first(part));
            read.map_err(|error| (image, Error::from_io(error)))?;
        }
        let [one, other] = &mut *buffers;
        if let Some(distance) = first_difference(one.first(part), other.first(part)) {
            return Ok(Some(at + distance));
        }
    }
    Ok(None)
}

/// As [`compare_places`], through the drivers of `nodes` (`None` reads as zeros).
async fn compare_nodes(
    nodes: &[Option<Rc<Node>>; 2],
    start: u64,
    len: usize,
) -> Result<Option<usize>, (usize, Error)> {
    let mut buffers = [Buffer::new(THROUGH), Buffer::new(THROUGH)];
    for at in (0..len).step_by(THROUGH) {
        let part = THROUGH.min(len - at);
        let read = |image: usize| {
            let (node, into) = (nodes[image].clone(), buffers[image].iov(part));
            async move {
                match node {
                    Some(node) => node.read(start + at as u64, &into).await.map_err(|error| (image, error)),
                    None => Ok(()),
                }
            }
        };
        let (one, other) = join(read(0), read(1)).await;
        one.and(other)?;
        let [one, other] = &mut buffers;
        if let (Some(one), Some(other)) = (one.bytes(), other.bytes())
            && let Some(distance) = first_difference(&one[..part], &other[..part])
        {
            return Ok(Some(at + distance));
        }
    }
    Ok(None)
}

/// The start of the first sector in which two runs of the same length differ.
fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    let sector = SECTOR as usize;
    let mut sectors = one.chunks(sector).zip(other.chunks(sector));
    sectors.position(|(one, other)| one != other).map(|at| at * sector)
}
