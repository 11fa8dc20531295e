//! The table of operations that the sweeps go through ([`super::crash`], [`super::errors`]), and what an image may
//! show while one of them is under way.
//!
//! A [`Row`] is an image and steps on it. To add an operation: a row in [`rows`], with [`change`] for what it does and
//! what it makes of the image. The sweeps then prove of every step:
//!
//! * requests of the guest: bytes are the old or the new ones until a flush, then the new ones;
//! * a change (of size, snapshots, header …): everything that the image shows is as before or as after it, and as
//!   after it once the change returned.
//!
//! What an image shows is [`Seen`]: content, internal snapshots with theirs, and what the header says.

use super::memory::{Disk, Folder, MemoryFile, State, driver};
use super::model::{base, compressible};
use crate::block::aio::{Backend, Engine};
use crate::block::format::qcow2::CreateOptions;
use crate::block::format::qcow2::driver::Qcow2;
use crate::block::format::qcow2::geometry::GuestOffset;
use crate::block::format::qcow2::mapping::View;
use crate::block::graph::driver::{Check, CheckReport};
use crate::block::graph::snapshots::{NewSnapshot, Selector};
use crate::block::graph::{Driver, Node};
use crate::block::options::Preallocation;
use crate::block::{Buffer, Result};
use futures_util::future::{FutureExt, LocalBoxFuture, join_all};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of guest requests start and end at multiples of this, most of the time.
const SECTOR: usize = 512;

/// An image, and what is done to it.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) backing: Option<Vec<u8>>,
    pub(super) steps: Vec<Step>,
}

/// One step of a row.
pub(super) enum Step {
    /// Requests of the guest on bytes that do not overlap, sent at once.
    Guest(Vec<Request>),
    Flush,
    Change(Change),
}

/// A request of the guest.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Write(usize, Vec<u8>),
    /// Of whole clusters.
    Compressed(usize, Vec<u8>),
    Zero(Range<usize>, bool),
    Discard(Range<usize>),
}

type Make = Box<dyn Fn(Rc<Node>) -> LocalBoxFuture<'static, Result<()>>>;

/// An operation that is to happen as a whole or not at all.
pub(super) struct Change {
    pub(super) name: &'static str,
    make: Make,
    expect: Box<dyn Fn(&mut Seen)>,
}

/// A step that `make` does to the disk and that makes of the image what `expect` says.
pub(super) fn change(
    name: &'static str,
    make: impl Fn(Rc<Node>) -> LocalBoxFuture<'static, Result<()>> + 'static,
    expect: impl Fn(&mut Seen) + 'static,
) -> Step {
    Step::Change(Change { name, make: Box::new(make), expect: Box::new(expect) })
}

/// What an image shows to a reader.
#[derive(Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) content: Vec<u8>,
    /// Names of the internal snapshots, and what they hold.
    pub(super) snapshots: Vec<(String, Vec<u8>)>,
    /// What the header says; as a step leaves it, not as a row foretells it.
    pub(super) facts: String,
}

impl Seen {
    pub(super) fn difference(&self, other: &Seen) -> String {
        if self.facts != other.facts {
            return format!("{}\ninstead of {}", self.facts, other.facts);
        }
        if self.snapshots != other.snapshots {
            return "snapshots differ".into();
        }
        let at = self.content.iter().zip(&other.content).position(|(a, b)| a != b);
        format!("byte {at:?} of {} and {}", self.content.len(), other.content.len())
    }
}

/// What the header says of the image.
pub(super) fn facts(driver: &dyn Driver) -> String {
    // The dirty bit comes and goes by itself.
    format!("{} bytes, {:?}", driver.size(), driver.specifics()).replace("dirty: true", "dirty: false")
}

/// Whether an image was left with the dirty bit set.
pub(super) fn is_dirty(bytes: &[u8]) -> bool {
    bytes.len() > 79 && bytes[7] == 3 && bytes[79] & 1 == 1
}

