//! A client of one export, over as many connections, one after the other, as it takes.
//!
//! ```text
//!   driver ─ ask ─▶ Requests ─ send ─▶ Outbox ─▶ server        Link::Up
//!                      │                          │ replies
//!                      ◀─────── receive ──────────┘
//!   lost ─▶ Link::Waiting ─▶ connect again ─▶ replay the journal ─▶ send what waits ─▶ Link::Up
//! ```
//!
//! What happens when a connection is lost is in [`super::reconnect`].
//!
//! The rule of replay: on a new connection first all changes that were acknowledged but not flushed are made again,
//! one after the other in the order of their replies; only then all requests that have no reply yet are sent, in the
//! order in which they were made. A flush that was under way is among the latter, so that its success means what it
//! says of all writes that ended before it began. A request whose reply has come is never made again once a flush
//! has covered it.

use super::connection::establish;
use super::export::Export;
use super::journal::{Journal, Room};
use super::reconnect::{Absence, Link, PAUSES};
use super::requests::{Ask, Outcome, Requests};
use super::target::Target;
use crate::block::aio::Engine;
use crate::block::{Error, Kind, Result, graph, tls};
use crate::util::nbd::{Command, Request, command, error, export};
use async_lock::Mutex;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How a client behaves.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// How long requests wait for a lost server.
    pub(super) reconnect_delay: Duration,
    /// How long the first connection is tried for.
    pub(super) open_timeout: Duration,
    /// The context of block status in place of `base:allocation`.
    pub(super) context: Option<String>,
    /// Writes are refused.
    pub(super) read_only: bool,
    /// Every write is durable before it ends.
    pub(super) write_through: bool,
    /// Flushes mean nothing: nothing is kept for a replay, and a lost connection is the end.
    pub(super) no_flush: bool,
    /// Everything goes over TLS.
    pub(super) tls: Option<tls::Client>,
}

/// The client.
pub(super) struct Client {
    pub(super) engine: Rc<Engine>,
    pub(super) target: Target,
    pub(super) settings: Settings,
    pub(super) link: RefCell<Link>,
    pub(super) absence: Cell<Absence>,
    pub(super) size: Cell<u64>,
    pub(super) first: Export,
    pub(super) requests: Requests,
    pub(super) journal: RefCell<Journal>,
    /// Held by whoever flushes to make room in the journal.
    flushing: Mutex<()>,
    /// Writes were acknowledged that no flush has covered, and nothing is kept of them.
    pub(super) uncovered: Cell<bool>,
}

impl Client {
    /// Connects and enters the export.
    pub(super) async fn open(engine: &Rc<Engine>, target: &Target, settings: Settings) -> Result<Rc<Client>> {
        let (started, mut pause) = (Instant::now(), PAUSES.0);
        let (connection, inbox) = loop {
            match establish(engine, target, &settings).await {
                Ok(established) => break established,
                Err(error) if started.elapsed() >= settings.open_timeout => return Err(error),
                Err(_) => {
                    engine.sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        };
        if !settings.read_only && connection.export.has(export::READ_ONLY) {
            return Err(Error::new(Kind::ReadOnly, "request on write denied without write permission")
                .remedy("open it read-only, or ask for an export that can be written"));
        }
        let client = Rc::new(Client {
            engine: engine.clone(),
            target: target.clone(),
            settings,
            size: Cell::new(connection.export.size),
            first: connection.export.clone(),
            link: RefCell::new(Link::Up(connection.clone())),
            absence: Cell::default(),
            requests: Requests::default(),
            journal: RefCell::default(),
            flushing: Mutex::default(),
            uncovered: Cell::new(false),
        });
        engine.spawn(client.clone().keep(connection, inbox));
        Ok(client)
    }

    /// What the first connection found.
    pub(super) fn export(&self) -> &Export {
        &self.first
    }

    /// Size in bytes; the server may have made it larger while we were away.
    pub(super) fn size(&self) -> u64 {
        self.size.get()
    }

    /// How the connection is.
    pub(super) fn state(&self) -> graph::Connection {
        match &*self.link.borrow() {
            Link::Up(_) => graph::Connection::Up,
            Link::Waiting => graph::Connection::Waiting,
            Link::Failing(error) => graph::Connection::Failing(error.message().to_owned()),
            Link::Dead(error) => graph::Connection::Dead(error.message().to_owned()),
        }
    }

    /// Asks for something and waits for the answer, however many connections that takes.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Option<(u64, u64)>> {
        let cookie = self.requests.add(ask, true, self.journal.borrow().mark());
        let waiting = Waiting { requests: &self.requests, cookie };
        let refused = match &*self.link.borrow() {
            Link::Up(connection) => {
                connection.send(&self.requests, cookie);
                None
            }
            Link::Waiting => None,
            Link::Failing(error) | Link::Dead(error) => Some(error.clone()),
        };
        match refused {
            Some(error) => Err(error),
            None => self.result(waiting.outcome().await),
        }
    }

    /// Makes acknowledged changes durable.
    pub(super) async fn flush(&self) -> Result<()> {
        if !self.first.has(export::FLUSH) || self.settings.no_flush {
            return Ok(());
        }
        if self.settings.write_through && self.journal.borrow().is_empty() {
            return Ok(());
        }
        let flush = Ask { command: Command::Flush, flags: 0, offset: 0, len: 0, memory: None };
        self.ask(flush).await.map(drop)
    }

    /// Waits until a change of `len` bytes can be kept. The room is held until the change is acknowledged.
    pub(super) async fn make_room(&self, len: usize) -> Result<Option<Room<'_>>> {
        if self.settings.no_flush || !self.first.has(export::FLUSH) {
            return Ok(None);
        }
        loop {
            if let Some(room) = Room::take(&self.journal, len) {
                return Ok(Some(room));
            }
            // One flush makes room for all who wait.
            let _one = self.flushing.lock().await;
            if let Some(room) = Room::take(&self.journal, len) {
                return Ok(Some(room));
            }
            let empty = self.journal.borrow().is_empty();
            if empty { Room::given_back(&self.journal).await } else { self.flush().await? }
        }
    }

