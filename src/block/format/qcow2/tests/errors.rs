//! A host that fails: the error sweep.
//!
//! Each row of the table of operations runs again and again, and each time another request to the file fails
//! ([`blkdebug`]): with EIO any request, with ENOSPC those that take space; the one request, or it and all that the
//! step still sends. Opening the image counts as a step. Then:
//!
//! * the step answers with that error, or the request was a hint and it goes on;
//! * the guest reads what it read before, or what the step was to write; a change was made, or was not;
//! * a crash at that moment costs nothing that was flushed;
//! * the step, done once more, works, and all others after it;
//! * the image, closed, has no corruption, and shows exactly what was asked for. Where writes failed, it has no leaks.
//!
//! And a file that stops altogether is as good as the one that a killed process leaves.
//!
//! [`blkdebug`]: crate::block::filter::blkdebug

use super::crash::{Recording, record};
use super::memory::{Disk, State};
use super::operations::{Expect, Request, Row, Step, facts, is_full_sweep, observe};
use super::rows::sweep_all;
use crate::block::Kind;
use crate::block::aio::{Backend, Engine};
use crate::block::filter::blkdebug::{Effect, Fault, Faults, RequestKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Errors tried in a row, unless all are.
const POINTS: usize = 400;

/// What goes wrong in a run.
#[derive(Clone, Debug)]
enum Trouble {
    /// One request.
    Once(Vec<RequestKind>, i32),
    /// A request, and all that follow until the step is over.
    While(Vec<RequestKind>, i32),
    /// Nothing reaches the file any more.
    Death,
}

impl Trouble {
    fn all() -> [Trouble; 5] {
        let (all, allocating) = (RequestKind::DATA.to_vec(), RequestKind::ALLOCATING.to_vec());
        [
            Trouble::Once(all.clone(), libc::EIO),
            Trouble::While(all.clone(), libc::EIO),
            Trouble::Once(allocating.clone(), libc::ENOSPC),
            Trouble::While(allocating, libc::ENOSPC),
            Trouble::Death,
        ]
    }

    fn errno(&self) -> i32 {
        match self {
            Trouble::Once(_, errno) | Trouble::While(_, errno) => *errno,
            Trouble::Death => libc::EIO,
        }
    }

    /// The fault that begins with the `nth` request of its kinds.
    fn fault(&self, nth: u64) -> Fault {
        let effect = Effect::Fail { errno: self.errno(), immediately: false };
        let (kinds, once, effect) = match self {
            Trouble::Once(kinds, _) => (kinds, true, effect),
            Trouble::While(kinds, _) => (kinds, false, effect),
            Trouble::Death => (&RequestKind::DATA.to_vec(), true, Effect::Stop),
        };
        Fault { kinds: kinds.clone(), range: None, skip: nth, once, effect }
    }
}

/// One run of a row with one trouble in it.
struct Run<'a> {
    row: &'a Row,
    engine: Rc<Engine>,
    trouble: &'a Trouble,
    disk: Disk,
    expect: Expect<'a>,
    /// Where we are, for messages.
    place: String,
}

/// Runs a row whose `nth` request of the trouble's kinds fails. False if there were not so many.
fn run(row: &Row, recording: &Recording, engine: &Rc<Engine>, trouble: &Trouble, nth: u64) -> bool {
    let faults = Faults::new([trouble.fault(nth).into()]);
    let state = Rc::new(State { bytes: RefCell::new(row.bytes.clone()), ..State::default() });
    let open = || Disk::open_with(engine.clone(), state.clone(), row.backing.clone(), faults.clone());
    let disk = open().or_else(|error| {
        assert_eq!(error.errno(), trouble.errno(), "{}: opening, request {nth}: {error}", row.name);
        faults.replace([]);
        open()
    });
    let expect = Expect::new(row, &recording.facts, recording.start.clone());
    let place = format!("{}: {trouble:?}, request {nth}", row.name);
    let mut run = Run { row, engine: engine.clone(), trouble, disk: disk.unwrap(), expect, place };
    let last = run.steps();
    if faults.injected() > 0 && matches!(trouble, Trouble::Death) {
        run.check_crash();
    } else if last {
        run.finish();
    }
    faults.injected() > 0
}

