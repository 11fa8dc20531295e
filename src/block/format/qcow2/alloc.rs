//! Taking and giving back clusters, and L2 tables that may be changed.
//!
//! A cluster that is freed goes through these stages, and only at the end is its refcount counted down, so that
//! nobody is given a cluster that something on disk still refers to:
//!
//! ```text
//!   fresh ──checkpoint writes the tables──▶ written ──flush──▶ durable ──requests that saw it end──▶ free
//! ```
//! A process that dies before the end leaks the cluster. One whose refcount cannot be read at the end stays counted until
//! the image is settled; if it cannot be read then either, it leaks, as it would be worse to stop there.

use super::cache::Piece;
use super::driver::Qcow2;
use super::entries::{Compressed, L1Entry, L2Entry, mark_shared};
use super::geometry::{GuestOffset, HostCluster, HostOffset};
use super::mapping::Slot;
use super::overlap::Metadata;
use super::refcount::Run;
use crate::block::graph::Event;
use crate::block::{Error, Kind, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// So many freed runs, or clusters, may wait for a flush before a writer causes one.
const MAX_RUNS: usize = 4096;
const MAX_CLUSTERS: u64 = 1 << 16;

/// After how many clusters that were counted down other tasks may run.
const RELEASED_AT_ONCE: u64 = 4096;

/// One reference to each cluster of a run that is no longer held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    run: Run,
    /// Give the space back to the host.
    punch: bool,
}

/// Freed clusters on their way to be free.
#[derive(Default)]
pub(super) struct Frees {
    fresh: RefCell<Vec<Free>>,
    written: RefCell<Vec<Free>>,
    durable: RefCell<Vec<Free>>,
    /// Durable, and only requests that began before that can still use them.
    waiting: RefCell<Vec<Free>>,
    /// What could not be counted down. Counted it stays, so nobody is given it.
    stuck: RefCell<Vec<Run>>,
    /// About how many clusters a flush would help along.
    clusters: Cell<u64>,
}

impl Frees {
    /// Gives up a reference that is gone from the tables in memory.
    pub(super) fn push(&self, run: Run, punch: bool) {
        self.clusters.set(self.clusters.get() + run.count);
        let mut fresh = self.fresh.borrow_mut();
        if let Some(last) = fresh.last_mut()
            && last.run.first.0 + last.run.count == run.first.0
            && last.punch == punch
        {
            last.run.count += run.count;
            return;
        }
        fresh.push(Free { run, punch });
    }

    /// Gives up references that are gone from the file, as the next flush makes sure.
    pub(super) fn push_written(&self, frees: impl IntoIterator<Item = Free>) {
        self.written.borrow_mut().extend(frees);
    }

    /// Gives up references that are gone from the file for good.
    pub(super) fn push_durable(&self, frees: Vec<Free>) {
        self.clusters.set(self.fresh.borrow().iter().map(|free| free.run.count).sum());
        self.durable.borrow_mut().extend(frees);
    }

    /// What the checkpoint that begins now removes from the file.
    pub(super) fn take_fresh(&self) -> Vec<Free> {
        self.fresh.take()
    }

    /// Takes back what a checkpoint could not write.
    pub(super) fn restore_fresh(&self, frees: Vec<Free>) {
        self.fresh.borrow_mut().extend(frees);
    }

    /// What a flush that begins now makes durable.
    pub(super) fn take_written(&self) -> Vec<Free> {
        self.written.take()
    }

    /// Notes a cluster whose refcount cannot be read now; of too many, some leak.
    fn push_stuck(&self, cluster: HostCluster) {
        let mut stuck = self.stuck.borrow_mut();
        let full = stuck.len() == MAX_RUNS;
        match stuck.last_mut() {
            Some(last) if last.first.0 + last.count == cluster.0 => last.count += 1,
            _ if full => {}
            _ => stuck.push(Run { first: cluster, count: 1 }),
        }
    }

    /// Lets what could not be counted down be tried again. Whether there is any.
    pub(super) fn try_again(&self) -> bool {
        let stuck = self.stuck.take();
        let any = !stuck.is_empty();
        self.durable.borrow_mut().extend(stuck.into_iter().map(|run| Free { run, punch: false }));
        any
    }

    /// Lets what could not be counted down leak: the refcounts may change in other ways from now on.
    pub(super) fn forget_stuck(&self) {
        self.stuck.take();
    }

    /// Whether so many wait that a flush should come first.
    pub(super) fn is_crowded(&self) -> bool {
        self.clusters.get() > MAX_CLUSTERS
            || self.fresh.borrow().len() + self.written.borrow().len() > MAX_RUNS
    }

    /// Whether nothing is on its way that a flush could help along.
    pub(super) fn is_empty(&self) -> bool {
        [&self.fresh, &self.written, &self.durable, &self.waiting].iter().all(|list| list.borrow().is_empty())
    }

