//! Death at every moment. A workload runs over a file that logs what reached it; then the file is rebuilt as a
//! crash would leave it, and must be consistent (leaks are allowed) with everything in it that was flushed.
//!
//! * A killed process: every prefix of the log.
//! * A power failure: everything up to a flush, and of what came after it any subset.

use super::memory::{Disk, Event, Folder, State, apply, driver};
use super::model::{Model, Request, base, seed};
use crate::block::Buffer;
use crate::block::aio::{Backend, Engine};
use crate::block::format::qcow2::CreateOptions;
use crate::block::graph::Node;
use crate::block::graph::driver::{Check, CheckReport};
use crate::block::options::Preallocation;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// A moment of the workload, by the length of the log.
struct Flushed {
    at: usize,
    content: Vec<u8>,
}

struct Run {
    initial: Vec<u8>,
    backing: Option<Vec<u8>>,
    log: Vec<Event>,
    flushes: Vec<Flushed>,
    /// What was requested, and the length of the log when it was.
    requests: Vec<(usize, Range<usize>)>,
}

/// Runs `steps` random requests on the image, one after another.
fn record(initial: Vec<u8>, backing: Option<Vec<u8>>, cluster: u64, steps: usize, seed: u64) -> Run {
    let disk = Disk::from_bytes(Backend::Auto, initial.clone(), backing.clone());
    let mut model = Model::new(disk, cluster, seed);
    let mut run = Run { initial, backing, log: Vec::new(), flushes: Vec::new(), requests: Vec::new() };
    run.flushes.push(Flushed { at: 0, content: model.content.clone() });
    for _ in 0..steps {
        let size = model.content.len();
        let start = model.rng.random_range(0..size / 512) * 512;
        let len = (model.rng.random_range(1..=3 * cluster as usize / 512) * 512).min(size - start);
        run.requests.push((model.disk.state.log.borrow().len(), start..start + len));
        let request = model.request(len);
        perform(&mut model, start, len, request);
        if model.rng.random_range(0..8) == 0 {
            model.disk.run(model.disk.node.flush()).unwrap();
            let at = model.disk.state.log.borrow().len();
            run.flushes.push(Flushed { at, content: model.content.clone() });
        }
    }
    model.disk.close();
    run.log = model.disk.state.log.take();
    run
}

fn perform(model: &mut Model, start: usize, len: usize, request: Request) {
    let (node, at) = (model.disk.node.clone(), start as u64);
    match request {
        Request::Read => {}
        Request::Write(bytes) => {
            model.disk.run(node.write(at, &Buffer::from_bytes(&bytes).iov(len))).unwrap();
            model.content[start..start + len].copy_from_slice(&bytes);
        }
        Request::Zero(unmap) => {
            model.disk.run(node.write_zeroes(at, len as u64, unmap)).unwrap();
            model.content[start..start + len].fill(0);
        }
        Request::Discard => {
            model.disk.run(node.discard(at, len as u64)).unwrap();
            let now = model.disk.run(node.read_bytes(at, len)).unwrap();
            model.content[start..start + len].copy_from_slice(&now);
        }
    }
}

impl Run {
    /// The file after a power failure at `at`: of what was not flushed, only what `keep` says.
    fn file_at(&self, at: usize, mut keep: impl FnMut() -> bool) -> Vec<u8> {
        let flushed = self.log[..at].iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let mut bytes = self.initial.clone();
        for (index, event) in self.log[..at].iter().enumerate() {
            if let Event::Write(offset, data) = event
                && (index < flushed || keep())
            {
                apply(&mut bytes, *offset, data);
            }
        }
        bytes
    }

    /// The image is consistent, and reads as it was flushed but where it was written to since.
    fn judge(&self, bytes: &[u8], at: usize) {
        let (content, report) = self.open_after(bytes);
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "at {at}: {:?}", report.messages);
        let flushed = self.flushes.iter().rfind(|flushed| flushed.at <= at).unwrap();
        let mut expected = flushed.content.clone();
        for (_, range) in self.requests.iter().filter(|(start, _)| (flushed.at..=at).contains(start)) {
            expected[range.clone()].copy_from_slice(&content[range.clone()]);
        }
        let differs = content.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "at {at} of {}", self.log.len());
    }

    /// What a file that a crash left holds, and what is wrong with it.
    fn open_after(&self, bytes: &[u8]) -> (Vec<u8>, CheckReport) {
        let engine = Engine::new(Backend::Threads).unwrap();
        let state = Rc::new(State { bytes: RefCell::new(bytes.to_vec()), ..State::default() });
        let backing = self.backing.clone().map(|bytes| {
            let state = Rc::new(State { bytes: RefCell::new(bytes), ..State::default() });
            super::memory::MemoryFile::node(&engine, &state)
        });
        let image = driver(&engine, &state, backing, true).unwrap();
        let report = engine.block_on(image.check()).unwrap().unwrap();
        let node = Node::new("disk", Box::new(image));
        let content = engine.block_on(node.read_bytes(0, node.size() as usize)).unwrap().unwrap();
        (content, report)
    }

    fn die_everywhere(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = Folder::new();
        folder.write("base", self.backing.as_deref().unwrap_or_default());
        for at in 0..=self.log.len() {
            let killed = self.file_at(at, || true);
            self.judge(&killed, at);
            self.judge(&self.file_at(at, || rng.random()), at);
            if at % 100 == 50 {
                folder.write("disk", &killed);
                // 3: leaks alone.
                let status = folder.try_run("qemu-img check -f qcow2 disk").status.code();
                assert!(matches!(status, Some(0 | 3)), "qemu-img check: {status:?} at {at}");
            }
        }
    }
}

