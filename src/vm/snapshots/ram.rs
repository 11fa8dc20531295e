//! VM state between a disk and memory: RAM in many requests at once while other threads look for zeros and compute
//! checksums; the rest in one piece.
//!
//! ```text
//!   save    threads: block ─▶ grains that are not zeros, checksum ─▶ channel ─▶ drive's thread: writes of runs of grains
//!   check   drive's thread: reads of runs of grains ─▶ a few blocks of scratch ─▶ threads: checksum, compared
//!   load    drive's thread: reads of runs of grains ─▶ the guest's RAM         ─▶ threads: checksum, compared
//! ```
//! Bytes move between the file and RAM itself, without a copy of ours.

use crate::block::drive::{Drive, Local};
use crate::block::graph::Node;
use crate::block::graph::snapshots::{Selector, VmState};
use crate::block::{self, Buffer, Iov, Kind};
use crate::vm::memory::{self, GuestMemory};
use crate::vm::snapshots::disks::named;
use crate::vm::{Error, Result};
use crate::vmstate::{BLOCK, Block, GRAIN, Hasher, RAM_AT, Table};
use futures_util::future::join_all;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Requests in flight.
const DEPTH: usize = 8;
/// Blocks that a check has in memory: those in flight, and as many that are being compared.
const SLOTS: usize = 2 * DEPTH;
/// After so many bytes of RAM the host begins to write them to its disk, so that little is left to wait for at the end.
const WRITE_BACK: u64 = 8 << 20;
/// Threads beside the drive's at most.
const MAX_THREADS: usize = 4;

/// Writes all of RAM that is not zeros behind the live disk; what stands where.
///
/// # Errors
/// What the host says.
pub(super) fn store(drive: &Drive, memory: &Arc<GuestMemory>) -> Result<Table> {
    let size = memory::size(memory);
    let count = Table::blocks_of(size);
    let (next, (sender, found)) = (AtomicUsize::new(0), async_channel::unbounded());
    let look = |sender: async_channel::Sender<(usize, Block)>| {
        let mut buffer = vec![0; GRAIN];
        while let index @ 0.. = next.fetch_add(1, Ordering::Relaxed)
            && index < count
            && let block =
                block_of(memory, &block_range(size, index), &mut buffer, |_, grain| !grain.is_zero())
            && sender.send_blocking((index, block)).is_ok()
        {}
    };
    let ram = memory.clone();
    let written = thread::scope(|scope| {
        for _ in 0..threads() {
            let sender = sender.clone();
            scope.spawn(|| look(sender));
        }
        drop(sender);
        drive.call(move |local| async move { write_blocks(&local, &ram, &found, size).await }).flatten()
    });
    written.map_err(|error| named(drive, error))
}

async fn write_blocks(
    local: &Local,
    ram: &Arc<GuestMemory>,
    found: &async_channel::Receiver<(usize, Block)>,
    size: u64,
) -> block::Result<Table> {
    let root = local.root();
    let state = vm_state(&root)?;
    let (blocks, failed) = (RefCell::new(vec![Block::default(); Table::blocks_of(size)]), Cell::new(false));
    let write_back = WriteBack::new(local);
    let worker = async || {
        while let Ok((index, block)) = found.recv().await {
            if failed.get() {
                // The threads that look for zeros end too.
                found.close();
                return Ok(());
            }
            blocks.borrow_mut()[index] = block;
            let place = block_range(size, index);
            let write = async |at, iov: &_| state.write(at, iov).await;
            let done = each_run(ram, &place, place.start, block, write).await;
            failed.set(failed.get() | done.is_err());
            done?;
            write_back.note(block.runs().map(|(_, grains)| (grains * GRAIN) as u64).sum());
        }
        Ok(())
    };
    join_all((0..DEPTH).map(|_| worker())).await.into_iter().collect::<block::Result<()>>()?;
    Ok(Table { blocks: blocks.into_inner() })
}

/// Has the host write to its disk what was written to its page cache, beside the writes that follow.
struct WriteBack<'a> {
    local: &'a Local,
    /// Bytes since the last time.
    behind: Cell<u64>,
    busy: Rc<Cell<bool>>,
}