/// What the file of an image shows, opened read-only, and what is wrong with it, after a dirty one was made right.
pub(super) fn observe(
    engine: &Rc<Engine>,
    bytes: Vec<u8>,
    backing: Option<&[u8]>,
) -> Result<(Seen, CheckReport)> {
    let memory = |bytes| Rc::new(State { bytes: RefCell::new(bytes), ..State::default() });
    let backing = backing.map(|bytes| MemoryFile::node(engine, &memory(bytes.to_vec())));
    let (dirty, file) = (is_dirty(&bytes), memory(bytes));
    if dirty {
        driver(engine, &file, backing.clone(), false)?;
    }
    let image = driver(engine, &file, backing, true)?;
    engine
        .block_on(async {
            let report = image.check().await?;
            let (facts, mut snapshots) = (facts(&image), Vec::new());
            for snapshot in image.snapshots.borrow().clone() {
                let view =
                    View::read(&image.file, snapshot.l1_offset, snapshot.l1_entries, snapshot.disk_size)
                        .await?;
                snapshots.push((snapshot.info.name, content(&image, &view).await?));
            }
            let content = content(&image, &image.active).await?;
            Ok((Seen { content, snapshots, facts }, report))
        })
        .unwrap()
}

async fn content(image: &Qcow2, view: &View) -> Result<Vec<u8>> {
    let reach = view.l1.borrow().len() as u64 * image.geometry.l2_reach();
    let len = reach.min(view.disk_size.get()) as usize;
    let bytes = Buffer::new(len).iov(len);
    image.read_view(view, GuestOffset(0), &bytes).await?;
    Ok(bytes.to_vec())
}

impl Request {
    pub(super) fn range(&self) -> Range<usize> {
        match self {
            Request::Write(at, bytes) | Request::Compressed(at, bytes) => *at..at + bytes.len(),
            Request::Zero(range, _) | Request::Discard(range) => range.clone(),
        }
    }

    async fn send(&self, node: &Node) -> Result<()> {
        let (at, len) = (self.range().start as u64, self.range().len() as u64);
        match self {
            Request::Write(_, bytes) => node.write(at, &Buffer::from_bytes(bytes).iov(bytes.len())).await,
            Request::Compressed(_, bytes) => {
                node.write_compressed(at, &Buffer::from_bytes(bytes).iov(bytes.len())).await
            }
            Request::Zero(_, unmap) => node.write_zeroes(at, len, *unmap).await,
            Request::Discard(_) => node.discard(at, len).await,
        }
    }

    /// The bytes that it leaves, where that is sure.
    fn outcome(&self) -> Option<Vec<u8>> {
        match self {
            Request::Write(_, bytes) | Request::Compressed(_, bytes) => Some(bytes.clone()),
            Request::Zero(range, _) => Some(vec![0; range.len()]),
            Request::Discard(_) => None,
        }
    }
}

impl Step {
    /// Does it. Of several requests, all are waited for; the first error counts.
    pub(super) async fn make(&self, node: &Rc<Node>) -> Result<()> {
        match self {
            Step::Guest(requests) => {
                let all = join_all(requests.iter().map(|request| request.send(node))).await;
                all.into_iter().collect()
            }
            Step::Flush => node.flush().await,
            Step::Change(change) => (change.make)(node.clone()).await,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Step::Guest(requests) => {
                format!("guest {:?}", requests.iter().map(Request::range).collect::<Vec<_>>())
            }
            Step::Flush => "flush".into(),
            Step::Change(change) => change.name.into(),
        }
    }
}

/// What an image may show at some moment of a row.
pub(super) struct Expect<'a> {
    row: &'a Row,
    /// What the header says after each step.
    facts: &'a [String],
    /// What was flushed.
    durable: Seen,
    /// What was requested.
    pub(super) current: Seen,
    /// Bytes that were written since the flush, or may have been.
    since: Vec<(usize, Vec<u8>)>,
    /// What a change that is under way makes of it.
    coming: Option<Seen>,
}

