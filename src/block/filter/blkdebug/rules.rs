//! What becomes of a request: rules that events wake, and the faults that they put in force.
//!
//! * A [`Rule`] waits for an event, in one state or in any. It changes the state, or puts a [`Fault`] in force.
//! * The faults of one event replace those of earlier ones, and stay in force until the next event that has any.
//! * Of the faults in force, the first that matches a request decides what becomes of it.

use crate::block::graph::Event;
use crate::block::{Error, Result};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The state at the beginning, as QEMU has it.
const FIRST_STATE: u32 = 1;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Reads bytes.
    Read,
    /// Writes bytes.
    Write,
    /// Writes zeros, without bytes.
    WriteZeroes,
    /// Gives a range up.
    Discard,
    /// Makes durable what was written.
    Flush,
    /// Changes the length.
    Truncate,
    /// Asks what a range is.
    BlockStatus,
}

impl RequestKind {
    /// All that move or change data: what a rule is about that names no kind.
    pub const DATA: &[RequestKind] = &[
        RequestKind::Read,
        RequestKind::Write,
        RequestKind::WriteZeroes,
        RequestKind::Discard,
        RequestKind::Flush,
        RequestKind::Truncate,
    ];

    /// All that take space.
    pub const ALLOCATING: &[RequestKind] =
        &[RequestKind::Write, RequestKind::WriteZeroes, RequestKind::Truncate];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            RequestKind::Read => "read",
            RequestKind::Write => "write",
            RequestKind::WriteZeroes => "write-zeroes",
            RequestKind::Discard => "discard",
            RequestKind::Flush => "flush",
            RequestKind::Truncate => "truncate",
            RequestKind::BlockStatus => "block-status",
        }
    }
}

/// What happens to a request that a fault matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this error number, and never reaches the file. `immediately`: before other tasks run.
    Fail {
        /// The host's error number, as EIO.
        errno: i32,
        /// Before other tasks run.
        immediately: bool,
    },
    /// It waits for [`Faults::release`], then goes on.
    Hold,
    /// It fails, and so does everything after it: nothing reaches the file any more.
    Stop,
}

/// Which requests are hit, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Kinds of requests.
    pub kinds: Vec<RequestKind>,
    /// Bytes of the file that a request must touch; any request if `None`. Flushes touch none.
    pub range: Option<Range<u64>>,
    /// So many requests that match are let through first.
    pub skip: u64,
    /// The rule is gone once it hit.
    pub once: bool,
    /// What happens to the request.
    pub effect: Effect,
}

impl Fault {
    /// The request after the next `skip` ones, of any kind but status, fails with `errno`; once.
    pub fn nth(skip: u64, errno: i32) -> Fault {
        let effect = Effect::Fail { errno, immediately: false };
        Fault { kinds: RequestKind::DATA.to_vec(), range: None, skip, once: true, effect }
    }

    fn matches(&self, kind: RequestKind, range: &Range<u64>) -> bool {
        let hit = |want: &Range<u64>| range.start < want.end && want.start < range.end;
        self.kinds.contains(&kind) && self.range.as_ref().is_none_or(hit)
    }
}

/// What a rule does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Puts a fault in force.
    Inject(Fault),
    /// Changes the state, for rules that look at it at the next event.
    SetState(u32),
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// When it acts; [`Event::None`]: from the beginning.
    pub event: Event,
    /// In which state it acts; in any if `None`.
    pub state: Option<u32>,
    /// What it does.
    pub action: Action,
}

impl From<Fault> for Rule {
    /// A fault that is in force at once.
    fn from(fault: Fault) -> Rule {
        Rule { event: Event::None, state: None, action: Action::Inject(fault) }
    }
}

struct Entry {
    rule: Rule,
    /// Requests that matched so far.
    seen: Cell<u64>,
}

/// The rules of one or more filters, and what they have seen.
pub struct Faults {
    rules: RefCell<Vec<Rc<Entry>>>,
    /// Of these, the ones in force.
    active: RefCell<Vec<Rc<Entry>>>,
    state: Cell<u32>,
    requests: Cell<u64>,
    injected: Cell<u64>,
    stopped: Cell<bool>,
    /// Who waits to be released, and how often that was done.
    held: RefCell<Vec<Waker>>,
    releases: Cell<u64>,
}

