//! Free clusters that nobody may take yet: those whose space goes back to the host, piece by piece, beside other work (a
//! snapshot that goes can free gigabytes, and the host takes seconds to punch them out of a file), and those whose cached
//! pages were lent (see [`Driver::lasting_place`](crate::block::graph::Driver::lasting_place)) and may still be on their
//! way to somebody.
//!
//! ```text
//!   count falls to 0 ─▶ withheld: given to nobody ──pages out of the cache, space punched out──▶ free to be taken
//! ```
//! Invariants:
//! * No cluster is discarded that anybody could have taken meanwhile.
//! * What was lent as a place of the disk is written, and emptied, for this place alone until its pages have left the page
//!   cache: whoever still has them has bytes that this place had.
//!
//! Which clusters were lent is remembered from the first loan to that end, whatever became of the client: the host alone
//! knows whether somebody has a page, and lets go of it only if nobody has. A client that never takes its replies
//! so withholds the clusters of which it has pages, and no others; where they are many, no more are lent.
//!
//! That clusters are withheld is known in memory alone: in the file they are free, and a process that dies leaves nothing
//! behind but space that the host has not got back.

use super::driver::Qcow2;
use super::geometry::{GuestOffset, HostCluster, HostOffset};
use super::mapping::{self, Extent, View};
use super::overlap::ClusterSet;
use super::refcount::Run;
use crate::block::aio::{BulkFile, take_back};
use crate::block::graph::driver::Place;
use async_lock::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Bytes that are discarded at once: the host lets nobody write to the file meanwhile.
const PIECE: u64 = 4 << 20;
/// Where more bytes than that are withheld, nothing is lent.
const MOST: u64 = 64 << 20;
/// So many pieces that somebody has are looked at in one go: it costs the host more than those that nobody has.
const TRIES: usize = 8;

/// A run of clusters that are withheld, by its first one.
#[derive(Clone, Copy)]
struct Held {
    count: u64,
    /// The host gets the space back.
    punch: bool,
}

/// Clusters that are free but not to be taken yet.
#[derive(Default)]
pub(super) struct Withheld {
    /// Runs that do not touch each other's clusters.
    runs: RefCell<BTreeMap<u64, Held>>,
    /// How many clusters that are.
    count: Cell<u64>,
    /// Clusters, free or in use, whose pages somebody may have.
    lent: RefCell<ClusterSet>,
    /// Where the next look begins.
    next: Cell<u64>,
    /// Held by whoever lets go of them.
    giving: Mutex<()>,
}

impl Withheld {
    /// Withholds those of the clusters that have just become free that were lent; all, where the host gets their space.
    pub(super) fn add(&self, runs: &[Run], punch: bool) {
        for &run in runs {
            if punch || self.is_lent(run) {
                self.insert(run, punch);
            }
        }
    }

    fn insert(&self, run: Run, punch: bool) {
        self.count.set(self.count.get() + run.count);
        let mut runs = self.runs.borrow_mut();
        match runs.range_mut(..run.first.0).next_back() {
            Some((first, last)) if first + last.count == run.first.0 && last.punch == punch => {
                last.count += run.count;
            }
            _ => {
                runs.insert(run.first.0, Held { count: run.count, punch });
            }
        }
    }

    /// Notes that somebody is lent the pages of clusters; false where too many are withheld already.
    pub(super) fn lend(&self, clusters: Range<u64>, cluster_bits: u32) -> bool {
        let few = self.count.get() << cluster_bits <= MOST;
        if few {
            let mut lent = self.lent.borrow_mut();
            clusters.for_each(|cluster| _ = lent.insert(cluster));
        }
        few
    }

    /// Whether one of the clusters was lent.
    pub(super) fn is_lent(&self, run: Run) -> bool {
        self.lent.borrow().intersects(&(run.first.0..run.first.0 + run.count))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.borrow().is_empty()
    }

    /// Whether a cluster is one of them.
    pub(super) fn contains(&self, cluster: u64) -> bool {
        let runs = self.runs.borrow();
        runs.range(..=cluster).next_back().is_some_and(|(first, held)| cluster < first + held.count)
    }

    /// The first cluster behind all of them.
    pub(super) fn end(&self) -> u64 {
        self.runs.borrow().last_key_value().map_or(0, |(first, held)| first + held.count)
    }

    /// The first of them from `from` on, where a run begins: at most `most`, which are a run of their own then.
    fn first_from(&self, from: u64, most: u64) -> Option<(Run, bool)> {
        let mut runs = self.runs.borrow_mut();
        let (&first, held) = runs.range_mut(from..).next()?;
        let (count, punch) = (held.count.min(most), held.punch);
        let rest = std::mem::replace(&mut held.count, count) - count;
        if rest > 0 {
            runs.insert(first + count, Held { count: rest, punch });
        }
        Some((Run { first: HostCluster(first), count }, punch))
    }

