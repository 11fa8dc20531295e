//! Random sequences of requests against a plain array of bytes.
//!
//! Every stack of drivers runs the same suite on both reactors. Offsets and lengths are bytes, not sectors, and
//! gather around cluster borders. At the end the real qemu-img must find the image consistent and its content
//! equal to the model. A failure prints the seed; `COWVM_SEED=N` runs that one again.

use crate::fixture::{BACKENDS, Folder, Image};
use crate::seed::seed_or;
use cowvm::block::Buffer;
use cowvm::block::aio::Backend;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// An image as qemu-img makes it, and what it reads as.
struct Stack {
    folder: Folder,
    image: &'static str,
    format: &'static str,
    cluster: u64,
    content: Vec<u8>,
}

fn raw(size: u64) -> Stack {
    let folder = Folder::new();
    folder.qemu_img(&format!("create -q -f raw disk {size}"));
    Stack { folder, image: "disk", format: "raw", cluster: 4096, content: vec![0; size as usize] }
}

fn qcow2(options: &str, cluster: u64, size: u64) -> Stack {
    let folder = Folder::new();
    folder.qemu_img(&format!("create -q -f qcow2 -o cluster_size={cluster}{options} disk {size}"));
    Stack { folder, image: "disk", format: "qcow2", cluster, content: vec![0; size as usize] }
}

/// An overlay over a base of random bytes that is `base` bytes long.
fn overlay(base_format: &str, base: u64, options: &str, cluster: u64, size: u64) -> Stack {
    let folder = Folder::new();
    let mut bytes = vec![0; base as usize];
    StdRng::seed_from_u64(base).fill(&mut bytes[..]);
    bytes[base as usize / 4..base as usize / 2].fill(0);
    std::fs::write(folder.path("bytes"), &bytes).unwrap();
    folder.qemu_img(&format!("convert -f raw -O {base_format} bytes base"));
    folder.qemu_img(&format!(
        "create -q -f qcow2 -b base -F {base_format} -o cluster_size={cluster}{options} disk {size}"
    ));
    bytes.resize(size as usize, 0);
    Stack { folder, image: "disk", format: "qcow2", cluster, content: bytes }
}

/// The name of a data file that must read as the disk at every moment.
const RAW_DATA: &str = "raw-data";

/// Runs `steps` random requests on the stack that `make` makes, on both reactors.
fn agrees_with_the_model(steps: usize, make: impl Fn() -> Stack) {
    for backend in BACKENDS {
        println!("{backend:?}");
        let mut run = Run::new(backend, make(), seed_or(rand::random()));
        for _ in 0..steps {
            run.step();
        }
        run.finish();
    }
}

/// A request at an offset.
enum Sent {
    /// Finds these bytes.
    Read(usize, Vec<u8>),
    Write(usize, Vec<u8>),
    Zeroes(usize, usize),
}

impl Image {
    /// Sends each request as a task of its own, all at once, and waits for them.
    fn send_at_once(&self, requests: Vec<Sent>) {
        let all = async {
            let ends: Vec<_> = requests
                .into_iter()
                .map(|request| {
                    let (node, (done, end)) = (self.node.clone(), async_channel::bounded(1));
                    self.engine.spawn(async move {
                        match request {
                            Sent::Read(at, expected) => {
                                let found = node.read_bytes(at as u64, expected.len()).await.unwrap();
                                assert!(found == expected, "{at}+{}", expected.len());
                            }
                            Sent::Write(at, bytes) => {
                                let iov = Buffer::from_bytes(&bytes).iov(bytes.len());
                                node.write(at as u64, &iov).await.unwrap();
                            }
                            Sent::Zeroes(at, len) => {
                                node.write_zeroes(at as u64, len as u64, true).await.unwrap()
                            }
                        }
                        done.try_send(()).unwrap();
                    });
                    end
                })
                .collect();
            join_all(ends.iter().map(|end| end.recv())).await
        };
        assert!(self.engine.block_on(all).unwrap().iter().all(Result::is_ok));
    }
}