impl WriteBack<'_> {
    fn new(local: &Local) -> WriteBack<'_> {
        WriteBack { local, behind: Cell::new(0), busy: Rc::default() }
    }

    /// So many bytes more were written. Nobody waits for what follows.
    fn note(&self, bytes: u64) {
        self.behind.set(self.behind.get() + bytes);
        if self.behind.get() < WRITE_BACK || self.busy.replace(true) {
            return;
        }
        self.behind.set(0);
        let (root, busy) = (self.local.root(), self.busy.clone());
        self.local.engine().spawn(async move {
            root.driver().begin_flush().await;
            busy.set(false);
        });
    }
}

/// Reads RAM of a snapshot and compares its checksums; it goes nowhere.
///
/// # Errors
/// What the host says, or that a checksum does not fit.
pub(super) fn check(drive: &Drive, id: &str, ram: u64, table: &Arc<Table>) -> Result<()> {
    let (give_back, free) = async_channel::unbounded();
    for slot in 0..SLOTS as u64 {
        // The channel takes all there are.
        let _ = give_back.try_send(slot * BLOCK);
    }
    let memory = memory::scratch(SLOTS * BLOCK as usize)?;
    let target = Target { memory, size: ram, places: Some(Places { free, give_back }) };
    read_blocks(drive, id, target, table)
}

/// Reads RAM of a snapshot into `ram`, whatever it held, and compares its checksums.
///
/// # Errors
/// What the host says, or that a checksum does not fit; `ram` holds a part of it then.
pub(super) fn load(drive: &Drive, id: &str, ram: &Arc<GuestMemory>, table: &Arc<Table>) -> Result<()> {
    memory::clear(ram).map_err(|error| Error::new(format!("cannot clear the guest's memory: {error}")))?;
    let target = Target { memory: ram.clone(), size: memory::size(ram), places: None };
    read_blocks(drive, id, target, table)
}

/// Where the blocks go that are read.
struct Target {
    memory: Arc<GuestMemory>,
    /// Bytes of RAM.
    size: u64,
    /// Without it, each block has its own place.
    places: Option<Places>,
}

/// Offsets in the memory of a target, each for one block at a time.
struct Places {
    free: async_channel::Receiver<u64>,
    give_back: async_channel::Sender<u64>,
}

impl Target {
    /// The place of a block, as long as the block.
    async fn place(&self, index: usize) -> Range<u64> {
        let block = block_range(self.size, index);
        let start = match &self.places {
            // All that are taken are given back.
            Some(places) => places.free.recv().await.unwrap_or_default(),
            None => block.start,
        };
        start..start + (block.end - block.start)
    }

    fn give_back(&self, place: &Range<u64>) {
        if let Some(places) = &self.places {
            // It came from there, so it has room.
            let _ = places.give_back.try_send(place.start);
        }
    }
}

fn read_blocks(drive: &Drive, id: &str, target: Target, table: &Arc<Table>) -> Result<()> {
    let (sender, read) = async_channel::unbounded();
    let (target, damaged) = (Arc::new(target), AtomicBool::new(false));
    let compare = || {
        let mut buffer = vec![0; GRAIN];
        while let Ok((index, place)) = read.recv_blocking() {
            let (place, block): (Range<u64>, Block) = (place, table.blocks[index]);
            let found = block_of(&target.memory, &place, &mut buffer, |index, _| block.has(index));
            damaged.fetch_or(found != block, Ordering::Relaxed);
            target.give_back(&place);
        }
    };
    let (id, into, blocks) = (id.to_owned(), target.clone(), table.clone());
    let done = thread::scope(|scope| {
        (0..threads()).for_each(|_| drop(scope.spawn(compare)));
        let job = |local: Rc<Local>| async move { read_stored(&local, &id, &into, &blocks, &sender).await };
        drive.call(job).flatten()
    });
    done.map_err(|error| named(drive, error))?;
    match damaged.into_inner() {
        true => Err(Error::new("the VM state is damaged: the checksum of its RAM does not fit it")),
        false => Ok(()),
    }
}

async fn read_stored(
    local: &Local,
    id: &str,
    target: &Target,
    table: &Table,
    read: &async_channel::Sender<(usize, Range<u64>)>,
) -> block::Result<()> {
    let view = view(local, id).await?;
    let (state, next) = (vm_state(&view)?, Cell::new(0));
    let worker = async || {
        while let Some(&block) = table.blocks.get(next.get()) {
            let index = next.replace(next.get() + 1);
            if block == Block::default() {
                continue;
            }
            let place = target.place(index).await;
            let from = block_range(target.size, index).start;
            each_run(&target.memory, &place, from, block, async |at, iov| state.read(at, iov).await)
                .await
                .inspect_err(|_| {
                    next.set(table.blocks.len());
                    target.give_back(&place);
                })?;
            // The threads listen until the last one has been sent.
            let _ = read.try_send((index, place));
        }
        Ok(())
    };
    join_all((0..DEPTH).map(|_| worker())).await.into_iter().collect()
}