impl Run<'_> {
    /// Does all steps. False if the disk does not go on.
    fn steps(&mut self) -> bool {
        for index in 0..self.row.steps.len() {
            self.place = format!(
                "{}, step {index}: {}",
                self.place.split(", step").next().unwrap(),
                self.row.steps[index].name()
            );
            self.expect.begin(index);
            let done = self.disk.run(self.row.steps[index].make(&self.disk.node));
            let dead = self.disk.faults.injected() > 0 && matches!(self.trouble, Trouble::Death);
            match done {
                // What is left of a request of the guest, nobody can read any more.
                Ok(()) if dead && matches!(self.row.steps[index], Step::Guest(_)) => return false,
                Ok(()) => self.ended(index),
                Err(error) => {
                    assert_eq!(error.errno(), self.trouble.errno(), "{}: {error}", self.place);
                    assert!(self.disk.faults.injected() > 0, "{}: {error}", self.place);
                    if dead || !self.failed(index) {
                        return false;
                    }
                }
            }
            if dead {
                return false;
            }
        }
        true
    }

    fn read(&self, request: &Request) -> Vec<u8> {
        let range = request.range();
        self.disk.run(self.disk.node.read_bytes(range.start as u64, range.len())).unwrap()
    }

    fn ended(&mut self, index: usize) {
        let disk = &self.disk;
        // Hints may have come to nothing; the file answers again.
        if disk.faults.injected() > 0 && !matches!(self.trouble, Trouble::Death) {
            disk.recover();
        }
        let read = |range: &Range<usize>| disk.run(disk.node.read_bytes(range.start as u64, range.len()));
        self.expect.end(index, |range| {
            // The request that was to fail may be this one.
            let again = |_| {
                disk.recover();
                read(&range)
            };
            read(&range).or_else(again).unwrap()
        });
    }

    /// The step failed. Nothing is lost, and it works when done once more. False if the disk does not go on.
    fn failed(&mut self, index: usize) -> bool {
        self.disk.recover();
        self.check_crash();
        let step = &self.row.steps[index];
        match step {
            Step::Guest(requests) => {
                for request in requests {
                    let now = self.read(request);
                    self.expect.take(request.range(), &now, matches!(request, Request::Discard(_)));
                }
            }
            Step::Flush => {}
            Step::Change(_) if self.is_made() => {
                self.flush();
                self.expect.change_is_made();
                return true;
            }
            Step::Change(_) => {
                let now = facts(self.disk.node.driver());
                assert!(self.expect.may_say(&now), "{}: {now}", self.place);
            }
        }
        match self.disk.run(step.make(&self.disk.node)) {
            Ok(()) => self.ended(index),
            // A file that did not even say which header it has is not written to any more.
            Err(error) if error.kind() == Kind::ReadOnly && matches!(self.trouble, Trouble::While(..)) => {
                return false;
            }
            Err(error) => panic!("{}: once more: {error}", self.place),
        }
        true
    }

    /// Whether the disk shows what the change makes of it, and not what was there before.
    fn is_made(&self) -> bool {
        let (now, coming) = (facts(self.disk.node.driver()), self.expect.coming().unwrap());
        now == coming.facts && now != self.expect.current.facts
    }

    fn flush(&self) {
        self.disk.run(self.disk.node.flush()).unwrap();
    }

    /// What a killed process would leave now is sound.
    fn check_crash(&self) {
        self.expect.judge_file(&self.engine, self.disk.bytes(), &self.place);
    }

    fn finish(&mut self) {
        self.disk.recover();
        self.disk.close();
        let (seen, report) = observe(&self.engine, self.disk.bytes(), self.row.backing.as_deref()).unwrap();
        assert_eq!(
            (report.corruptions, report.check_errors),
            (0, 0),
            "{}: {:?}",
            self.place,
            report.messages
        );
        assert!(seen == self.expect.current, "{}: {}", self.place, seen.difference(&self.expect.current));
        // An EIO may have hit the read of a refcount block, twice: what it counts stays counted.
        if self.trouble.errno() == libc::ENOSPC {
            assert_eq!(report.leaks, 0, "{}: {:?}", self.place, report.messages);
        }
    }
}

/// How many requests of the trouble's kinds a run has.
fn requests(row: &Row, recording: &Recording, engine: &Rc<Engine>, trouble: &Trouble) -> u64 {
    let never = Fault { skip: u64::MAX, ..trouble.fault(0) };
    let faults = Faults::new([never.into()]);
    let state = Rc::new(State { bytes: RefCell::new(row.bytes.clone()), ..State::default() });
    let disk = Disk::open_with(engine.clone(), state, row.backing.clone(), faults.clone()).unwrap();
    let expect = Expect::new(row, &recording.facts, recording.start.clone());
    let mut run = Run { row, engine: engine.clone(), trouble, disk, expect, place: row.name.clone() };
    run.steps();
    faults.requests()
}

/// Tries the errors of a row. Returns how many.
fn sweep(row: &Row, seed: u64) -> usize {
    let recording = record(row);
    let engine = Engine::new(Backend::Threads).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut points = 0;
    let troubles = Trouble::all();
    for trouble in &troubles {
        let requests = requests(row, &recording, &engine, trouble);
        let share = row.points(POINTS) as f64 / (requests as f64 * troubles.len() as f64);
        let likely = if is_full_sweep() { 1.0 } else { share.min(1.0) };
        for nth in 0..requests {
            if rng.random_bool(likely) {
                if !run(row, &recording, &engine, trouble, nth) {
                    break;
                }
                points += 1;
            }
        }
    }
    points
}

#[test]
fn an_error_of_the_host_costs_nothing_but_the_request() {
    sweep_all(sweep);
}
