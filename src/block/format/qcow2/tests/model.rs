//! Random requests, several at once, against a plain array of bytes: over every cluster size, refcount width and
//! version, with and without a backing file, on both reactors. The real qemu-img checks and compares the result.

use super::memory::{Disk, Folder, described};
use crate::block::aio::Backend;
use crate::block::format::qcow2::{CacheOptions, CreateOptions};
use crate::block::graph::Node;
use crate::block::options::Preallocation;
use crate::block::{Buffer, Kind};
use crate::seed::seed_or;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use std::rc::Rc;

/// A seed, printed so that a failure can be run again with `COWVM_SEED`.
pub(super) fn seed(name: &str) -> u64 {
    println!("{name}");
    seed_or(rand::random())
}

/// A request on a range.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Read,
    Write(Vec<u8>),
    /// Of whole clusters.
    Compressed(Vec<u8>),
    Zero(bool),
    Discard,
}

/// A disk, what it must read as, and where the random numbers come from.
pub(super) struct Model {
    pub(super) disk: Disk,
    pub(super) content: Vec<u8>,
    pub(super) rng: StdRng,
    cluster: u64,
}

impl Model {
    pub(super) fn new(disk: Disk, cluster: u64, seed: u64) -> Model {
        let content = disk.read_all();
        Model { disk, content, rng: StdRng::seed_from_u64(seed), cluster }
    }

    fn range(&mut self) -> Range<usize> {
        let size = self.content.len() as u64;
        let near = self.rng.random_range(0..=size / self.cluster) * self.cluster;
        let jitter = self.rng.random_range(0..self.cluster.min(3000));
        let start = if self.rng.random() { near + jitter } else { near.saturating_sub(jitter) }.min(size - 1);
        let longest = (size - start).min(4 * self.cluster).min(200_000);
        let len = match self.rng.random_range(0..4) {
            0 => self.cluster.min(longest),
            1 => self.rng.random_range(1..=longest.min(600)),
            _ => self.rng.random_range(1..=longest),
        };
        start as usize..(start + len) as usize
    }

    /// A request on a range, which becomes wider if the request needs whole clusters.
    pub(super) fn request(&mut self, range: Range<usize>) -> (Range<usize>, Request) {
        let mut bytes = vec![0; range.len()];
        let request = match self.rng.random_range(0..12) {
            0..3 => Request::Read,
            3..7 => {
                self.rng.fill(&mut bytes[..]);
                Request::Write(bytes)
            }
            7..9 => return self.compressed(range),
            9..11 => Request::Zero(self.rng.random()),
            _ => Request::Discard,
        };
        (range, request)
    }

    fn compressed(&mut self, range: Range<usize>) -> (Range<usize>, Request) {
        let cluster = self.cluster as usize;
        let end = range.end.next_multiple_of(cluster).min(self.content.len());
        let range = range.start / cluster * cluster..end;
        let bytes = compressible(&mut self.rng, range.len());
        (range, Request::Compressed(bytes))
    }

    /// Some requests at once, on bytes that do not overlap; their clusters may.
    pub(super) fn step(&mut self) {
        let mut batch: Vec<(Range<usize>, Request)> = Vec::new();
        for _ in 0..self.rng.random_range(1..6) {
            let range = self.range();
            let (range, request) = self.request(range);
            if batch.iter().all(|(other, _)| other.end <= range.start || range.end <= other.start) {
                batch.push((range, request));
            }
        }
        let node = self.disk.node.clone();
        let all = batch.iter().map(|(range, request)| send(&node, range.clone(), request));
        let answers = self.disk.run(join_all(all));
        for ((range, request), answer) in batch.into_iter().zip(answers) {
            self.note(range, request, answer);
        }
    }

    fn note(&mut self, range: Range<usize>, request: Request, answer: Vec<u8>) {
        match request {
            Request::Read => assert!(answer == self.content[range.clone()], "read {range:?}"),
            Request::Write(bytes) | Request::Compressed(bytes) => self.content[range].copy_from_slice(&bytes),
            Request::Zero(_) => self.content[range].fill(0),
            // Each byte is what it was, or zero.
            Request::Discard => {
                for (new, old) in answer.iter().zip(&mut self.content[range]) {
                    assert!(*new == 0 || new == old);
                    *old = *new;
                }
            }
        }
    }
}

