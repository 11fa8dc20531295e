//! 4 KiB requests through the block layer, against `qemu-img bench` in alternating runs.
//!
//! `cargo bench --bench block [-- --rounds 5] [-- --only raw-cached]`. Every workload runs the same requests in
//! both programs: sequential ones, or "random" ones by a stride that visits the image in a scattered order
//! (`qemu-img bench -S`). QEMU runs with each of its I/O engines; its default and its best are shown, and the
//! ratio is ours to its best. Medians of the rounds; thousand requests a second.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

use cowvm::block::Buffer;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::{CacheMode, OpenOptions};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

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

    fn step(&self) -> u64 {
        if self.random { STRIDE } else { REQUEST }
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
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
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
    let mut theirs = vec![Vec::new(); engines.len()];
    let mut ours = Vec::new();
    run_cowvm(workload, image);
    for _ in 0..rounds {
        for (engine, times) in engines.iter().zip(&mut theirs) {
            times.push(run_qemu(workload, image, engine));
        }
        ours.push(run_cowvm(workload, image));
    }
    let rate = |times: &mut Vec<f64>| workload.count() as f64 / median(times) / 1000.0;
    let theirs: Vec<f64> = theirs.iter_mut().map(rate).collect();
    let (best, ours) = (theirs.iter().copied().fold(0.0, f64::max), rate(&mut ours));
    println!("| {} | {:.0} | {best:.0} | {ours:.0} | {:.2} |", workload.name(), theirs[0], ours / best);
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Seconds that `qemu-img bench` says it took.
fn run_qemu(workload: Workload, image: &Path, engine: &str) -> f64 {
    let mut command = Command::new("qemu-img");
    command.args(["bench", "-f", workload.format, "-t", workload.cache(), "-i", engine]);
    command.args(["-c", &workload.count().to_string(), "-d", &workload.depth.to_string()]);
    command.args(["-s", &REQUEST.to_string(), "-S", &workload.step().to_string()]);
    if workload.write {
        command.args(["-w", "--pattern=65"]);
    }
    let output = command.arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let seconds = text.split("Run completed in ").nth(1).and_then(|rest| rest.split(' ').next());
    seconds.unwrap().parse().unwrap()
}

/// Seconds for the same requests in this process.
fn run_cowvm(workload: Workload, image: &Path) -> f64 {
    let engine = Engine::new(Backend::from_environment()).unwrap();
    let options = OpenOptions {
        format: Some(workload.format.into()),
        read_only: !workload.write,
        cache: CacheMode::parse(workload.cache()).unwrap(),
        ..OpenOptions::default()
    };
    let node = engine.block_on(open(&engine, image.to_str().unwrap(), &options)).unwrap().unwrap();
    let start = Instant::now();
    engine.block_on(run_requests(&engine, &node, workload)).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    engine.block_on(node.close()).unwrap().unwrap();
    seconds
}

async fn run_requests(engine: &Rc<Engine>, node: &Rc<Node>, workload: Workload) {
    let next = Rc::new(Cell::new(0));
    let (done, finished) = async_channel::bounded(workload.depth as usize);
    for _ in 0..workload.depth {
        let (node, next, done) = (node.clone(), next.clone(), done.clone());
        engine.spawn(async move {
            let iov = Buffer::new(REQUEST as usize).iov(REQUEST as usize);
            iov.fill(0, REQUEST as usize, 65);
            while next.get() < workload.count() {
                let offset = next.replace(next.get() + 1) * workload.step() % IMAGE_SIZE;
                let result = if workload.write {
                    node.write(offset, &iov).await
                } else {
                    node.read(offset, &iov).await
                };
                result.unwrap();
            }
            done.send(()).await.unwrap();
        });
    }
    for _ in 0..workload.depth {
        finished.recv().await.unwrap();
    }
}