/// Calls `f` with the place in the VM state and the memory of each run of grains of a block that are stored. The block
/// is at `place` of the memory, and begins at byte `from` of RAM.
async fn each_run(
    memory: &Arc<GuestMemory>,
    place: &Range<u64>,
    from: u64,
    block: Block,
    f: impl AsyncFn(u64, &Iov) -> block::Result<()>,
) -> block::Result<()> {
    for (first, count) in block.runs() {
        let start = (first * GRAIN) as u64;
        let end = (start + (count * GRAIN) as u64).min(place.end - place.start);
        let iov = memory::iov(memory, place.start + start..place.start + end);
        let iov = iov.ok_or_else(|| block::Error::new(Kind::OutOfRange, "RAM"))?;
        f(RAM_AT + from + start, &iov).await?;
    }
    Ok(())
}

/// Of the block at `place`, the grains that `is_stored` says yes to.
fn block_of(
    memory: &Arc<GuestMemory>,
    place: &Range<u64>,
    buffer: &mut [u8],
    is_stored: impl Fn(usize, &Iov) -> bool,
) -> Block {
    let mut hasher = Hasher::default();
    if let Some(iov) = memory::iov(memory, place.clone()) {
        for (index, at) in (0..iov.len()).step_by(GRAIN).enumerate() {
            let grain = iov.slice(at, GRAIN.min(iov.len() - at));
            if is_stored(index, &grain) {
                let copied = grain.copy_to(0, buffer);
                hasher.add(index, &buffer[..copied]);
            }
        }
    }
    hasher.finish()
}

fn block_range(ram: u64, index: usize) -> Range<u64> {
    let start = index as u64 * BLOCK;
    start..(start + BLOCK).min(ram)
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// Writes `parts`, each at its offset, behind the live disk.
///
/// # Errors
/// What the host says.
pub(super) fn write(drive: &Drive, parts: Vec<(u64, Vec<u8>)>) -> Result<()> {
    let job = |local: Rc<Local>| async move {
        let root = local.root();
        let state = vm_state(&root)?;
        for (at, bytes) in parts {
            state.write(at, &Buffer::from_bytes(&bytes).iov(bytes.len())).await?;
        }
        Ok(())
    };
    drive.call(job).flatten().map_err(|error| named(drive, error))
}

/// Reads `len` bytes of a snapshot's VM state.
///
/// # Errors
/// What the host says.
pub(super) fn read(drive: &Drive, id: &str, at: u64, len: usize) -> Result<Vec<u8>> {
    let id = id.to_owned();
    let job = move |local: Rc<Local>| async move {
        let view = view(&local, &id).await?;
        let into = Buffer::new(len).iov(len);
        if len > 0 {
            vm_state(&view)?.read(at, &into).await?;
        }
        Ok(into.to_vec())
    };
    drive.call(job).flatten().map_err(|error| named(drive, error))
}

/// Makes room behind the live disk for the state of a machine with so much RAM.
///
/// # Errors
/// What the host says.
pub(super) fn reserve(drive: &Drive, ram: u64) -> Result<()> {
    let job = move |local: Rc<Local>| async move { vm_state(&local.root())?.reserve(RAM_AT + ram).await };
    drive.call(job).flatten().map_err(|error| named(drive, error))
}

/// Gives up what was written behind the live disk.
///
/// # Errors
/// What the host says.
pub(super) fn discard(drive: &Drive) -> Result<()> {
    let job = |local: Rc<Local>| async move {
        let _drained = local.drained().await;
        vm_state(&local.root())?.discard().await
    };
    drive.call(job).flatten().map_err(|error| named(drive, error))
}

async fn view(local: &Local, id: &str) -> block::Result<Rc<Node>> {
    let root = local.root();
    let snapshots = root.driver().snapshots();
    let snapshots = snapshots.ok_or_else(|| block::Error::new(Kind::Unsupported, "no snapshots"))?;
    snapshots.view(&Selector::Id(id.to_owned())).await
}

fn vm_state(node: &Node) -> block::Result<&dyn VmState> {
    let state = node.driver().vm_state();
    state.ok_or_else(|| block::Error::new(Kind::Unsupported, "the image has no room for VM state"))
}