    /// What can be counted down now.
    fn take_ready(&self, users: &Users) -> Option<Vec<Free>> {
        if self.waiting.borrow().is_empty() {
            if self.durable.borrow().is_empty() {
                return None;
            }
            self.durable.swap(&self.waiting);
            users.begin_epoch();
        }
        users.earlier_are_gone().then(|| self.waiting.take())
    }
}

/// Requests in flight, in two epochs: those that may know clusters from before, and later ones.
#[derive(Default)]
pub(super) struct Users {
    counts: [Cell<usize>; 2],
    epoch: Cell<usize>,
}

impl Users {
    /// Notes a request that looks up host clusters; it ends with the guard.
    pub(super) fn enter(&self) -> InFlight<'_> {
        let count = &self.counts[self.epoch.get()];
        count.set(count.get() + 1);
        InFlight(count)
    }

    /// Whether there is only one.
    pub(super) fn is_single(&self) -> bool {
        self.counts.iter().map(Cell::get).sum::<usize>() == 1
    }

    fn begin_epoch(&self) {
        self.epoch.set(1 - self.epoch.get());
    }

    fn earlier_are_gone(&self) -> bool {
        self.counts[1 - self.epoch.get()].get() == 0
    }
}

/// A request in flight.
#[must_use]
pub(super) struct InFlight<'a>(&'a Cell<usize>);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Clusters that are counted and that nothing refers to yet. Dropped, it gives them back.
#[must_use]
pub(super) struct Reserved<'a> {
    frees: &'a Frees,
    pub(super) run: Run,
    /// Nothing was ever stored there: it reads as zeros to the guest.
    pub(super) untouched: bool,
}

impl Reserved<'_> {
    /// Something in memory refers to them now.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // Not free at once: a request that was given up may still be writing there.
        self.frees.push(self.run, false);
    }
}

