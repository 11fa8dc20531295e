//! VM state between a disk and memory: RAM in many requests at once while other threads look for zeros and compute
//! checksums; the rest in one piece.
//!
//! ```text
//!   save   threads: block ─▶ grains that are not zeros, checksum ─▶ channel ─▶ drive's thread: writes of runs of grains
//!   load   drive's thread: reads of runs of grains ─▶ channel ─▶ threads: block ─▶ the same again, compared
//! ```
//! Bytes move between the file and RAM itself, without a copy of ours. A load goes to RAM that no guest has.

use crate::block::drive::{Drive, Local};
use crate::block::graph::Node;
use crate::block::graph::snapshots::{Selector, VmState};
use crate::block::{self, Buffer, Kind};
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
/// Threads beside the drive's at most.
const MAX_THREADS: usize = 4;

/// Writes all of RAM that is not zeros behind the live disk; what stands where.
///
/// # Errors
/// What the host says.
pub(super) fn store(drive: &Drive, memory: &Arc<GuestMemory>) -> Result<Table> {
    let count = Table::blocks_of(memory::size(memory));
    let (next, (sender, found)) = (AtomicUsize::new(0), async_channel::unbounded());
    let look = |sender: async_channel::Sender<(usize, Block)>| {
        let mut buffer = vec![0; GRAIN];
        while let index @ 0.. = next.fetch_add(1, Ordering::Relaxed)
            && index < count
            && sender.send_blocking((index, block_of(memory, index, &mut buffer))).is_ok()
        {}
    };
    let ram = memory.clone();
    let written = thread::scope(|scope| {
        for _ in 0..threads() {
            let sender = sender.clone();
            scope.spawn(|| look(sender));
        }
        drop(sender);
        drive.call(move |local| async move { write_blocks(&local, &ram, &found, count).await }).flatten()
    });
    written.map_err(|error| named(drive, error))
}

async fn write_blocks(
    local: &Local,
    ram: &Arc<GuestMemory>,
    found: &async_channel::Receiver<(usize, Block)>,
    count: usize,
) -> block::Result<Table> {
    let root = local.root();
    let state = vm_state(&root)?;
    let (blocks, failed) = (RefCell::new(vec![Block::default(); count]), Cell::new(false));
    let worker = async || {
        while let Ok((index, block)) = found.recv().await {
            if failed.get() {
                // The threads that look for zeros end too.
                found.close();
                return Ok(());
            }
            blocks.borrow_mut()[index] = block;
            let done = each_run(ram, index, block, async |at, iov| state.write(at, iov).await).await;
            failed.set(failed.get() | done.is_err());
            done?;
        }
        Ok(())
    };
    join_all((0..DEPTH).map(|_| worker())).await.into_iter().collect::<block::Result<()>>()?;
    Ok(Table { blocks: blocks.into_inner() })
}

/// Reads RAM of a snapshot into `ram`, which is all zeros, and checks it.
///
/// # Errors
/// What the host says, or that a checksum does not fit.
pub(super) fn fetch(drive: &Drive, id: &str, ram: &Arc<GuestMemory>, table: &Arc<Table>) -> Result<()> {
    let (sender, read) = async_channel::unbounded::<usize>();
    let damaged = AtomicBool::new(false);
    let compare = || {
        let mut buffer = vec![0; GRAIN];
        while let Ok(index) = read.recv_blocking() {
            if block_of(ram, index, &mut buffer) != table.blocks[index] {
                damaged.store(true, Ordering::Relaxed);
            }
        }
    };
    let (id, into, blocks) = (id.to_owned(), ram.clone(), table.clone());
    let done = thread::scope(|scope| {
        (0..threads()).for_each(|_| drop(scope.spawn(compare)));
        let job = |local: Rc<Local>| async move { read_blocks(&local, &id, &into, &blocks, &sender).await };
        drive.call(job).flatten()
    });
    done.map_err(|error| named(drive, error))?;
    match damaged.into_inner() {
        true => Err(Error::new("the VM state is damaged: the checksum of its RAM does not fit it")),
        false => Ok(()),
    }
}

async fn read_blocks(
    local: &Local,
    id: &str,
    ram: &Arc<GuestMemory>,
    table: &Table,
    read: &async_channel::Sender<usize>,
) -> block::Result<()> {
    let view = view(local, id).await?;
    let (state, next) = (vm_state(&view)?, Cell::new(0));
    let worker = async || {
        while let Some(&block) = table.blocks.get(next.get()) {
            let index = next.replace(next.get() + 1);
            each_run(ram, index, block, async |at, iov| state.read(at, iov).await)
                .await
                .inspect_err(|_| next.set(table.blocks.len()))?;
            // The threads listen until the last one has been sent.
            let _ = read.try_send(index);
        }
        Ok(())
    };
    join_all((0..DEPTH).map(|_| worker())).await.into_iter().collect()
}

/// Calls `f` with the place and the memory of each run of grains of a block that are stored.
async fn each_run(
    ram: &Arc<GuestMemory>,
    index: usize,
    block: Block,
    f: impl AsyncFn(u64, &block::Iov) -> block::Result<()>,
) -> block::Result<()> {
    let range = block_range(ram, index);
    for (first, count) in block.runs() {
        let start = range.start + (first * GRAIN) as u64;
        let end = (start + (count * GRAIN) as u64).min(range.end);
        let iov = memory::iov(ram, start..end).ok_or_else(|| block::Error::new(Kind::OutOfRange, "RAM"))?;
        f(RAM_AT + start, &iov).await?;
    }
    Ok(())
}

/// What is to be stored of a block.
fn block_of(ram: &Arc<GuestMemory>, index: usize, buffer: &mut [u8]) -> Block {
    let mut hasher = Hasher::default();
    if let Some(iov) = memory::iov(ram, block_range(ram, index)) {
        for (grain, at) in (0..iov.len()).step_by(GRAIN).enumerate() {
            let copied = iov.copy_to(at, buffer);
            hasher.add(grain, &buffer[..copied]);
        }
    }
    hasher.finish()
}

fn block_range(ram: &GuestMemory, index: usize) -> Range<u64> {
    let start = index as u64 * BLOCK;
    start..(start + BLOCK).min(memory::size(ram))
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