impl<'a> Expect<'a> {
    pub(super) fn new(row: &'a Row, facts: &'a [String], start: Seen) -> Expect<'a> {
        Expect { row, facts, durable: start.clone(), current: start, since: Vec::new(), coming: None }
    }

    /// A step begins.
    pub(super) fn begin(&mut self, step: usize) {
        match &self.row.steps[step] {
            Step::Guest(requests) => {
                for request in requests {
                    // What discarded bytes become at most.
                    let bytes = request.outcome().unwrap_or_else(|| vec![0; request.range().len()]);
                    self.since.push((request.range().start, bytes));
                }
            }
            Step::Flush => {}
            Step::Change(change) => {
                let mut coming = self.current.clone();
                (change.expect)(&mut coming);
                if let Some(facts) = self.facts.get(step) {
                    coming.facts.clone_from(facts);
                }
                self.coming = Some(coming);
            }
        }
    }

    /// A step that had begun ended well. `discarded`: what the bytes of a range are now.
    pub(super) fn end(&mut self, step: usize, mut discarded: impl FnMut(Range<usize>) -> Vec<u8>) {
        match &self.row.steps[step] {
            Step::Guest(requests) => {
                for request in requests {
                    match request.outcome() {
                        Some(now) => self.current.content[request.range()].copy_from_slice(&now),
                        None => self.take(request.range(), &discarded(request.range()), true),
                    }
                }
            }
            Step::Flush => self.flushed(),
            Step::Change(_) => self.change_is_made(),
        }
    }

    /// Bytes are what they were, or what some step wrote: so they are from now on.
    pub(super) fn take(&mut self, range: Range<usize>, now: &[u8], may_be_zero: bool) {
        for (at, &new) in range.zip(now) {
            let old = &mut self.current.content[at];
            if new == *old {
                continue;
            }
            let written = self.since.iter().any(|(start, bytes)| {
                at.checked_sub(*start).and_then(|index| bytes.get(index)) == Some(&new)
            });
            assert!(written || may_be_zero && new == 0, "byte {at} is {new}, was {old}");
            *old = new;
        }
    }

    pub(super) fn flushed(&mut self) {
        self.durable = self.current.clone();
        self.since.clear();
    }

    /// What was coming is there, for good.
    pub(super) fn change_is_made(&mut self) {
        self.current = self.coming.take().unwrap();
        self.flushed();
    }

    /// What a change that is under way would make of the image.
    pub(super) fn coming(&self) -> Option<&Seen> {
        self.coming.as_ref()
    }

    /// Whether an image may show this now.
    pub(super) fn judge(&self, seen: &Seen) -> std::result::Result<(), String> {
        if self.coming.as_ref() == Some(seen) {
            return Ok(());
        }
        let old = &self.durable;
        if (&seen.facts, &seen.snapshots) != (&old.facts, &old.snapshots)
            || seen.content.len() != old.content.len()
        {
            return Err(seen.difference(old));
        }
        let mut at = 0;
        for (new, old) in seen.content.chunks(SECTOR).zip(old.content.chunks(SECTOR)) {
            if new != old {
                self.judge_sector(at, new, old)?;
            }
            at += new.len();
        }
        Ok(())
    }

    fn judge_sector(&self, start: usize, new: &[u8], old: &[u8]) -> std::result::Result<(), String> {
        for (index, (new, old)) in new.iter().zip(old).enumerate() {
            let at = start + index;
            let written = |(start, bytes): &(usize, Vec<u8>)| {
                at.checked_sub(*start).and_then(|index| bytes.get(index)) == Some(new)
            };
            if new != old && !self.since.iter().any(written) {
                return Err(format!("byte {at} is {new}, was {old} when it was flushed"));
            }
        }
        Ok(())
    }
}

