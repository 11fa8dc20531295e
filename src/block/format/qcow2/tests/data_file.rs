//! Death at every moment, of an image with a data file: bytes are the old or the new ones until a flush, then the
//! new ones; a raw data file is never short of what was flushed either.
//!
//! Both files log into one, so that it says in which order things reached the host.

use super::memory::{MemoryFile, State};
use super::operations::sweep_seed;
use crate::block::aio::{Backend, Engine};
use crate::block::filter::LogWrites;
use crate::block::filter::log_writes::{Change, Entry, Log};
use crate::block::format::qcow2::{CreateOptions, Image, create};
use crate::block::graph::Node;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::rc::Rc;

const CLUSTER: usize = 512;
const SIZE: usize = 40 * CLUSTER + 100 * 512;

/// A file, what was made of it, and how many entries its log had at each moment.
pub(super) struct Logged {
    pub(super) state: Rc<State>,
    pub(super) log: Rc<Log>,
    pub(super) node: Rc<Node>,
}

impl Logged {
    pub(super) fn new(engine: &Rc<Engine>, bytes: Vec<u8>) -> Logged {
        let state = Rc::new(State { bytes: RefCell::new(bytes), ..State::default() });
        let log = Rc::new(Log::default());
        let filter = LogWrites::new(MemoryFile::node(engine, &state), log.clone());
        Logged { state, log, node: Node::new("log", Box::new(filter)) }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state.bytes.borrow().clone()
    }

    /// The image in it, over `backing`.
    pub(super) fn open(&self, engine: &Rc<Engine>, backing: Option<Rc<Node>>) -> Rc<Node> {
        let image = engine.block_on(Image::read(&self.node)).unwrap().unwrap();
        let image = engine.block_on(image.made_right(engine)).unwrap().unwrap();
        Node::new("disk", image.into_driver(engine, backing, false).unwrap())
    }
}

fn open(engine: &Rc<Engine>, image: &Rc<Node>, data: &Rc<Node>) -> Rc<Node> {
    let mut image = engine.block_on(Image::read(image)).unwrap().unwrap();
    image.set_data_file(data.clone());
    Node::new("disk", image.into_driver(engine, None, false).unwrap())
}

/// What a crash leaves of a file: what was flushed when the log had `flushed` entries, and of the later entries up
/// to `sent` those that `keep` says. A host file that is punched reads as zeros.
fn crashed(initial: &[u8], entries: &[Entry], flushed: usize, sent: usize, keep: &mut StdRng) -> Vec<u8> {
    let mut file = initial.to_vec();
    for (index, entry) in entries[..sent].iter().enumerate() {
        let Entry::Change(change, _) = entry else { continue };
        if index >= flushed && !keep.random_bool(0.6) {
            continue;
        }
        let (at, bytes) = match change {
            Change::Write(at, bytes) => (*at as usize, bytes.clone()),
            Change::Zero(range) | Change::Discard(range) => {
                (range.start as usize, vec![0; (range.end - range.start) as usize])
            }
            Change::Truncate(size) => {
                file.resize(*size as usize, 0);
                continue;
            }
        };
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    file
}

/// The last flush of a log before its entry `end`: what came before it is durable.
fn last_flush(entries: &[Entry], end: usize) -> usize {
    entries[..end].iter().rposition(|entry| matches!(entry, Entry::Flush(_))).map_or(0, |at| at + 1)
}

struct Moment {
    /// Entries of both logs.
    sent: [usize; 2],
    content: Vec<u8>,
    flushed: Vec<u8>,
    /// Bytes that may be zero, old or new: changed since the last flush.
    unsure: Vec<bool>,
}

fn sweep(raw: bool, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let engine = Engine::new(Backend::Threads).unwrap();
    let [image, data] = [(); 2].map(|()| Logged::new(&engine, Vec::new()));
    let options = CreateOptions {
        size: SIZE as u64,
        cluster_size: CLUSTER as u64,
        data_file: Some("data".into()),
        data_file_raw: raw,
        ..CreateOptions::default()
    };
    engine.block_on(create(&engine, &image.node, Some(&data.node), &options)).unwrap().unwrap();
    let initial = [image.bytes(), data.bytes()];
    [&image, &data].iter().for_each(|file| file.log.clear());
    let disk = open(&engine, &image.node, &data.node);
    let run = |future| engine.block_on(future).unwrap();
    let mut now =
        Moment { sent: [0, 0], content: vec![0; SIZE], flushed: vec![0; SIZE], unsure: vec![false; SIZE] };
    for _ in 0..120 {
        let start = rng.random_range(0..SIZE / 512) * 512;
        let len = (rng.random_range(1..8) * 512).min(SIZE - start);
        let before = now.content.clone();
        match rng.random_range(0..10) {
            0..5 => {
                let bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
                engine.block_on(disk.write_bytes(start as u64, &bytes)).unwrap().unwrap();
                now.content[start..start + len].copy_from_slice(&bytes);
            }
            5..8 => {
                let unmap = rng.random();
                engine.block_on(disk.write_zeroes(start as u64, len as u64, unmap)).unwrap().unwrap();
                now.content[start..start + len].fill(0);
            }
            _ => {
                run(disk.flush()).unwrap();
                now.flushed = now.content.clone();
                now.unsure.fill(false);
            }
        }
        for (unsure, (old, new)) in now.unsure.iter_mut().zip(before.iter().zip(&now.content)) {
            *unsure |= old != new;
        }
        now.sent = [image.log.len(), data.log.len()];
        judge(&engine, &initial, [&image, &data], &now, raw, &mut rng);
    }
    run(disk.flush()).unwrap();
    assert!(!raw || data.bytes()[..SIZE] == now.content[..]);
}

/// After a power failure the image opens, and shows everything that was flushed.
fn judge(
    engine: &Rc<Engine>,
    initial: &[Vec<u8>; 2],
    files: [&Logged; 2],
    now: &Moment,
    raw: bool,
    rng: &mut StdRng,
) {
    let file = |which: usize, rng: &mut StdRng| {
        let (entries, end) = (files[which].log.entries(), now.sent[which]);
        crashed(&initial[which], &entries, last_flush(&entries, end), end, rng)
    };
    let (image, data) = (file(0, rng), file(1, rng));
    let (image, data) = (Logged::new(engine, image), Logged::new(engine, data));
    let disk = open(engine, &image.node, &data.node);
    let seen = engine.block_on(disk.read_bytes(0, SIZE)).unwrap().unwrap();
    let report = engine.block_on(disk.driver().checker().unwrap().check()).unwrap().unwrap();
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.messages);
    let sure = |bytes: &[u8]| (0..SIZE).find(|&at| !now.unsure[at] && bytes[at] != now.flushed[at]);
    assert_eq!(sure(&seen), None);
    if raw {
        assert!(data.bytes()[..SIZE] == seen[..], "the data file is not the disk");
    }
}

#[test]
fn what_was_flushed_survives_death_at_every_moment() {
    let seed = sweep_seed();
    for round in 0..10 {
        sweep(false, seed + round);
        sweep(true, seed + round);
    }
}