impl Faults {
    /// Rules that hold from now on.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Rc<Faults> {
        let faults = Faults {
            rules: RefCell::default(),
            active: RefCell::default(),
            state: Cell::new(FIRST_STATE),
            requests: Cell::new(0),
            injected: Cell::new(0),
            stopped: Cell::new(false),
            held: RefCell::default(),
            releases: Cell::new(0),
        };
        faults.replace(rules);
        Rc::new(faults)
    }

    /// Other rules hold from now on; the state begins anew, and who was stopped lives again. The counts of
    /// requests go on.
    pub fn replace(&self, rules: impl IntoIterator<Item = Rule>) {
        let entry = |rule| Rc::new(Entry { rule, seen: Cell::new(0) });
        self.rules.replace(rules.into_iter().map(entry).collect());
        self.active.borrow_mut().clear();
        self.state.set(FIRST_STATE);
        self.stopped.set(false);
        self.event(Event::None);
    }

    /// How many requests came, those that failed included; status requests count only if a rule asks for them.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// How many requests were hit.
    pub fn injected(&self) -> u64 {
        self.injected.get()
    }

    /// How many requests wait to be released.
    pub fn held(&self) -> usize {
        self.held.borrow().len()
    }

    /// Lets all requests that are held go on.
    pub fn release(&self) {
        self.releases.set(self.releases.get() + 1);
        self.held.take().into_iter().for_each(Waker::wake);
    }

    /// The driver above is about to do this.
    pub(super) fn event(&self, event: Event) {
        let state = self.state.get();
        let rules = self.rules.borrow();
        let woken = || {
            let matches = |rule: &Rule| rule.event == event && rule.state.is_none_or(|want| want == state);
            rules.iter().filter(move |entry| matches(&entry.rule))
        };
        let is_fault = |entry: &&Rc<Entry>| matches!(entry.rule.action, Action::Inject(_));
        if woken().any(|entry| is_fault(&entry)) {
            self.active.replace(woken().filter(is_fault).cloned().collect());
        }
        for entry in woken() {
            if let Action::SetState(new) = entry.rule.action {
                self.state.set(new);
            }
        }
    }

    /// What becomes of a request: it goes on, at once or later, or fails.
    pub(super) async fn pass(&self, kind: RequestKind, range: Range<u64>) -> Result<()> {
        if kind != RequestKind::BlockStatus {
            self.requests.set(self.requests.get() + 1);
        }
        match self.effect(kind, &range) {
            _ if self.stopped.get() => {}
            None => return Ok(()),
            Some(Effect::Hold) => self.hold().await,
            Some(Effect::Stop) => self.stopped.set(true),
            Some(Effect::Fail { errno, immediately }) => {
                if !immediately {
                    yield_once().await;
                }
                return Err(Error::from_io(io::Error::from_raw_os_error(errno)));
            }
        }
        match self.stopped.get() {
            true => Err(Error::from_io(io::Error::from_raw_os_error(libc::EIO))),
            false => Ok(()),
        }
    }

    /// What the first fault in force that matches does; it counts.
    fn effect(&self, kind: RequestKind, range: &Range<u64>) -> Option<Effect> {
        let active = self.active.borrow().clone();
        for entry in active {
            let Action::Inject(fault) = &entry.rule.action else { continue };
            if !fault.matches(kind, range) {
                continue;
            }
            if entry.seen.replace(entry.seen.get() + 1) < fault.skip {
                continue;
            }
            self.injected.set(self.injected.get() + 1);
            if fault.once {
                let other = |with: &Rc<Entry>| !Rc::ptr_eq(with, &entry);
                self.active.borrow_mut().retain(other);
                self.rules.borrow_mut().retain(other);
            }
            return Some(fault.effect);
        }
        None
    }

    async fn hold(&self) {
        let since = self.releases.get();
        poll_fn(|context| {
            if self.releases.get() != since {
                return Poll::Ready(());
            }
            self.held.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Lets the other tasks of the thread run.
async fn yield_once() {
    let mut over = false;
    poll_fn(|context| {
        if std::mem::replace(&mut over, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// The answer of a request that does not wait.
    fn ask(faults: &Faults, kind: RequestKind, range: Range<u64>) -> Option<i32> {
        faults.pass(kind, range).now_or_never().unwrap().err().map(|error| error.errno())
    }

    fn fail(errno: i32) -> Effect {
        Effect::Fail { errno, immediately: true }
    }

    fn on(event: Event, state: Option<u32>, action: Action) -> Rule {
        Rule { event, state, action }
    }

    #[test]
    fn the_nth_request_that_matches_fails_once_or_from_then_on() {
        for once in [true, false] {
            let kinds = vec![RequestKind::Write];
            let fault = Fault { kinds, range: Some(512..1024), skip: 2, once, effect: fail(libc::ENOSPC) };
            let faults = Faults::new([fault.into()]);
            for _ in 0..3 {
                assert_eq!(ask(&faults, RequestKind::Write, 0..512), None);
                assert_eq!(ask(&faults, RequestKind::Read, 0..4096), None);
            }
            let writes = [0; 5].map(|_| ask(&faults, RequestKind::Write, 1000..2000));
            let late = if once { None } else { Some(libc::ENOSPC) };
            assert_eq!(writes, [None, None, Some(libc::ENOSPC), late, late]);
            assert_eq!((faults.requests(), faults.injected()), (11, if once { 1 } else { 3 }));
        }
    }

    #[test]
    fn faults_come_into_force_with_their_event_and_give_way_to_those_of_another() {
        let inject = |errno| {
            let kinds = RequestKind::DATA.to_vec();
            Action::Inject(Fault { kinds, range: None, skip: 0, once: false, effect: fail(errno) })
        };
        let faults = Faults::new([
            on(Event::L2Update, None, inject(libc::EIO)),
            on(Event::L1Update, None, inject(libc::ENOSPC)),
        ]);
        let ask = || ask(&faults, RequestKind::Flush, 0..0);
        assert_eq!(ask(), None);
        faults.event(Event::L2Update);
        faults.event(Event::WriteAio);
        assert_eq!((ask(), ask()), (Some(libc::EIO), Some(libc::EIO)));
        faults.event(Event::L1Update);
        assert_eq!(ask(), Some(libc::ENOSPC));
    }

    #[test]
    fn states_tell_the_second_event_from_the_first() {
        let kinds = RequestKind::DATA.to_vec();
        let fault = Fault { kinds, range: None, skip: 0, once: false, effect: fail(libc::EIO) };
        let faults = Faults::new([
            on(Event::WriteAio, Some(1), Action::SetState(2)),
            on(Event::WriteAio, Some(2), Action::Inject(fault)),
        ]);
        faults.event(Event::WriteAio);
        assert_eq!(ask(&faults, RequestKind::Write, 0..1), None);
        faults.event(Event::WriteAio);
        assert_eq!(ask(&faults, RequestKind::Write, 0..1), Some(libc::EIO));
    }

    #[test]
    fn who_is_held_goes_on_when_released() {
        let kinds = vec![RequestKind::Write];
        let fault = Fault { kinds, range: None, skip: 0, once: true, effect: Effect::Hold };
        let faults = Faults::new([fault.into()]);
        let mut held = Box::pin(faults.pass(RequestKind::Write, 0..512));
        assert!((&mut held).now_or_never().is_none());
        assert_eq!((faults.held(), ask(&faults, RequestKind::Write, 0..512)), (1, None));
        faults.release();
        assert!(held.now_or_never().unwrap().is_ok());
        assert_eq!(faults.held(), 0);
    }

    #[test]
    fn nothing_passes_a_file_that_was_stopped() {
        let fault = Fault { effect: Effect::Stop, ..Fault::nth(1, 0) };
        let faults = Faults::new([fault.into()]);
        let ask = |kind| ask(&faults, kind, 0..512);
        assert_eq!((ask(RequestKind::BlockStatus), ask(RequestKind::Write)), (None, None));
        assert_eq!((ask(RequestKind::Read), ask(RequestKind::Flush)), (Some(libc::EIO), Some(libc::EIO)));
        assert_eq!(ask(RequestKind::BlockStatus), Some(libc::EIO));
        faults.replace([]);
        assert_eq!(ask(RequestKind::Write), None);
    }
}
