//! Free clusters whose space goes back to the host, piece by piece, beside other work: a snapshot that goes can free
//! gigabytes, and the host takes seconds to punch them out of a file.
//!
//! ```text
//!   switch of the header, durable ─▶ withheld: count 0, given to nobody ──discarded──▶ free to be taken
//! ```
//! Invariant: no cluster is discarded that anybody could have taken meanwhile. That clusters are withheld is known in
//! memory alone: in the file they are free, and a process that dies leaves nothing behind but space that the host
//! has not got back.

use super::driver::Qcow2;
use super::geometry::HostCluster;
use super::refcount::Run;
use async_lock::Mutex;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes that are discarded at once: the host lets nobody write to the file meanwhile.
const PIECE: u64 = 4 << 20;

/// Clusters that are free but not to be taken yet.
#[derive(Default)]
pub(super) struct Withheld {
    /// Runs that do not touch each other's clusters: the first cluster and how many.
    runs: RefCell<BTreeMap<u64, u64>>,
    /// Held by whoever discards them.
    giving: Mutex<()>,
}

impl Withheld {
    /// Withholds clusters that have just become free.
    pub(super) fn add(&self, runs: Vec<Run>) {
        self.runs.borrow_mut().extend(runs.into_iter().map(|run| (run.first.0, run.count)));
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.borrow().is_empty()
    }

    /// Whether a cluster is one of them.
    pub(super) fn contains(&self, cluster: u64) -> bool {
        let runs = self.runs.borrow();
        runs.range(..=cluster).next_back().is_some_and(|(first, count)| cluster < first + count)
    }

    /// The first cluster behind all of them.
    pub(super) fn end(&self) -> u64 {
        self.runs.borrow().last_key_value().map_or(0, |(first, count)| first + count)
    }

    /// The first of them, at most `most`; they stay withheld.
    fn first(&self, most: u64) -> Option<Run> {
        let runs = self.runs.borrow();
        runs.first_key_value()
            .map(|(&first, &count)| Run { first: HostCluster(first), count: count.min(most) })
    }

    /// Lets go of what [`Withheld::first`] returned.
    fn release(&self, run: Run) {
        let mut runs = self.runs.borrow_mut();
        if let Some(count) = runs.remove(&run.first.0)
            && count > run.count
        {
            runs.insert(run.first.0 + run.count, count - run.count);
        }
    }
}

impl Qcow2 {
    /// Gives the space of all withheld clusters back to the host, and lets them be taken.
    pub(super) async fn return_space(&self) {
        let withheld = &self.refcounts.withheld;
        let _turn = withheld.giving.lock().await;
        let most = (PIECE >> self.geometry.cluster_bits).max(1);
        while let Some(run) = withheld.first(most).filter(|_| self.is_writable()) {
            let len = run.count << self.geometry.cluster_bits;
            self.discard_clusters(self.geometry.start_of(run.first), len).await;
            withheld.release(run);
            self.refcounts.note_free(run.first);
        }
    }

    /// As [`Qcow2::return_space`], beside what follows; whoever closes the image waits for it.
    pub(super) fn return_space_later(self: &Rc<Qcow2>) {
        if !self.refcounts.withheld.is_empty() {
            let image = self.clone();
            self.engine.spawn(async move { image.return_space().await });
        }
    }
}
