//! 4 KiB requests through the block layer, against `qemu-img bench` in alternating runs.
//!
//! `cargo bench --bench block [-- --rounds 5] [-- --only raw-cached]`. Every workload runs the same requests in
//! both programs: sequential ones, or "random" ones by a stride that visits the image in a scattered order
//! (`qemu-img bench -S`). QEMU runs with each of its I/O engines; its default and its best are shown, and the
//! ratio is ours to its best. Medians of the rounds; thousand requests a second.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

mod measure;

use cowvm::block::Buffer;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::open::open;
use cowvm::block::options::{CacheMode, OpenOptions};
use measure::{Requests, in_turn, median, option};
use std::path::{Path, PathBuf};
use std::process::Command;

const IMAGE_SIZE: u64 = 1 << 30;
const REQUEST: u64 = 4096;
const FILL: usize = 64 << 10;
/// A prime number of blocks: the requests of a "random" run visit every block once, far apart.
const STRIDE: u64 = 100_003 * REQUEST;

#[derive(Clone, Copy)]
struct Workload {
    format: &'static str,
    direct: bool,
    write: bool,
    random: bool,
    depth: u64,
}

impl Workload {
    fn name(&self) -> String {
        format!(
            "{}-{}-{}-{}-{}",
            self.format,
            if self.direct { "direct" } else { "cached" },
            if self.random { "random" } else { "sequential" },
            if self.write { "write" } else { "read" },
            self.depth
        )
    }

    fn requests(&self) -> Requests {
        let step = if self.random { STRIDE } else { REQUEST };
        Requests { write: self.write, size: REQUEST, step, depth: self.depth, count: self.count() }
    }

    fn options(&self) -> OpenOptions {
        let cache = CacheMode::parse(self.cache()).unwrap();
        OpenOptions { format: Some(self.format.into()), cache, ..OpenOptions::default() }
    }

    fn cache(&self) -> &'static str {
        if self.direct { "none" } else { "writeback" }
    }

    /// Long enough to measure, short enough for a coffee.
    fn count(&self) -> u64 {
        if self.direct { 10_000 } else { 100_000 }
    }

    /// QEMU's engines for this workload, its default first.
    fn engines(&self) -> &'static [&'static str] {
        if self.direct { &["threads", "native", "io_uring"] } else { &["threads", "io_uring"] }
    }
}

fn main() {
    let rounds = option("--rounds").map_or(5, |n| n.parse().unwrap());
    let only = option("--only").unwrap_or_default();
    let folder = tempfile::tempdir_in(option("--dir").unwrap_or_else(|| "target".into())).unwrap();
    let images = [("raw", make_image(folder.path(), "raw")), ("qcow2", make_image(folder.path(), "qcow2"))];
    println!("| workload | QEMU default | QEMU best | cowvm | cowvm / best |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for workload in workloads().filter(|workload| workload.name().contains(&only)) {
        let image = &images.iter().find(|(format, _)| *format == workload.format).unwrap().1;
        compare(workload, image, rounds);
    }
}

fn workloads() -> impl Iterator<Item = Workload> {
    let flags = [false, true];
    ["raw", "qcow2"].into_iter().flat_map(move |format| {
        flags.into_iter().flat_map(move |direct| {
            flags.into_iter().flat_map(move |write| {
                flags.into_iter().flat_map(move |random| {
                    [1, 16, 64].map(|depth| Workload { format, direct, write, random, depth })
                })
            })
        })
    })
}

/// A fully allocated image, filled in requests of the size that guests send: the kernel's page cache keeps the
/// pages of one write together, and that decides what writing to them costs later.
fn make_image(folder: &Path, format: &str) -> PathBuf {
    let path = folder.join(format!("bench.{format}"));
    let create = ["create", "-q", "-f", format, path.to_str().unwrap(), &IMAGE_SIZE.to_string()];
    assert!(Command::new("qemu-img").args(create).status().unwrap().success());
    let engine = Engine::new(Backend::from_environment()).unwrap();
    let options = OpenOptions { format: Some(format.into()), read_only: false, ..OpenOptions::default() };
    let fill = async {
        let node = open(&engine, path.to_str().unwrap(), &options).await?;
        let iov = Buffer::from_bytes(&[0x5a; FILL]).iov(FILL);
        for offset in (0..IMAGE_SIZE).step_by(FILL) {
            node.write(offset, &iov).await?;
        }
        node.flush().await?;
        node.close().await
    };
    engine.block_on(fill).unwrap().unwrap();
    path
}

fn compare(workload: Workload, image: &Path, rounds: usize) {
    let engines = workload.engines();
    let (requests, options) = (workload.requests(), workload.options());
    let arguments = ["-f", workload.format, image.to_str().unwrap()];
    requests.cowvm(image, &options);
    let times = in_turn(rounds, engines.len() + 1, |who| match engines.get(who) {
        Some(engine) => requests.qemu(&arguments, workload.cache(), engine),
        None => requests.cowvm(image, &options),
    });
    let rates: Vec<f64> =
        times.into_iter().map(|mut times| workload.count() as f64 / median(&mut times) / 1000.0).collect();
    let (theirs, ours) = (&rates[..engines.len()], rates[engines.len()]);
    let best = theirs.iter().copied().fold(0.0, f64::max);
    println!("| {} | {:.0} | {best:.0} | {ours:.0} | {:.2} |", workload.name(), theirs[0], ours / best);
}