struct Run {
    backend: Backend,
    stack: Stack,
    /// Always there but while it is being reopened.
    image: Option<Image>,
    rng: StdRng,
}

impl Run {
    fn new(backend: Backend, stack: Stack, seed: u64) -> Run {
        let image = Image::open(backend, &stack.folder.path(stack.image), stack.format, false);
        assert_eq!(image.node.size(), stack.content.len() as u64);
        Run { backend, stack, image: Some(image), rng: StdRng::seed_from_u64(seed) }
    }

    fn image(&self) -> &Image {
        self.image.as_ref().unwrap()
    }

    fn range(&mut self) -> (u64, usize) {
        let size = self.stack.content.len() as u64;
        let near = self.rng.random_range(0..=size / self.stack.cluster) * self.stack.cluster;
        let jitter = self.rng.random_range(0..self.stack.cluster.min(5000));
        let start = if self.rng.random() { near + jitter } else { near.saturating_sub(jitter) }.min(size - 1);
        let longest = (size - start).min(3 * self.stack.cluster).min(300_000);
        let len = match self.rng.random_range(0..4) {
            0 => self.stack.cluster.min(longest),
            1 => self.rng.random_range(1..=longest.min(600)),
            _ => self.rng.random_range(1..=longest),
        };
        (start, len as usize)
    }

    fn step(&mut self) {
        let (start, len) = self.range();
        let at = start as usize;
        match self.rng.random_range(0..105) {
            0..35 => {
                assert_eq!(self.image().read(start, len), self.stack.content[at..at + len], "{start}+{len}")
            }
            35..75 => {
                let mut bytes = vec![0; len];
                self.rng.fill(&mut bytes[..]);
                self.image().write(start, &bytes);
                self.stack.content[at..at + len].copy_from_slice(&bytes);
            }
            75..85 => {
                let may_unmap = self.rng.random();
                self.image().write_zeroes(start, len as u64, may_unmap);
                self.stack.content[at..at + len].fill(0);
            }
            85..92 => self.discard(start, len),
            92..97 => self.image().flush(),
            97..100 => self.reopen(),
            _ => self.burst(start),
        }
        self.check_raw_data();
    }

    /// Many requests in flight at once, from `start` on: runs of some that follow one another, in any order. No two touch.
    fn burst(&mut self, start: u64) {
        let (mut runs, mut at) = (Vec::new(), start as usize);
        for _ in 0..self.rng.random_range(2..20) {
            let mut run = Vec::new();
            for _ in 0..self.rng.random_range(1..5) {
                let longest = (self.stack.content.len() - at).min(self.stack.cluster as usize).min(70_000);
                if longest > 0 {
                    let len = self.rng.random_range(1..=longest);
                    run.push((at, at + len));
                    at += len;
                }
            }
            runs.push(run);
        }
        runs.shuffle(&mut self.rng);
        let mut sent = Vec::new();
        for (from, to) in runs.concat() {
            let before = self.stack.content[from..to].to_vec();
            let now = &mut self.stack.content[from..to];
            sent.push(match self.rng.random_range(0..10) {
                0 => Sent::Read(from, before),
                1 => {
                    now.fill(0);
                    Sent::Zeroes(from, to - from)
                }
                _ => {
                    self.rng.fill(now);
                    Sent::Write(from, now.to_vec())
                }
            });
        }
        self.image().send_at_once(sent);
    }

    fn check_raw_data(&self) {
        if let Ok(bytes) = std::fs::read(self.stack.folder.path(RAW_DATA)) {
            // qemu-img makes it a whole number of clusters long.
            let (disk, rest) = bytes.split_at(self.stack.content.len());
            assert!(disk == self.stack.content, "the data file is not the disk");
            assert!(rest.iter().all(|&byte| byte == 0));
        }
    }

    /// Each byte is what it was, or zero; nothing outside changes.
    fn discard(&mut self, start: u64, len: usize) {
        self.image().discard(start, len as u64);
        let (at, now) = (start as usize, self.image().read(start, len));
        let before = &mut self.stack.content[at..at + len];
        for (new, old) in now.iter().zip(before) {
            assert!(*new == 0 || *new == *old);
            *old = *new;
        }
    }

