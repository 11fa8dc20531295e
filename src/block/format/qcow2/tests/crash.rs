//! Death at every moment: the crash sweep.
//!
//! Each row of the table of operations runs over a file whose changes are logged ([`log_writes`]). At every entry of
//! the log the file is rebuilt as it would be found after
//!
//! * the death of the process: every entry so far is there;
//! * a power failure: what was flushed is there, and of the rest some whole entries, or some sectors.
//!
//! Each such file opens, has no corruption (leaks are allowed), and shows what was flushed, with changes that are old
//! or new as a whole. On a sample the real qemu-img checks it too, and on a sample it is written to again.
//!
//! [`log_writes`]: crate::block::filter::log_writes

use super::memory::{Disk, Folder, described};
use super::operations::{Expect, Row, Seen, Step, facts, is_dirty, is_full_sweep, observe, sweep_seed};
use super::rows::{options, sweep_all};
use super::window::DATA_AT;
use crate::block::aio::{Backend, Engine};
use crate::block::filter::log_writes::{Entry, Log, Replay};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use std::rc::Rc;

/// Files tried at a moment, besides that of a killed process.
const POWER_FAILURES: usize = 5;
/// Files tried of a row, unless all are.
const POINTS: usize = 2000;
/// How many of a row the real qemu-img looks at.
const JUDGED_BY_QEMU: usize = 4;
/// One of so many is written to again.
const GOES_ON: usize = 20;

/// A run of a row, as it was logged.
pub(super) struct Recording {
    pub(super) start: Seen,
    /// What the header says after each step.
    pub(super) facts: Vec<String>,
    /// Entries of each step.
    spans: Vec<Range<usize>>,
    /// What discarded ranges became, in order.
    discarded: Vec<Vec<u8>>,
    entries: Vec<Entry>,
}

/// Runs a row, nothing going wrong.
pub(super) fn record(row: &Row) -> Recording {
    let disk = Disk::from_bytes(Backend::Auto, row.bytes.clone(), row.backing.clone());
    let (start, _) = observe(&disk.engine, row.bytes.clone(), row.backing.as_deref()).unwrap();
    let (mut spans, mut all_facts, mut discarded) = (Vec::new(), Vec::new(), Vec::new());
    let mut expect = Expect::new(row, &[], start.clone());
    for (index, step) in row.steps.iter().enumerate() {
        let from = disk.log.len();
        expect.begin(index);
        disk.run(step.make(&disk.node)).unwrap();
        spans.push(from..disk.log.len());
        all_facts.push(facts(disk.node.driver()));
        expect.end(index, |range| {
            let now = disk.run(disk.node.read_bytes(range.start as u64, range.len())).unwrap();
            discarded.push(now.clone());
            now
        });
        expect.current.facts.clone_from(&all_facts[index]);
        if let Step::Change(change) = step {
            let (seen, _) = observe(&disk.engine, disk.bytes(), row.backing.as_deref()).unwrap();
            assert!(seen == expect.current, "{}: {}", row.name, change.name);
        }
    }
    disk.close();
    assert!(!disk.log.has_overtaking(), "{}: two changes of one place at once", row.name);
    let (seen, report) = observe(&disk.engine, disk.bytes(), row.backing.as_deref()).unwrap();
    assert!(seen == expect.current, "{}", row.name);
    assert_eq!(report.messages, [""; 0], "{}", row.name);
    let entries = disk.log.entries().to_vec();
    Recording { start, facts: all_facts, spans, discarded, entries }
}

/// What a row's files are judged by, as the log goes on.
struct Judge<'a> {
    row: &'a Row,
    recording: &'a Recording,
    engine: Rc<Engine>,
    folder: Folder,
    expect: Expect<'a>,
    discarded: std::slice::Iter<'a, Vec<u8>>,
    /// Steps that are over; the next one may have begun.
    done: usize,
    begun: bool,
    points: usize,
}