async fn send(node: &Rc<Node>, range: Range<usize>, request: &Request) -> Vec<u8> {
    let (at, len) = (range.start as u64, range.len());
    match request {
        Request::Read => return node.read_bytes(at, len).await.unwrap(),
        Request::Write(bytes) => node.write(at, &Buffer::from_bytes(bytes).iov(len)).await.unwrap(),
        Request::Compressed(bytes) => {
            let from = Buffer::from_bytes(bytes).iov(len);
            match node.write_compressed(at, &from).await {
                // Encrypted images take none.
                Err(error) if error.kind() == Kind::Unsupported => node.write(at, &from).await.unwrap(),
                other => other.unwrap(),
            }
        }
        Request::Zero(unmap) => node.write_zeroes(at, len as u64, *unmap).await.unwrap(),
        Request::Discard => {
            node.discard(at, len as u64).await.unwrap();
            return node.read_bytes(at, len).await.unwrap();
        }
    }
    Vec::new()
}

/// Bytes of which some clusters become smaller and some do not.
pub(super) fn compressible(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let noise = rng.random_range(0..4);
    for chunk in bytes.chunks_mut(300) {
        if rng.random_range(0..4) < noise {
            rng.fill(chunk);
        } else {
            chunk.fill(rng.random());
        }
    }
    bytes
}

/// Our check and qemu-img's find nothing, and both read the model's content.
pub(super) fn finish(model: &Model) {
    assert!(model.disk.read_all() == model.content);
    model.disk.close();
    let report = model.disk.run(model.disk.node.driver().checker().unwrap().check()).unwrap();
    assert_eq!(report.messages, [""; 0]);
    let folder = Folder::new();
    folder.write("disk", &model.disk.bytes());
    if let Some(backing) = &model.disk.backing {
        let bytes = model.disk.run(backing.read_bytes(0, backing.size() as usize)).unwrap();
        folder.write("base", &bytes);
    }
    folder.run(&format!("qemu-img check {}", described("disk")));
    assert!(folder.content("disk", "") == model.content);
}

/// A backing file: random bytes, a hole, an end that is not aligned.
pub(super) fn base(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(len as u64).fill(&mut bytes[..]);
    bytes[len / 4..len / 2].fill(0);
    bytes
}

pub(super) fn run(options: &CreateOptions, backing: Option<Vec<u8>>, steps: usize) {
    run_with(options, backing, steps, CacheOptions::default());
}

fn run_with(options: &CreateOptions, backing: Option<Vec<u8>>, steps: usize, caches: CacheOptions) {
    for backend in [Backend::Auto, Backend::Threads] {
        let seed = seed(&format!("{options:?} {caches:?} {backend:?}"));
        let mut disk = Disk::create(backend, options, backing.clone());
        disk.reopen_with(caches);
        let mut model = Model::new(disk, options.cluster_size, seed);
        for step in 0..steps {
            model.step();
            match model.rng.random_range(0..20) {
                0 => model.disk.run(model.disk.node.flush()).unwrap(),
                1 if step % 3 == 0 => model.disk.reopen(),
                _ => {}
            }
        }
        finish(&model);
    }
}

fn options(cluster_bits: u32, refcount_bits: u64, version: u32) -> CreateOptions {
    let size = (40 << cluster_bits).min(5 << 20) + 1536;
    CreateOptions {
        size,
        version,
        cluster_size: 1 << cluster_bits,
        refcount_bits,
        ..CreateOptions::default()
    }
}

fn overlay(options: CreateOptions) -> CreateOptions {
    let (backing_file, backing_format) = (Some("base".into()), Some("raw".into()));
    CreateOptions { backing_file, backing_format, ..options }
}

#[test]
fn every_cluster_size_agrees_with_the_model() {
    for cluster_bits in 9..=21 {
        run(&options(cluster_bits, 16, 3), None, 120);
    }
}