    fn reopen(&mut self) {
        // Only one writer at a time: close before opening again.
        if let Some(image) = self.image.take() {
            image.close();
        }
        let path = self.stack.folder.path(self.stack.image);
        self.image = Some(Image::open(self.backend, &path, self.stack.format, false));
    }

    fn finish(self) {
        let Run { stack, image, .. } = self;
        let image = image.unwrap();
        assert!(image.read(0, stack.content.len()) == stack.content);
        image.close();
        assert!(
            stack.folder.content(stack.format, stack.image) == stack.content,
            "qemu-img reads something else"
        );
        if stack.format == "qcow2" {
            stack.folder.qemu_img(&format!("check -q -f qcow2 {}", stack.image));
        }
    }
}

#[test]
fn raw_images_agree_with_the_model() {
    agrees_with_the_model(400, || raw(1 << 20));
    agrees_with_the_model(200, || raw((1 << 20) + 512));
}

#[test]
fn qcow2_images_of_every_cluster_size_agree_with_the_model() {
    for bits in 9..=21 {
        let cluster = 1 << bits;
        agrees_with_the_model(200, || qcow2("", cluster, (40 * cluster).min(8 << 20) + 1536));
    }
}

#[test]
fn version_2_images_agree_with_the_model() {
    for bits in [9, 12, 16, 21] {
        let cluster = 1 << bits;
        agrees_with_the_model(200, || qcow2(",compat=0.10", cluster, (40 * cluster).min(8 << 20)));
    }
}

#[test]
fn every_refcount_width_agrees_with_the_model() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        agrees_with_the_model(200, || qcow2(&format!(",refcount_bits={bits}"), 4096, 1 << 20));
    }
}

#[test]
fn preallocated_and_lazy_images_agree_with_the_model() {
    for option in
        [",preallocation=metadata", ",preallocation=falloc", ",preallocation=full", ",lazy_refcounts=on"]
    {
        agrees_with_the_model(200, || qcow2(option, 65536, 4 << 20));
    }
}

#[test]
fn images_with_a_data_file_agree_with_the_model_and_raw_ones_are_the_disk_at_every_moment() {
    for (cluster, size) in [(512, 40_448), (4096, 1 << 20), (65536, (4 << 20) + 1536), (2 << 20, 5 << 20)] {
        agrees_with_the_model(150, || qcow2(",data_file=data", cluster, size));
        let raw = format!(",data_file={RAW_DATA},data_file_raw=on");
        agrees_with_the_model(150, || qcow2(&raw, cluster, size));
    }
    agrees_with_the_model(100, || qcow2(",data_file=data,preallocation=falloc", 65536, 1 << 20));
    agrees_with_the_model(100, || overlay("raw", 700_416, ",data_file=data", 4096, 1 << 20));
}

#[test]
fn overlays_agree_with_the_model_whatever_the_length_of_their_base() {
    for base_format in ["raw", "qcow2"] {
        for (base, size) in [(1 << 20, 1 << 20), (300_032, 1 << 20), (1 << 20, 500_224), (512, 1 << 20)] {
            for cluster in [512, 4096, 65536, 1 << 20] {
                agrees_with_the_model(60, || overlay(base_format, base, "", cluster, size));
            }
        }
    }
    agrees_with_the_model(200, || overlay("raw", 700_416, ",compat=0.10", 4096, 1 << 20));
}

#[test]
fn a_chain_of_three_agrees_with_the_model() {
    agrees_with_the_model(200, || {
        let mut stack = overlay("qcow2", 700_416, "", 4096, 1 << 20);
        stack.folder.qemu_img("create -q -f qcow2 -b disk -F qcow2 -o cluster_size=65536 top 1310720");
        stack.content.resize(1_310_720, 0);
        Stack { image: "top", cluster: 65536, ..stack }
    });
}
