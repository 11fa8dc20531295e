//! Death at every moment of a commit, of the process or of the host: the disk shows the same through the overlay, both
//! images are sound, and a commit that is done again brings all of it into the base.
//!
//! ```text
//!   top log   ─ ─ ─ ─ ─ ─ ─ ─ ─ w w f w f        a moment: entries of both logs that were sent
//!   base log  w w w w w w f ─ ─ ─ ─ ─ ─ ─ ─
//! ```

use super::data_file::Logged;
use super::memory::driver;
use super::operations::sweep_seed;
use crate::block::aio::{Backend, Engine};
use crate::block::filter::log_writes::Replay;
use crate::block::format::qcow2::{CreateOptions, create};
use crate::block::graph::Node;
use crate::block::graph::driver::Check;
use crate::block::graph::status::status_above;
use crate::block::ops::commit::{CommitOptions, commit};
use futures_util::future::join;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const CLUSTER: usize = 4096;
/// The overlay is longer than the base.
const SIZES: [usize; 2] = [60 * CLUSTER, 40 * CLUSTER];
/// Power failures that are tried at a moment.
const POWER_FAILURES: usize = 3;

/// An overlay and its base, in this order.
struct Chain<'a> {
    engine: &'a Rc<Engine>,
    files: [Logged; 2],
    top: Rc<Node>,
    base: Rc<Node>,
}

impl Chain<'_> {
    /// Opens two files; both are sound.
    fn open(engine: &Rc<Engine>, bytes: [Vec<u8>; 2]) -> Chain<'_> {
        let files = bytes.map(|bytes| Logged::new(engine, bytes));
        for file in &files {
            let image = driver(engine, &file.state, None, true).unwrap();
            let report = engine.block_on(image.check()).unwrap().unwrap();
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.messages);
        }
        let base = files[1].open(engine, None);
        let top = files[0].open(engine, Some(base.clone()));
        Chain { engine, files, top, base }
    }

    /// Two images with something of their own in each, zeros and nothing.
    fn new(engine: &Rc<Engine>) -> Chain<'_> {
        let chain = Chain::open(engine, SIZES.map(|size| empty(engine, size)));
        let parts: [(&Rc<Node>, usize, usize, u8); 4] = [
            (&chain.base, 0, 30, 1),
            (&chain.top, 5, 10, 2),
            (&chain.top, 35, 10, 3),
            (&chain.top, 50, 1, 4),
        ];
        for (node, at, count, byte) in parts {
            chain.run(node.write_bytes((at * CLUSTER) as u64, &vec![byte; count * CLUSTER])).unwrap();
        }
        chain.run(chain.top.write_zeroes(20 * CLUSTER as u64, 5 * CLUSTER as u64, true)).unwrap();
        [&chain.top, &chain.base].into_iter().for_each(|node| chain.run(node.flush()).unwrap());
        chain
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.engine.block_on(future).unwrap()
    }

    fn bytes(&self) -> [Vec<u8>; 2] {
        [0, 1].map(|index| self.files[index].bytes())
    }

    fn content(&self, node: &Node) -> Vec<u8> {
        self.run(node.read_bytes(0, node.size() as usize)).unwrap()
    }

    async fn commit(&self) {
        let options = CommitOptions { rate: 0, make_empty: true };
        commit(self.engine, &self.top, &self.base, &options, None).await.unwrap();
    }

    /// Commits; how long both logs were at each moment.
    fn commit_watched(&self) -> Vec<[usize; 2]> {
        self.files.iter().for_each(|file| file.log.clear());
        let (moments, over) = (RefCell::new(Vec::new()), Cell::new(false));
        let work = async {
            self.commit().await;
            over.set(true);
        };
        let watch = async {
            while !over.get() {
                moments.borrow_mut().push([0, 1].map(|index| self.files[index].log.len()));
                self.engine.yield_now().await;
            }
        };
        self.run(join(work, watch));
        let mut moments = moments.into_inner();
        moments.push([0, 1].map(|index| self.files[index].log.len()));
        moments.dedup();
        moments
    }

    /// Everything is in the base, and nothing else anywhere.
    fn is_committed(&self, content: &[u8]) {
        assert!(self.content(&self.base) == content && self.content(&self.top) == content);
        let size = self.top.size();
        let above = self.run(status_above(&self.top, Some(&self.base), 0, size)).unwrap();
        assert!(!above.status.allocated && above.len == size);
    }
}

fn empty(engine: &Rc<Engine>, size: usize) -> Vec<u8> {
    let (size, cluster_size) = (size as u64, CLUSTER as u64);
    let file = Logged::new(engine, Vec::new());
    let options = CreateOptions { size, cluster_size, ..CreateOptions::default() };
    engine.block_on(create(engine, &file.node, None, &options)).unwrap().unwrap();
    file.bytes()
}

#[test]
fn a_commit_that_dies_at_any_moment_can_be_done_again() {
    let seed = sweep_seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let engine = Engine::new(Backend::Threads).unwrap();
    let chain = Chain::new(&engine);
    let (initial, content) = (chain.bytes(), chain.content(&chain.top));
    let moments = chain.commit_watched();
    chain.is_committed(&content);

    let logs = [0, 1].map(|index| chain.files[index].log.entries().to_vec());
    let mut replays = [0, 1].map(|index| Replay::new(&logs[index], &initial[index]));
    let mut half_done = 0;
    for moment in &moments {
        for (replay, sent) in replays.iter_mut().zip(moment) {
            while replay.at() < *sent {
                replay.advance();
            }
        }
        for attempt in 0..=POWER_FAILURES {
            let files = [0, 1].map(|index| match attempt {
                0 => replays[index].killed().to_vec(),
                _ => replays[index].power_failure(|_, _| rng.random()),
            });
            let found = Chain::open(&engine, files);
            assert!(found.content(&found.top) == content, "{moment:?}: the disk has changed");
            let base = found.content(&found.base);
            half_done += usize::from(base[..] != content[..] && base.contains(&2));
            found.run(found.commit());
            found.is_committed(&content);
        }
    }
    assert!(half_done > 0, "no moment between beginning and end was seen");
}