#[test]
fn every_refcount_width_agrees_with_the_model() {
    for order in 0..=6 {
        run(&options(9, 1 << order, 3), None, 150);
        run(&options(12, 1 << order, 3), None, 100);
    }
}

#[test]
fn the_smallest_caches_agree_with_the_model() {
    for (cluster_bits, extended_l2) in [(9, false), (16, false), (14, true)] {
        for slice in [512, 1 << cluster_bits] {
            let caches = CacheOptions {
                l2_cache_size: Some(0),
                refcount_cache_size: Some(1),
                l2_cache_entry_size: Some(slice),
                ..CacheOptions::default()
            };
            let options = overlay(CreateOptions { extended_l2, ..options(cluster_bits, 64, 3) });
            let len = options.size as usize / 2 + 77;
            run_with(&options, Some(base(len)), 80, caches);
        }
    }
}

#[test]
fn subclusters_agree_with_the_model() {
    for cluster_bits in [14, 16, 21] {
        let options = CreateOptions { extended_l2: true, ..options(cluster_bits, 16, 3) };
        run(&options, None, 120);
        for preallocation in [Preallocation::Off, Preallocation::Metadata] {
            let options = CreateOptions { preallocation, ..overlay(options.clone()) };
            let len = options.size as usize / 2 + 77;
            run(&options, Some(base(len)), 100);
        }
    }
}

#[test]
fn overlays_agree_with_the_model() {
    for cluster_bits in [9, 12, 16] {
        let options = overlay(options(cluster_bits, 16, 3));
        let size = options.size as usize;
        for len in [size, size / 2 + 77, size * 2] {
            run(&options, Some(base(len)), 100);
        }
    }
}

#[test]
fn version_2_agrees_with_the_model() {
    for cluster_bits in [9, 12, 16] {
        let options = options(cluster_bits, 16, 2);
        run(&options, None, 100);
        let len = options.size as usize / 2 + 77;
        run(&overlay(options), Some(base(len)), 100);
    }
}

/// The refcount table moves several times: 512-byte clusters, 64-bit refcounts.
#[test]
fn an_image_that_outgrows_its_refcount_table_agrees_with_the_model() {
    let options = CreateOptions { size: 6 << 20, ..options(9, 64, 3) };
    let mut model = Model::new(Disk::create(Backend::Auto, &options, None), 512, seed("refcount table"));
    let mut bytes = vec![0; 6 << 20];
    model.rng.fill(&mut bytes[..]);
    for at in (0..bytes.len()).step_by(64 << 10) {
        let part = Buffer::from_bytes(&bytes[at..at + (64 << 10)]).iov(64 << 10);
        model.disk.run(model.disk.node.write(at as u64, &part)).unwrap();
        if at % (1 << 20) == 0 {
            model.disk.run(model.disk.node.flush()).unwrap();
        }
    }
    model.content = bytes;
    (0..60).for_each(|_| model.step());
    finish(&model);
}

#[test]
fn growing_keeps_the_content_and_shows_zeros_behind_it() {
    for (cluster_bits, version, extended_l2) in
        [(9, 3, false), (9, 2, false), (16, 3, false), (14, 3, true), (18, 3, true)]
    {
        for backing in [None, Some(base(3 << 20))] {
            let small = CreateOptions { size: 301 * 512, extended_l2, ..options(cluster_bits, 16, version) };
            let small = if backing.is_some() { overlay(small) } else { small };
            let disk = Disk::create(Backend::Auto, &small, backing.clone());
            let mut model = Model::new(disk, small.cluster_size, seed("grow"));
            (0..30).for_each(|_| model.step());
            let ahead = [Preallocation::Off, Preallocation::Metadata][model.rng.random_range(0..2)];
            let grown = model.disk.run(model.disk.node.truncate(4 << 20, ahead));
            // Without zero clusters, only allocated ones hide what the backing file has there.
            if version == 2 && backing.is_some() && ahead == Preallocation::Off {
                assert_eq!(grown.unwrap_err().kind(), crate::block::Kind::Unsupported);
            } else {
                grown.unwrap();
                model.content.resize(4 << 20, 0);
            }
            (0..30).for_each(|_| model.step());
            model.disk.reopen();
            finish(&model);
        }
    }
}
