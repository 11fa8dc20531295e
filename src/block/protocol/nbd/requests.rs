//! The requests of a client that wait for their replies, by cookie. Cookies count up, so that the order of the table
//! is the order in which the requests were made.
//!
//! Invariant: the memory of a request stays in the table until its reply is complete or its connection is closed,
//! also when nobody waits for it any more.

use crate::block::Iov;
use crate::util::nbd::Command;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::task::{Poll, Waker};

/// What is asked of the server.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) command: Command,
    /// Of [`crate::util::nbd::command`].
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// What a write sends, or where a read goes.
    pub(super) memory: Option<Iov>,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// It was done; block status has the first extent: length and flags.
    Done(Option<(u64, u64)>),
    /// The server says no: the error value and its text.
    Refused(u32, String),
    /// There is no connection to send it on, and why.
    Lost(crate::block::Error),
}

/// One of them.
struct Entry {
    ask: Ask,
    /// Sent again on the next connection.
    lasting: bool,
    /// Sent on the connection that there is.
    sent: bool,
    /// How much of a read has come.
    received: u64,
    extent: Option<(u64, u64)>,
    /// The first error of a reply in chunks.
    error: Option<(u32, String)>,
    /// For a flush: the end of the journal when it was made.
    mark: u64,
    outcome: Option<Outcome>,
    waker: Option<Waker>,
    /// Nobody waits.
    orphan: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Requests {
    entries: RefCell<BTreeMap<u64, Entry>>,
    next: Cell<u64>,
}

impl Requests {
    /// Takes a request in; its cookie.
    pub(super) fn add(&self, ask: Ask, lasting: bool, mark: u64) -> u64 {
        let cookie = self.next.get();
        self.next.set(cookie + 1);
        let entry = Entry {
            ask,
            lasting,
            sent: false,
            received: 0,
            extent: None,
            error: None,
            mark,
            outcome: None,
            waker: None,
            orphan: false,
        };
        self.entries.borrow_mut().insert(cookie, entry);
        cookie
    }

    /// The request, to be sent now.
    pub(super) fn send(&self, cookie: u64) -> Option<Ask> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(&cookie).filter(|entry| entry.outcome.is_none())?;
        (entry.sent, entry.received) = (true, 0);
        (entry.extent, entry.error) = (None, None);
        Some(entry.ask.clone())
    }

    /// The cookies of all that wait to be sent, in order.
    pub(super) fn unsent(&self) -> Vec<u64> {
        let waiting = |entry: &Entry| !entry.sent && entry.outcome.is_none();
        self.entries.borrow().iter().filter(|(_, entry)| waiting(entry)).map(|(cookie, _)| *cookie).collect()
    }

    /// The request that a reply belongs to, and the mark of a flush.
    pub(super) fn replied(&self, cookie: u64) -> Option<(Ask, u64, bool)> {
        let entries = self.entries.borrow();
        let entry = entries.get(&cookie).filter(|entry| entry.sent && entry.outcome.is_none())?;
        Some((entry.ask.clone(), entry.mark, entry.lasting))
    }

    /// Notes how much of a read has come; false where that is more than was asked for.
    pub(super) fn note_received(&self, cookie: u64, len: u64) -> bool {
        let mut fits = true;
        self.with(cookie, |entry| {
            entry.received += len;
            fits = entry.received <= entry.ask.len;
        });
        fits
    }

    /// Notes the first extent of a block status.
    pub(super) fn note_extent(&self, cookie: u64, extent: (u64, u64)) {
        self.with(cookie, |entry| entry.extent = entry.extent.or(Some(extent)));
    }

    /// Notes an error.
    pub(super) fn note_error(&self, cookie: u64, error: u32, text: &str) {
        self.with(cookie, |entry| {
            entry.error.get_or_insert_with(|| (error, text.to_owned()));
        });
    }

    /// What the chunks of a reply come to; `None` where something is missing.
    pub(super) fn sum(&self, cookie: u64) -> Option<Outcome> {
        let entries = self.entries.borrow();
        let entry = entries.get(&cookie)?;
        if let Some((error, text)) = &entry.error {
            return Some(Outcome::Refused(*error, text.clone()));
        }
        match entry.ask.command {
            Command::Read => (entry.received == entry.ask.len).then_some(Outcome::Done(None)),
            Command::BlockStatus => entry.extent.map(|extent| Outcome::Done(Some(extent))),
            _ => Some(Outcome::Done(None)),
        }
    }

    /// Ends a request.
    pub(super) fn finish(&self, cookie: u64, outcome: Outcome) {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(&cookie) else { return };
        entry.outcome = Some(outcome);
        let (waker, orphan) = (entry.waker.take(), entry.orphan);
        let gone = if orphan { entries.remove(&cookie) } else { None };
        drop(entries);
        drop(gone);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends all that `chosen` (whether it was sent, whether it lasts) says.
    pub(super) fn fail(&self, error: &crate::block::Error, chosen: impl Fn(bool, bool) -> bool) {
        let hit = |entry: &Entry| entry.outcome.is_none() && chosen(entry.sent, entry.lasting);
        let cookies: Vec<u64> =
            self.entries.borrow().iter().filter(|(_, entry)| hit(entry)).map(|(cookie, _)| *cookie).collect();
        cookies.into_iter().for_each(|cookie| self.finish(cookie, Outcome::Lost(error.clone())));
    }

    /// The connection is gone: nothing is sent any more.
    pub(super) fn unsend(&self) {
        self.entries.borrow_mut().values_mut().for_each(|entry| entry.sent = false);
    }

    /// The outcome of a request, which leaves the table with it.
    pub(super) fn poll(&self, cookie: u64, waker: &Waker) -> Poll<Outcome> {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(&cookie) else {
            let gone = crate::block::Error::new(crate::block::Kind::Io, "the request is gone");
            return Poll::Ready(Outcome::Lost(gone));
        };
        match entry.outcome.take() {
            Some(outcome) => {
                entries.remove(&cookie);
                Poll::Ready(outcome)
            }
            None => {
                entry.waker = Some(waker.clone());
                Poll::Pending
            }
        }
    }

    /// Nobody waits for a request any more.
    pub(super) fn abandon(&self, cookie: u64) {
        let mut entries = self.entries.borrow_mut();
        let over = entries.get_mut(&cookie).is_some_and(|entry| {
            (entry.orphan, entry.waker) = (true, None);
            entry.outcome.is_some() || !entry.sent
        });
        let gone = if over { entries.remove(&cookie) } else { None };
        drop(entries);
        drop(gone);
    }

    fn with(&self, cookie: u64, note: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(&cookie) {
            note(entry);
        }
    }
}
