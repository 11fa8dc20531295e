//! The same requests in `qemu-img bench` and in cowvm's block layer, timed in turn.

#![allow(dead_code, reason = "each benchmark takes what it needs")]

pub(crate) mod command;
pub(crate) mod floor;

use cowvm::block::Buffer;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

/// Requests of one size to an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    /// Write instead of read.
    pub(crate) write: bool,
    /// Bytes of a request.
    pub(crate) size: u64,
    /// Bytes from one request to the next, modulo the size of the disk.
    pub(crate) step: u64,
    /// How many are in flight.
    pub(crate) depth: u64,
    /// How many there are.
    pub(crate) count: u64,
}

impl Requests {
    /// Seconds that `qemu-img bench` says it took; `image` is its arguments that name the image.
    pub(crate) fn qemu(&self, image: &[&str], cache: &str, engine: &str) -> f64 {
        let mut command = Command::new("qemu-img");
        command.args(["bench", "-t", cache, "-i", engine]);
        command.args(["-c", &self.count.to_string(), "-d", &self.depth.to_string()]);
        command.args(["-s", &self.size.to_string(), "-S", &self.step.to_string()]);
        if self.write {
            command.args(["-w", "--pattern=65"]);
        }
        let output = command.args(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let seconds = text.split("Run completed in ").nth(1).and_then(|rest| rest.split(' ').next());
        seconds.unwrap().parse().unwrap()
    }

    /// Seconds for the same requests in this process.
    pub(crate) fn cowvm(&self, image: &Path, options: &OpenOptions) -> f64 {
        let engine = Engine::new(Backend::from_environment()).unwrap();
        let options = OpenOptions { read_only: !self.write, ..options.clone() };
        let node = engine.block_on(open(&engine, image.to_str().unwrap(), &options)).unwrap().unwrap();
        let start = Instant::now();
        engine.block_on(self.run(&engine, &node)).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        engine.block_on(node.close()).unwrap().unwrap();
        seconds
    }

    async fn run(self, engine: &Rc<Engine>, node: &Rc<Node>) {
        let next = Rc::new(Cell::new(0));
        let (done, finished) = async_channel::bounded(self.depth as usize);
        for _ in 0..self.depth {
            let (node, next, done) = (node.clone(), next.clone(), done.clone());
            engine.spawn(async move {
                let iov = Buffer::new(self.size as usize).iov(self.size as usize);
                iov.fill(0, self.size as usize, 65);
                while next.get() < self.count {
                    let offset = next.replace(next.get() + 1) * self.step % node.size();
                    let done = if self.write {
                        node.write(offset, &iov).await
                    } else {
                        node.read(offset, &iov).await
                    };
                    done.unwrap();
                }
                done.send(()).await.unwrap();
            });
        }
        for _ in 0..self.depth {
            finished.recv().await.unwrap();
        }
    }
}

/// Measures every contestant once a round, each round another one first: whoever comes first may pay for what the last of
/// the round before left behind. Returns a list of the rounds for each.
pub(crate) fn in_turn<T>(
    rounds: usize,
    contestants: usize,
    mut measure: impl FnMut(usize) -> T,
) -> Vec<Vec<T>> {
    let mut measured: Vec<Vec<T>> = (0..contestants).map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for turn in 0..contestants {
            let contestant = (round + turn) % contestants;
            measured[contestant].push(measure(contestant));
        }
    }
    measured
}

/// The middle one.
pub(crate) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The word behind an option on the command line.
pub(crate) fn option(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).cloned()
}