fn dies_well(name: &str, options: &CreateOptions, backing: Option<Vec<u8>>, steps: usize) {
    let seed = seed(name);
    let disk = Disk::create(Backend::Auto, options, backing.clone());
    disk.close();
    record(disk.bytes(), backing, options.cluster_size, steps, seed).die_everywhere(seed);
}

fn options(size: u64, cluster_size: u64, refcount_bits: u64, version: u32) -> CreateOptions {
    CreateOptions { size, cluster_size, refcount_bits, version, ..CreateOptions::default() }
}

#[test]
fn death_at_any_moment_leaves_a_consistent_image() {
    for (size, cluster, bits, version) in
        [(200 << 10, 512, 16, 3), (300 << 10, 4096, 1, 3), (200 << 10, 512, 16, 2)]
    {
        dies_well("plain", &options(size, cluster, bits, version), None, 60);
    }
}

#[test]
fn death_while_the_refcount_table_grows_leaves_a_consistent_image() {
    dies_well("refcount table", &options(3 << 20, 512, 64, 3), None, 30);
}

#[test]
fn death_over_a_backing_file_leaves_a_consistent_image() {
    let overlay = CreateOptions {
        backing_file: Some("base".into()),
        backing_format: Some("raw".into()),
        ..options(200 << 10, 512, 16, 3)
    };
    dies_well("overlay", &overlay, Some(base(150_000)), 60);
}

#[test]
fn death_between_subclusters_leaves_a_consistent_image() {
    let options = CreateOptions { extended_l2: true, ..options(600 << 10, 16384, 16, 3) };
    dies_well("subclusters", &options, None, 60);
    let overlay = CreateOptions {
        backing_file: Some("base".into()),
        backing_format: Some("raw".into()),
        preallocation: Preallocation::Metadata,
        ..options
    };
    dies_well("subclusters of an overlay", &overlay, Some(base(350_000)), 40);
}

#[test]
fn death_with_snapshots_and_compressed_clusters_leaves_a_consistent_image() {
    for (cluster, extended) in [(512, "off"), (4096, "off"), (16384, "on")] {
        let folder = Folder::new();
        folder.write("bytes", &base(300 << 10));
        let options = format!("cluster_size={cluster},extended_l2={extended}");
        folder.run(&format!("qemu-img convert -c -f raw -O qcow2 -o {options} bytes disk"));
        folder.run("qemu-io -f qcow2 disk -c 'write -P 5 10k 60k'");
        folder.run("qemu-img snapshot -c one disk");
        folder.run("qemu-io -f qcow2 disk -c 'write -P 6 50k 60k'");
        let seed = seed("snapshots");
        record(folder.read("disk"), None, cluster, 50, seed).die_everywhere(seed);
    }
}

#[test]
fn death_while_growing_leaves_the_old_or_the_new_size() {
    for backing in [None, Some(base(900 << 10))] {
        let small = options(100 << 10, 512, 16, 3);
        let (backing_file, backing_format) = (Some("base".into()), Some("raw".into()));
        let small =
            if backing.is_some() { CreateOptions { backing_file, backing_format, ..small } } else { small };
        let disk = Disk::create(Backend::Auto, &small, backing.clone());
        disk.close();
        let mut run = record(disk.bytes(), backing.clone(), 512, 20, seed("grow"));
        let disk = Disk::from_bytes(Backend::Auto, run.file_at(run.log.len(), || true), backing);
        run.initial = disk.bytes();
        let before = disk.read_all();
        disk.run(disk.node.truncate(1 << 20, Preallocation::Metadata)).unwrap();
        disk.close();
        run.log = disk.state.log.take();
        let mut after = before.clone();
        after.resize(1 << 20, 0);
        assert!(disk.read_all() == after);
        for at in 0..=run.log.len() {
            let (content, report) = run.open_after(&run.file_at(at, || true));
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "at {at}: {:?}", report.messages);
            assert!(content == before || content == after, "at {at}");
        }
    }
}