    /// Lets go of the first clusters of a run, which nobody has pages of.
    fn release(&self, run: Run) {
        let end = run.first.0 + run.count;
        (run.first.0..end).for_each(|cluster| self.lent.borrow_mut().remove(cluster));
        let mut runs = self.runs.borrow_mut();
        if let Some(held) = runs.remove(&run.first.0) {
            self.count.set(self.count.get() - run.count);
            if held.count > run.count {
                runs.insert(end, Held { count: held.count - run.count, ..held });
            }
        }
    }
}

impl Qcow2 {
    /// As [`Driver::lasting_place`](crate::block::graph::Driver::lasting_place), of a range of a view.
    pub(super) fn lend_view(&self, view: &View, at: GuestOffset, len: u64) -> Option<Place> {
        let Extent { place, len } = self.lookup(view, at, len).ok()??;
        match place {
            mapping::Place::Data { host, .. } if self.encryption.is_none() => {
                let place = self.data_node().ok()?.driver().lasting_place(host.0, len)?;
                self.notes_loan(&place.file, host, place.len).then_some(place)
            }
            mapping::Place::Unallocated { .. } => {
                let backing = self.backing()?;
                let len = len.min(backing.size().saturating_sub(at.0));
                if len > 0 { backing.driver().lasting_place(at.0, len) } else { None }
            }
            _ => None,
        }
    }

    /// Notes that clusters are lent, if they can be given up at all; false where they must not be lent.
    fn notes_loan(&self, file: &BulkFile, host: HostOffset, len: u64) -> bool {
        if self.has_data_file() || !self.is_writable() {
            return true;
        }
        let clusters = self.geometry.clusters_of(host.0..host.0 + len);
        file.has_storage() && self.refcounts.withheld.lend(clusters, self.geometry.cluster_bits)
    }

    /// Lets withheld clusters be taken whose pages nobody has, and gives their space back to the host. Those that
    /// somebody has stay until a later call.
    pub(super) async fn return_space(&self) {
        let withheld = &self.refcounts.withheld;
        let _turn = withheld.giving.lock().await;
        let most = (PIECE >> self.geometry.cluster_bits).max(1);
        let (mut from, mut tries) = (withheld.next.take(), 0);
        while let Some((run, punch)) = withheld.first_from(from, most).filter(|_| self.may_return_space()) {
            from = run.first.0 + run.count;
            if self.take_back(run).await {
                self.return_run(run, punch).await;
            } else if tries < TRIES {
                tries += 1;
            } else {
                return withheld.next.set(from);
            }
        }
    }

    /// Nothing changes while a power failure could bring back what refers to the clusters.
    fn may_return_space(&self) -> bool {
        self.is_writable() && !self.unsettled.get()
    }

    /// Whether nobody has pages of the clusters: they have left the page cache, if they were lent.
    async fn take_back(&self, run: Run) -> bool {
        if !self.refcounts.withheld.is_lent(run) {
            return true;
        }
        let (at, len) = (self.geometry.start_of(run.first).0, run.count << self.geometry.cluster_bits);
        match self.file.driver().lasting_place(at, len).filter(|place| place.len == len) {
            Some(Place { file, offset, len }) => {
                self.engine.offload(move || take_back(&file, offset, len)).await
            }
            None => false,
        }
    }

    async fn return_run(&self, run: Run, punch: bool) {
        if punch {
            let len = run.count << self.geometry.cluster_bits;
            self.discard_clusters(self.geometry.start_of(run.first), len).await;
        }
        self.refcounts.withheld.release(run);
        self.refcounts.note_free(run.first);
    }

    /// As [`Qcow2::return_space`], beside what follows; whoever closes the image waits for it.
    pub(super) fn return_space_later(self: &Rc<Qcow2>) {
        let withheld = &self.refcounts.withheld;
        if !withheld.is_empty() && withheld.giving.try_lock().is_some() {
            let image = self.clone();
            self.engine.spawn(async move { image.return_space().await });
        }
    }

    /// Lets go of no more clusters: another process may have the image next.
    pub(super) async fn forget_withheld(&self) {
        let withheld = &self.refcounts.withheld;
        let _turn = withheld.giving.lock().await;
        withheld.runs.take();
        withheld.count.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> Run {
        Run { first: HostCluster(first), count }
    }

    #[test]
    fn what_was_lent_is_withheld_and_where_that_is_much_nothing_more_is_lent() {
        let withheld = Withheld::default();
        assert!(withheld.lend(5..10, 16));
        withheld.add(&[run(4, 1), run(9, 1), run(10, 1)], false);
        assert_eq!((4..11).filter(|&cluster| withheld.contains(cluster)).collect::<Vec<_>>(), [9]);
        withheld.add(&[run(1000, MOST >> 16)], true);
        assert!(!withheld.lend(20..21, 16));
        while let Some((some, _)) = withheld.first_from(0, 100) {
            withheld.release(some);
        }
        assert!(withheld.lend(20..21, 16) && !withheld.contains(9) && !withheld.is_lent(run(9, 1)));
    }
}