/// All rows, with what they do at random decided by `seed`.
pub(super) fn rows(seed: u64) -> Vec<Row> {
    let mut rows = writes(seed);
    rows.extend(copies_on_write(seed));
    rows.push(snapshots_and_compressed_clusters(seed, 512, false));
    rows.push(snapshots_and_compressed_clusters(seed, 4096, false));
    rows.push(snapshots_and_compressed_clusters(seed, 512, true));
    rows.push(refcount_table_grows(seed, false));
    rows.push(refcount_table_grows(seed, true));
    rows.extend(grows(seed));
    rows.extend(snapshots_change(seed));
    rows
}

fn writes(seed: u64) -> Vec<Row> {
    let kinds = [(512, 16, 3), (4096, 1, 3), (65536, 16, 3), (512, 16, 2), (4096, 64, 3), (512, 2, 3)];
    let row = |(cluster_size, bits, version): (u64, u64, u32)| {
        let size = (30 * cluster_size).clamp(100 << 10, 500 << 10);
        let options = options(size, cluster_size, bits, version);
        let steps = workload(seed, size as usize, cluster_size as usize, 40);
        let name = format!("writes, version {version}, clusters of {cluster_size}, {bits} bits");
        new_row(name, &options, None, steps)
    };
    kinds.into_iter().map(row).collect()
}

fn copies_on_write(seed: u64) -> Vec<Row> {
    let kinds = [(512, 3), (4096, 3), (65536, 3), (512, 2), (4096, 2)];
    let row = |(cluster_size, version): (u64, u32)| {
        let size = (30 * cluster_size).clamp(100 << 10, 500 << 10);
        let options = overlay(options(size, cluster_size, 16, version));
        let steps = workload(seed, size as usize, cluster_size as usize, 30);
        let name = format!("writes over a backing file, version {version}, clusters of {cluster_size}");
        new_row(name, &options, Some(base(size as usize * 3 / 4 + 77)), steps)
    };
    kinds.into_iter().map(row).collect()
}

/// An image that qemu-img made, with clusters that are shared.
fn snapshots_and_compressed_clusters(seed: u64, cluster: usize, lazy: bool) -> Row {
    let folder = Folder::new();
    folder.write("bytes", &base(100 << 10));
    let lazily = if lazy { "on" } else { "off" };
    let options = format!("cluster_size={cluster},lazy_refcounts={lazily}");
    folder.run(&format!("qemu-img convert -c -f raw -O qcow2 -o {options} bytes disk"));
    folder.run("qemu-io -f qcow2 disk -c 'write -P 5 10k 30k'");
    folder.run("qemu-img snapshot -c one disk");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 6 20k 30k'");
    let name = format!("writes beside a snapshot and compressed clusters of {cluster}, lazy {lazily}");
    Row { name, bytes: folder.read("disk"), backing: None, steps: workload(seed, 100 << 10, cluster, 30) }
}

/// 512-byte clusters with 64-bit refcounts: the table outgrows its cluster again and again.
fn refcount_table_grows(seed: u64, lazy_refcounts: bool) -> Row {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    for at in (0..7 * (128 << 10)).step_by(128 << 10) {
        let mut bytes = vec![0; 128 << 10];
        rng.fill(&mut bytes[..]);
        steps.push(Step::Guest(vec![Request::Write(at, bytes)]));
        steps.push(Step::Flush);
    }
    steps.extend(workload(seed, 1 << 20, 512, 10));
    let options = CreateOptions { lazy_refcounts, ..options(1 << 20, 512, 64, 3) };
    new_row(format!("the refcount table grows, lazy {lazy_refcounts}"), &options, None, steps)
}