impl Qcow2 {
    /// Takes up to `want` clusters that follow one another.
    pub(super) async fn reserve(&self, want: u64) -> Result<Reserved<'_>> {
        self.file.debug_event(Event::ClusterAlloc);
        let (run, untouched) = self.refcounts.allocate(want).await?;
        // Zeros of the file are not zeros to whoever decrypts them.
        let untouched = untouched && self.encryption.is_none();
        Ok(Reserved { frees: &self.frees, run, untouched })
    }

    /// Takes exactly `want` clusters that follow one another.
    pub(super) async fn reserve_contiguous(&self, want: u64) -> Result<Reserved<'_>> {
        self.file.debug_event(Event::ClusterAlloc);
        let run = self.refcounts.allocate_contiguous(want).await?;
        Ok(Reserved { frees: &self.frees, run, untouched: false })
    }

    /// Takes `len` bytes, less than a cluster, behind the compressed data that came last if they fit. Each cluster
    /// that they reach into has one user more.
    pub(super) async fn reserve_bytes(&self, len: u64) -> Result<(HostOffset, Reserved<'_>)> {
        let _turn = self.packing.lock().await;
        let in_one = |at: HostOffset| self.geometry.in_cluster(at.0) + len <= self.geometry.cluster_size();
        if self.refcounts.tail().is_some_and(in_one)
            && let Some(at) = self.refcounts.share_tail().await?
        {
            return self.reserved_bytes(at, len, Run { first: self.geometry.cluster_of(at), count: 1 });
        }
        let new = self.reserve(1).await?;
        let run = new.run;
        let before = |at: HostOffset| self.geometry.cluster_of(at).0 + 1 == run.first.0;
        if self.refcounts.tail().is_some_and(before)
            && let Some(at) = self.refcounts.share_tail().await?
        {
            new.keep();
            return self.reserved_bytes(at, len, Run { first: self.geometry.cluster_of(at), count: 2 });
        }
        new.keep();
        self.reserved_bytes(self.geometry.start_of(run.first), len, run)
    }

    fn reserved_bytes(&self, at: HostOffset, len: u64, run: Run) -> Result<(HostOffset, Reserved<'_>)> {
        let reserved = Reserved { frees: &self.frees, run, untouched: false };
        if at.0 + len > Compressed::offsets_end(self.geometry) {
            return Err(Error::new(Kind::NoSpace, "the image file is too large for compressed clusters"));
        }
        self.refcounts.set_tail(at.add(len));
        Ok((at, reserved))
    }

    /// Gives up what an L2 entry that was replaced refers to; clusters of a data file are not counted.
    pub(super) fn free_entry(&self, old: L2Entry, punch: bool) {
        if self.has_data_file() {
            return;
        }
        let (first, last) = match old {
            L2Entry::Unallocated | L2Entry::Zero { host: None, .. } | L2Entry::Mixed { host: None, .. } => {
                return;
            }
            L2Entry::Data { host, .. }
            | L2Entry::Zero { host: Some(host), .. }
            | L2Entry::Mixed { host: Some(host), .. } => (host, host),
            L2Entry::Compressed(at) => (at.offset, at.offset.add(at.len - 1)),
        };
        let (first, last) = (self.geometry.cluster_of(first), self.geometry.cluster_of(last));
        // Compressed neighbours share clusters: never punched.
        let punch = punch && !matches!(old, L2Entry::Compressed(_));
        self.frees.push(Run { first, count: last.0 - first.0 + 1 }, punch);
    }

    /// Gives up a table that is gone from the file, as the next flush makes sure.
    pub(super) fn free_table(&self, run: Run) {
        self.frees.push_written([Free { run, punch: self.discards.other }]);
    }

    /// Counts down what is ready.
    pub(super) async fn release(&self) {
        while let Some(frees) = self.frees.take_ready(&self.users) {
            for free in frees {
                if free.punch {
                    self.punch(free.run).await;
                }
                self.release_run(free).await;
            }
        }
    }

    async fn release_run(&self, Free { run, punch }: Free) {
        self.file.debug_event(Event::ClusterFree);
        for cluster in run.first.0..run.first.0 + run.count {
            let done = self.refcounts.decrement(HostCluster(cluster), punch).await;
            // An image whose refcount is 0 here already was damaged before; check says so.
            if done.is_err_and(|error| error.kind() != Kind::Corrupt) {
                self.frees.push_stuck(HostCluster(cluster));
            }
            if cluster % RELEASED_AT_ONCE == 0 {
                self.engine.yield_now().await;
            }
        }
    }

    /// Gives the space of clusters without another user back to the host, while nobody can take them. Those that were
    /// lent are withheld before.
    async fn punch(&self, run: Run) {
        let end = run.first.0 + run.count;
        let mut start = run.first.0;
        for cluster in run.first.0..=end {
            if cluster < end && self.is_last_user(HostCluster(cluster)).await {
                continue;
            }
            let from = self.geometry.start_of(HostCluster(start));
            self.discard_data(from, (cluster - start) << self.geometry.cluster_bits).await;
            start = cluster + 1;
        }
    }

    async fn is_last_user(&self, cluster: HostCluster) -> bool {
        !self.refcounts.withheld.is_lent(Run { first: cluster, count: 1 })
            && self.refcounts.get(cluster).await.is_ok_and(|count| count == 1)
    }

    /// The slice with the L2 entry of a guest byte, in an L2 table that belongs to the active L1 table alone:
    /// made, or copied, if need be.
    pub(super) async fn writable_slot(&self, at: GuestOffset) -> Result<(Rc<Piece>, Slot)> {
        loop {
            match self.slot(&self.active, at)? {
                Some(slot) if slot.copied => {
                    return Ok((self.l2.load(&self.file, slot.slice).await?, slot));
                }
                _ => self.own_l2_table(at).await?,
            }
        }
    }

    async fn own_l2_table(&self, at: GuestOffset) -> Result<()> {
        let _turn = self.tables.lock().await;
        let old = match self.slot(&self.active, at)? {
            Some(slot) if slot.copied => return Ok(()),
            other => other.map(|slot| slot.table),
        };
        let bytes = self.l2_table_content(old).await?;
        let new = self.reserve(1).await?;
        let offset = self.geometry.start_of(new.run.first);
        self.overlap.check(offset, bytes.len() as u64, None)?;
        self.l2.forget(offset, bytes.len() as u64);
        self.file.debug_event(Event::L2AllocWrite);
        self.file.write_bytes(offset.0, &bytes).await?;
        self.overlap.add(Metadata::ActiveL2, new.run.first);
        self.active.set(self.geometry.l1_index(at), L1Entry::Table { offset, copied: true });
        new.keep();
        if let Some(old) = old {
            let cluster = self.geometry.cluster_of(old);
            self.overlap.remove(Metadata::ActiveL2, cluster);
            self.frees.push(Run { first: cluster, count: 1 }, self.discards.other);
        }
        Ok(())
    }

    /// What a new L2 table holds: nothing, or what the shared one does. A shared table has no changes in memory.
    async fn l2_table_content(&self, old: Option<HostOffset>) -> Result<Vec<u8>> {
        let size = self.geometry.cluster_size() as usize;
        let Some(old) = old else { return Ok(vec![0; size]) };
        self.file.debug_event(Event::L2AllocCowRead);
        let mut bytes = self.file.read_bytes(old.0, size).await?;
        // Clusters of a data file belong to whoever has them: no flag there changes.
        if !self.has_data_file() {
            mark_shared(&mut bytes, self.geometry);
        }
        Ok(bytes)
    }
}
