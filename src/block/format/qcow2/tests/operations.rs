//! What the sweeps ([`super::crash`], [`super::errors`]) do to images, and what an image may show meanwhile.
//!
//! A [`Row`] is an image and steps on it; the table of all is in [`super::rows`]. The sweeps prove of every step:
//!
//! * requests of the guest: bytes are the old or the new ones until a flush, then the new ones;
//! * a change (of size, snapshots, header …): everything that the image shows is as before or as after it, and as
//!   after it once the change returned. What is documented to happen in several stages may stop at each.
//!
//! What an image shows is [`Seen`]: content, internal snapshots with theirs, and what the header says.

use super::memory::{MemoryFile, State, driver};
use crate::block::aio::Engine;
use crate::block::format::qcow2::Image;
use crate::block::format::qcow2::driver::Qcow2;
use crate::block::format::qcow2::geometry::GuestOffset;
use crate::block::format::qcow2::mapping::View;
use crate::block::graph::driver::{Check, CheckReport, Repair};
use crate::block::graph::{Driver, Node};
use crate::block::{Buffer, Result};
use crate::seed::seed_or;
use futures_util::future::{LocalBoxFuture, join_all};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The unit in which contents are compared.
const SECTOR: usize = 512;

/// An image, and what is done to it.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) backing: Option<Vec<u8>>,
    pub(super) steps: Vec<Step>,
    /// The image is broken until opening it, or the first step, has repaired it: until then it may not be clean, but
    /// can be repaired without a loss.
    pub(super) damaged: bool,
    /// Each run of it takes long: it is encrypted.
    pub(super) slow: bool,
}

impl Row {
    /// How many points are tried where `most` are of other rows.
    pub(super) fn points(&self, most: usize) -> usize {
        if self.slow { most / 8 } else { most }
    }
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
    /// What it may also leave half-way, of what was before and what comes: nothing as a rule.
    halfway: fn(&Seen, &Seen) -> Vec<Seen>,
}

/// A step that `make` does to the disk and that makes of the image what `expect` says.
pub(super) fn change(
    name: &'static str,
    make: impl Fn(Rc<Node>) -> LocalBoxFuture<'static, Result<()>> + 'static,
    expect: impl Fn(&mut Seen) + 'static,
) -> Step {
    change_in_stages(name, make, expect, |_, _| Vec::new())
}

/// The same, of an operation that is not to happen as a whole, but as so many.
pub(super) fn change_in_stages(
    name: &'static str,
    make: impl Fn(Rc<Node>) -> LocalBoxFuture<'static, Result<()>> + 'static,
    expect: impl Fn(&mut Seen) + 'static,
    halfway: fn(&Seen, &Seen) -> Vec<Seen>,
) -> Step {
    Step::Change(Change { name, make: Box::new(make), expect: Box::new(expect), halfway })
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

/// What the header says of the image; not whether its refcounts and its enabled bitmaps are to be trusted, which may
/// come and go.
pub(super) fn facts(driver: &dyn Driver) -> String {
    let facts = format!("{} bytes, {:?}", driver.size(), driver.specifics());
    ["dirty", "in_use", "inconsistent"]
        .iter()
        .fold(facts, |facts, flag| facts.replace(&format!("{flag}: true"), &format!("{flag}: false")))
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
            let list = image.snapshots.borrow().clone();
            for snapshot in list {
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

/// What becomes of the file of a damaged image when it is repaired.
fn repaired(engine: &Rc<Engine>, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let state = Rc::new(State { bytes: RefCell::new(bytes), ..State::default() });
    let file = MemoryFile::node(engine, &state);
    engine
        .block_on(async {
            let image = Image::read_for_check(&file).await?.into_qcow2(engine, None, false)?;
            let report = image.repair(Repair::All).await?;
            image.close().await?;
            report.gave_up.map_or(Ok(()), Err)
        })
        .unwrap()?;
    Ok(state.bytes.take())
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
    /// What it may leave half-way.
    halfway: Vec<Seen>,
    /// The first step is over.
    begun_well: bool,
}

impl<'a> Expect<'a> {
    pub(super) fn new(row: &'a Row, facts: &'a [String], start: Seen) -> Expect<'a> {
        let (since, coming, halfway, begun_well) = (Vec::new(), None, Vec::new(), false);
        Expect { row, facts, durable: start.clone(), current: start, since, coming, halfway, begun_well }
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
                self.halfway = (change.halfway)(&self.current, &coming);
                self.coming = Some(coming);
            }
        }
    }

    /// A step that had begun ended well. `discarded`: what the bytes of a range are now.
    pub(super) fn end(&mut self, step: usize, mut discarded: impl FnMut(Range<usize>) -> Vec<u8>) {
        self.begun_well = true;
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
        self.halfway.clear();
        self.flushed();
    }

    /// What a change that is under way would make of the image.
    pub(super) fn coming(&self) -> Option<&Seen> {
        self.coming.as_ref()
    }

    /// Whether the header may say this of an image whose change failed.
    pub(super) fn may_say(&self, facts: &str) -> bool {
        facts == self.current.facts || self.halfway.iter().any(|halfway| halfway.facts == facts)
    }

    /// Whether the image is not, or no longer, damaged.
    pub(super) fn is_sound(&self) -> bool {
        !self.row.damaged || self.begun_well
    }

    /// What a file shows that a crash may leave now. Panics at `place` if it may not be so.
    pub(super) fn judge_file(&self, engine: &Rc<Engine>, bytes: Vec<u8>, place: &str) -> Seen {
        let backing = self.row.backing.as_deref();
        let open = |bytes| observe(engine, bytes, backing).unwrap_or_else(|error| panic!("{place}: {error}"));
        let (mut seen, mut report) = open(bytes.clone());
        if !self.is_sound() && report.corruptions > 0 {
            let bytes = repaired(engine, bytes).unwrap_or_else(|error| panic!("{place}: {error}"));
            (seen, report) = open(bytes);
        }
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{place}: {:?}", report.messages);
        if let Err(what) = self.judge(&seen) {
            panic!("{place}: {what}");
        }
        seen
    }

    /// Whether an image may show this now.
    fn judge(&self, seen: &Seen) -> std::result::Result<(), String> {
        if self.coming.as_ref() == Some(seen) || self.halfway.contains(seen) {
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

/// The seed of a sweep, the same at every run unless `COWVM_SEED` says otherwise.
pub(super) fn sweep_seed() -> u64 {
    seed_or(20)
}

/// Whether every point is to be tried, not a sample.
pub(super) fn is_full_sweep() -> bool {
    std::env::var("COWVM_SWEEP").as_deref() == Ok("full")
}