fn grows(seed: u64) -> Vec<Row> {
    use Preallocation::{Falloc, Full, Metadata, Off};
    let mut rows = Vec::new();
    for (mode, cluster, version, with_backing) in [
        (Off, 512, 3, false),
        (Metadata, 512, 3, false),
        (Metadata, 512, 2, false),
        (Falloc, 4096, 3, false),
        (Full, 4096, 3, false),
        (Metadata, 65536, 3, false),
        (Off, 512, 3, true),
        (Metadata, 512, 3, true),
        (Metadata, 4096, 3, true),
    ] {
        let small = options(100 << 10, cluster, 16, version);
        let backing = with_backing.then(|| base(250 << 10));
        let small = if with_backing { overlay(small) } else { small };
        let mut steps = workload(seed, 100 << 10, cluster as usize, 12);
        steps.push(grow(200 << 10, mode));
        steps.extend(workload(seed + 1, 200 << 10, cluster as usize, 4));
        steps.push(grow(500 << 10, mode));
        steps.extend(workload(seed + 2, 500 << 10, cluster as usize, 4));
        let name =
            format!("growing, {mode:?}, version {version}, clusters of {cluster}, backing {with_backing}");
        rows.push(new_row(name, &small, backing, steps));
    }
    rows
}

fn grow(size: usize, mode: Preallocation) -> Step {
    change(
        "grow",
        move |node| async move { node.truncate(size as u64, mode).await }.boxed_local(),
        move |seen| seen.content.resize(size, 0),
    )
}

/// Internal snapshots come, are replaced and applied, and go, with writes in between and VM state behind the disk.
fn snapshots_change(seed: u64) -> Vec<Row> {
    let kinds = [(512, 16, 3, false), (4096, 4, 3, true), (16384, 64, 3, false), (512, 16, 2, false)];
    let row = |(cluster, bits, version, with_backing): (u64, u64, u32, bool)| {
        let small = options(100 << 10, cluster, bits, version);
        let backing = with_backing.then(|| base(250 << 10));
        let small = if with_backing { overlay(small) } else { small };
        let mut steps = Vec::new();
        let writes = |steps: &mut Vec<Step>| {
            steps.extend(workload(seed + steps.len() as u64, 100 << 10, cluster as usize, 4));
        };
        writes(&mut steps);
        steps.push(take_snapshot("one", false));
        writes(&mut steps);
        steps.push(take_snapshot("two", false));
        writes(&mut steps);
        steps.extend([take_snapshot("one", true), apply_snapshot("two")]);
        writes(&mut steps);
        if version > 2 {
            steps.push(grow(130 << 10, Preallocation::Off));
        }
        steps.extend([store_vm_state(), take_snapshot("three", false), store_vm_state()]);
        steps.extend([delete_snapshot("two"), apply_snapshot("one")]);
        writes(&mut steps);
        steps.extend([take_snapshot("three", true), delete_snapshot("one"), delete_snapshot("three")]);
        writes(&mut steps);
        let name = format!(
            "snapshots, version {version}, clusters of {cluster}, {bits} bits, backing {with_backing}"
        );
        new_row(name, &small, backing, steps)
    };
    kinds.into_iter().map(row).collect()
}

/// A snapshot with VM state, in place of those of its name or beside them.
fn take_snapshot(name: &'static str, replace: bool) -> Step {
    let make = move |node: Rc<Node>| {
        let new = NewSnapshot { name: name.into(), vm_state_size: 9000, ..NewSnapshot::default() };
        async move {
            let snapshots = node.driver().snapshots().unwrap();
            let done = if replace { snapshots.replace(&new).await } else { snapshots.create(&new).await };
            done.map(drop)
        }
        .boxed_local()
    };
    change(if replace { "replace" } else { "create" }, make, move |seen| {
        seen.snapshots.retain(|(other, _)| !replace || other != name);
        seen.snapshots.push((name.into(), seen.content.clone()));
    })
}