impl<'a> Judge<'a> {
    fn new(row: &'a Row, recording: &'a Recording) -> Judge<'a> {
        let folder = Folder::new();
        folder.write("base", row.backing.as_deref().unwrap_or_default());
        Judge {
            row,
            recording,
            engine: Engine::new(Backend::Threads).unwrap(),
            folder,
            expect: Expect::new(row, &recording.facts, recording.start.clone()),
            discarded: recording.discarded.iter(),
            done: 0,
            begun: false,
            points: 0,
        }
    }

    /// The first `at` entries of the log were sent.
    fn advance(&mut self, at: usize) {
        while let Some(span) = self.recording.spans.get(self.done) {
            if span.start > at {
                return;
            }
            if !self.begun {
                self.expect.begin(self.done);
                self.begun = true;
            }
            if span.end > at {
                return;
            }
            let discarded = &mut self.discarded;
            self.expect.end(self.done, |_| discarded.next().unwrap().clone());
            (self.done, self.begun) = (self.done + 1, false);
        }
    }

    fn place(&self, at: usize) -> String {
        let step = self.row.steps.get(self.done).map_or("the end".into(), Step::name);
        format!("{}: entry {at} of {}, in {step}", self.row.name, self.recording.entries.len())
    }

    fn judge(&mut self, file: Vec<u8>, at: usize) {
        let place = self.place(at);
        let seen = self.expect.judge_file(&self.engine, file.clone(), &place);
        self.points += 1;
        if self.points.is_multiple_of(GOES_ON) && self.expect.is_sound() {
            self.goes_on(file, &seen, &place);
        }
    }

    /// Whoever finds the file can go on with it.
    fn goes_on(&self, file: Vec<u8>, seen: &Seen, place: &str) {
        let disk = Disk::from_bytes(Backend::Threads, file, self.row.backing.clone());
        let mut content = seen.content.clone();
        let middle = content.len() / 2;
        for at in [0, middle, content.len() - 5000] {
            disk.run(disk.node.write_bytes(at as u64, &[0xa7; 5000])).unwrap();
            content[at..at + 5000].fill(0xa7);
        }
        disk.close();
        let (after, report) = observe(&self.engine, disk.bytes(), self.row.backing.as_deref()).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{place}: {:?}", report.messages);
        assert!(after.content == content && after.snapshots == seen.snapshots, "{place}: written to again");
    }

    fn ask_qemu(&self, file: &[u8], at: usize) {
        self.folder.write("disk", file);
        self.folder.write("data", file.get(DATA_AT as usize..).unwrap_or_default());
        let repair = if is_dirty(file) { "-r all" } else { "" };
        // 3: leaks alone.
        let status =
            self.folder.try_run(&format!("qemu-img check {repair} {}", described("disk"))).status.code();
        assert!(matches!(status, Some(0 | 3)), "{}: qemu-img check: {status:?}", self.place(at));
    }
}

/// One file that a power failure could leave: made of whole entries, or of sectors.
fn power_failure(replay: &Replay<'_>, rng: &mut StdRng) -> Vec<u8> {
    let (torn, likely) = (rng.random::<bool>(), rng.random_range(0.1..0.9));
    let mut last = (usize::MAX, false);
    replay.power_failure(|entry, _| {
        if torn || entry != last.0 {
            last = (entry, rng.random_bool(likely));
        }
        last.1
    })
}

/// Tries the files of a row. Returns how many.
fn sweep(row: &Row, seed: u64) -> usize {
    let recording = record(row);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(row, &recording);
    let mut replay = Replay::new(&recording.entries, &row.bytes);
    let moments = recording.entries.len() + 1;
    let likely = if is_full_sweep() {
        1.0
    } else {
        (row.points(POINTS) as f64 / (moments * (1 + POWER_FAILURES)) as f64).min(1.0)
    };
    let ask_qemu = JUDGED_BY_QEMU as f64 / moments as f64;
    loop {
        let at = replay.at();
        judge.advance(at);
        if rng.random_bool(likely) {
            judge.judge(replay.killed().to_vec(), at);
            let failures = if replay.is_unsure() { POWER_FAILURES } else { 0 };
            for _ in 0..failures {
                judge.judge(power_failure(&replay, &mut rng), at);
            }
        }
        if judge.expect.is_sound() && rng.random_bool(ask_qemu.min(1.0)) {
            judge.ask_qemu(&power_failure(&replay, &mut rng), at);
        }
        if !replay.advance() {
            return judge.points;
        }
    }
}

#[test]
fn death_at_any_moment_of_any_operation_leaves_the_old_or_the_new_state() {
    sweep_all(sweep);
}

/// Until a new image is complete there is none, or an empty one.
#[test]
fn death_while_an_image_is_made_leaves_no_image_or_all_of_it() {
    use super::memory::{MemoryFile, State};
    use crate::block::filter::LogWrites;
    use crate::block::format::qcow2::{CreateOptions, create};
    use crate::block::graph::Node;
    use crate::block::options::Preallocation::{Full, Metadata, Off};
    let mut rng = StdRng::seed_from_u64(sweep_seed());
    for (cluster, version, preallocation) in
        [(512, 3, Off), (512, 2, Metadata), (4096, 3, Full), (65536, 3, Metadata)]
    {
        let options = CreateOptions { preallocation, ..options(300 << 10, cluster, 16, version) };
        let engine = Engine::new(Backend::Threads).unwrap();
        let (state, log) = (Rc::new(State::default()), Rc::new(Log::default()));
        let logged = LogWrites::new(MemoryFile::node(&engine, &state), log.clone());
        engine
            .block_on(create(&engine, &Node::new("log", Box::new(logged)), None, &options))
            .unwrap()
            .unwrap();
        let entries = log.entries().to_vec();
        let mut replay = Replay::new(&entries, &[]);
        loop {
            let files = [
                replay.killed().to_vec(),
                power_failure(&replay, &mut rng),
                power_failure(&replay, &mut rng),
            ];
            for file in files {
                let Ok((seen, report)) = observe(&engine, file, None) else { continue };
                if !seen.content.is_empty() {
                    assert!(seen.content == vec![0; 300 << 10], "{cluster} {version}");
                    assert_eq!(report.corruptions, 0, "{:?}", report.messages);
                }
            }
            if !replay.advance() {
                break;
            }
        }
        let (seen, report) = observe(&engine, replay.killed().to_vec(), None).unwrap();
        assert!(seen.content.len() == 300 << 10 && report.messages.is_empty() && !replay.is_unsure());
    }
}