    /// Says goodbye and ends all tasks.
    pub(super) async fn close(&self) {
        let link = self.link.replace(Link::Dead(self.about(Error::new(Kind::Io, "the client is closed"))));
        if let Link::Up(connection) = link {
            let goodbye =
                Request { flags: 0, command: Command::Disconnect as u16, cookie: 0, offset: 0, len: 0 };
            connection.outbox.push(&goodbye.to_bytes(connection.export.headers), None, None);
            connection.outbox.drained().await;
            connection.end();
        }
    }

    /// Ends all tasks at once.
    pub(super) fn abort(&self) {
        let dead = Link::Dead(self.about(Error::new(Kind::Io, "the client is closed")));
        if let Link::Up(connection) = self.link.replace(dead) {
            connection.end();
        }
    }

    /// The server answers.
    pub(super) fn answered(&self) {
        let absence = self.absence.get();
        if absence.away {
            self.absence.set(Absence { number: absence.number, away: false, too_long: false });
        }
    }

    /// A change has been acknowledged, or a flush.
    pub(super) fn acknowledged(&self, ask: &Ask, mark: u64) {
        match ask.command {
            Command::Flush => {
                self.journal.borrow_mut().flushed(mark);
            }
            Command::Write | Command::WriteZeroes | Command::Trim => self.keep_copy(ask),
            _ => {}
        }
    }

    /// Keeps a change that the server may lose.
    fn keep_copy(&self, ask: &Ask) {
        // Not all durable ones are left out: one over a change that is kept would be undone when that is made again.
        if ask.flags & command::FUA != 0 && self.journal.borrow().is_empty() {
            return;
        }
        if self.settings.no_flush {
            self.uncovered.set(true);
        } else if self.first.has(export::FLUSH) {
            self.journal.borrow_mut().push(ask);
        }
    }

    /// What an outcome is to who asked.
    pub(super) fn result(&self, outcome: Outcome) -> Result<Option<(u64, u64)>> {
        match outcome {
            Outcome::Done(answer) => Ok(answer),
            Outcome::Lost(error) => Err(error),
            Outcome::Refused(error, text) => {
                let errno = error::to_errno(error);
                let failed = match errno {
                    libc::EOPNOTSUPP => Error::new(Kind::Unsupported, "the server cannot do it that way"),
                    _ => Error::from_io(io::Error::from_raw_os_error(errno)),
                };
                let failed = if text.is_empty() { failed } else { failed.remedy(format!("server: {text}")) };
                Err(self.about(failed))
            }
        }
    }

    pub(super) fn about(&self, error: Error) -> Error {
        error.path(self.target.to_string())
    }
}

/// A request that is waited for; without anybody who waits, its memory stays until its reply.
pub(super) struct Waiting<'a> {
    pub(super) requests: &'a Requests,
    pub(super) cookie: u64,
}

impl Waiting<'_> {
    pub(super) async fn outcome(&self) -> Outcome {
        poll_fn(|cx| self.requests.poll(self.cookie, cx.waker())).await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.requests.abandon(self.cookie);
    }
}