fn apply_snapshot(name: &'static str) -> Step {
    let make = move |node: Rc<Node>| {
        async move { node.driver().snapshots().unwrap().apply(&Selector::Name(name.into())).await }
            .boxed_local()
    };
    change("apply", make, move |seen| {
        let found = seen.snapshots.iter().find(|(other, _)| other == name);
        seen.content.clone_from(&found.unwrap().1);
    })
}

fn delete_snapshot(name: &'static str) -> Step {
    let make = move |node: Rc<Node>| {
        async move { node.driver().snapshots().unwrap().delete(&Selector::Name(name.into())).await }
            .boxed_local()
    };
    change("delete", make, move |seen| seen.snapshots.retain(|(other, _)| other != name))
}

/// Bytes behind the disk, which nobody sees.
fn store_vm_state() -> Step {
    let make = |node: Rc<Node>| {
        async move {
            let bytes = Buffer::from_bytes(&[0x5a; 9000]).iov(9000);
            node.driver().vm_state().unwrap().write(0, &bytes).await?;
            node.flush().await
        }
        .boxed_local()
    };
    change("VM state", make, |_| {})
}

fn new_row(name: String, options: &CreateOptions, backing: Option<Vec<u8>>, steps: Vec<Step>) -> Row {
    let disk = Disk::create(Backend::Auto, options, backing.clone());
    disk.close();
    Row { name, bytes: disk.bytes(), backing, steps }
}

pub(super) fn options(size: u64, cluster_size: u64, refcount_bits: u64, version: u32) -> CreateOptions {
    CreateOptions { size, cluster_size, refcount_bits, version, ..CreateOptions::default() }
}

fn overlay(options: CreateOptions) -> CreateOptions {
    let (backing_file, backing_format) = (Some("base".into()), Some("raw".into()));
    CreateOptions { backing_file, backing_format, ..options }
}

/// Random requests, up to three at once, with a flush now and then and at the end.
pub(super) fn workload(seed: u64, size: usize, cluster: usize, steps: usize) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed ^ (size * cluster) as u64);
    let mut out = Vec::new();
    // What is done to large clusters takes long.
    let steps = if cluster > 4096 { steps / 2 } else { steps };
    for _ in 0..steps {
        let mut batch: Vec<Request> = Vec::new();
        for _ in 0..rng.random_range(1..4) {
            let request = request(&mut rng, size, cluster);
            let (start, end) = (request.range().start, request.range().end);
            if batch.iter().all(|other| other.range().end <= start || end <= other.range().start) {
                batch.push(request);
            }
        }
        out.push(Step::Guest(batch));
        if rng.random_range(0..8) == 0 {
            out.push(Step::Flush);
        }
    }
    out.push(Step::Flush);
    out
}

fn request(rng: &mut StdRng, size: usize, cluster: usize) -> Request {
    let aligned = rng.random_range(0..8) > 0;
    let unit = if aligned { SECTOR } else { 1 };
    let start = rng.random_range(0..size / unit) * unit;
    let longest = (3 * cluster).min(100 << 10).min(size - start) / unit;
    let range = start..start + rng.random_range(1..=longest) * unit;
    match rng.random_range(0..12) {
        0..6 => {
            let mut bytes = vec![0; range.len()];
            rng.fill(&mut bytes[..]);
            Request::Write(start, bytes)
        }
        6..8 => {
            let start = start / cluster * cluster;
            let end = range.end.next_multiple_of(cluster).min(size);
            Request::Compressed(start, compressible(rng, end - start))
        }
        8..11 => Request::Zero(range, rng.random()),
        _ => Request::Discard(range),
    }
}

/// The seed of a sweep, the same at every run unless `COWVM_SEED` says otherwise.
pub(super) fn sweep_seed() -> u64 {
    let seed = std::env::var("COWVM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20);
    println!("COWVM_SEED={seed}");
    seed
}

/// Whether every point is to be tried, not a sample.
pub(super) fn is_full_sweep() -> bool {
    std::env::var("COWVM_SWEEP").as_deref() == Ok("full")
}
