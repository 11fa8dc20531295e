//! A client of one export, over as many connections, one after the other, as it takes.
//!
//! ```text
//!   driver ─ ask ─▶ Requests ─ send ─▶ Outbox ─▶ server        Link::Up
//!                      │                          │ replies
//!                      ◀─────── receive ──────────┘
//!   lost ─▶ Link::Waiting ─▶ connect again ─▶ replay the journal ─▶ send what waits ─▶ Link::Up
//! ```
//!
//! The rule of replay: on a new connection first all changes that were acknowledged but not flushed are made again,
//! one after the other in the order of their replies; only then all requests that have no reply yet are sent, in the
//! order in which they were made. A flush that was under way is among the latter, so that its success means what it
//! says of all writes that ended before it began. A request whose reply has come is never made again once a flush
//! has covered it.

use super::connect::connect;
use super::journal::Journal;
use super::negotiate::{Export, Greeted, Handshake, Wish};
use super::receive::{Broken, receive};
use super::requests::{Ask, Outcome, Requests};
use super::target::Target;
use crate::block::aio::{Engine, Inbox, Outbox, Socket};
use crate::block::{Error, Kind, Result};
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{Command, Request, command, error, export};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use tracing::trace;

/// How long a server may take for the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pauses between attempts to connect: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

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
}

/// What there is to send on.
enum Link {
    Up(Rc<Connection>),
    /// Requests wait for the next connection.
    Waiting,
    /// Requests have waited long enough and fail; connecting goes on.
    Failing(Error),
    /// There will be no other connection.
    Dead(Error),
}

/// A time without a server that answers: it begins when a connection is lost and ends with the next reply.
#[derive(Clone, Copy, Default)]
struct Absence {
    /// Counts them.
    number: u64,
    away: bool,
    /// It has been too long.
    too_long: bool,
}

/// One connection after its handshake.
pub(super) struct Connection {
    pub(super) export: Export,
    socket: Rc<Socket>,
    outbox: Outbox<()>,
}

/// The client.
pub(super) struct Client {
    engine: Rc<Engine>,
    target: Target,
    settings: Settings,
    link: RefCell<Link>,
    absence: Cell<Absence>,
    size: Cell<u64>,
    first: Export,
    pub(super) requests: Requests,
    journal: RefCell<Journal>,
    /// Writes were acknowledged that no flush has covered, and nothing is kept of them.
    uncovered: Cell<bool>,
}

impl Client {
    /// Connects and enters the export.
    pub(super) async fn open(engine: &Rc<Engine>, target: &Target, settings: Settings) -> Result<Rc<Client>> {
        let (started, mut pause) = (Instant::now(), PAUSES.0);
        let (connection, inbox) = loop {
            match establish(engine, target, settings.context.as_deref()).await {
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

    /// Waits until a change of `len` bytes can be kept.
    pub(super) async fn make_room(&self, len: usize) -> Result<()> {
        let full = self.journal.borrow().is_full(len);
        if full { self.flush().await } else { Ok(()) }
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
            Command::Write | Command::WriteZeroes | Command::Trim if ask.flags & command::FUA == 0 => {
                if self.settings.no_flush {
                    self.uncovered.set(true);
                } else if self.first.has(export::FLUSH) {
                    self.journal.borrow_mut().push(ask);
                }
            }
            _ => {}
        }
    }

    /// The task that holds the client together: receives, and connects again.
    async fn keep(self: Rc<Self>, connection: Rc<Connection>, inbox: Inbox) {
        let (mut next, mut pause) = (Some((connection, inbox)), PAUSES.0);
        while let Some((connection, mut inbox)) = next {
            let (sender, socket) = (connection.clone(), connection.socket.clone());
            self.engine.spawn(async move {
                if sender.outbox.run(&socket).await.is_err() {
                    sender.end();
                }
            });
            let why = receive(&self, &connection, &mut inbox).await;
            connection.end();
            // A server that lets us in and answers nothing is one that is away.
            if !self.absence.get().away {
                pause = PAUSES.0;
            }
            self.lost(why);
            next = self.reconnect(&mut pause).await;
            if let Some((connection, _)) = &next {
                self.engine.spawn(self.clone().replay(connection.clone()));
            }
        }
    }

    /// The connection is gone.
    fn lost(self: &Rc<Self>, why: Broken) {
        let (error, violation) = match why {
            Broken::Lost(error) => (Error::from_io(error).context("the connection was lost"), false),
            Broken::Violation(what) => {
                (Error::new(Kind::InvalidFormat, format!("the server broke the protocol: {what}")), true)
            }
        };
        let error = self.about(error);
        trace!(name: "nbd_lost", target = %self.target, why = %error);
        self.begin_absence();
        if violation {
            // What made the server do so once would make it do so again.
            self.requests.fail(&error, |sent, _| sent);
        }
        self.requests.unsend();
        self.requests.fail(&error, |_, lasting| !lasting);
        if matches!(&*self.link.borrow(), Link::Dead(_)) {
            return self.requests.fail(&error, |_, _| true);
        }
        let link = if self.uncovered.get() {
            let what = "the connection was lost, and writes that no flush had covered may be lost too";
            Link::Dead(self.about(Error::new(Kind::Io, what)))
        } else if self.settings.reconnect_delay.is_zero() || self.absence.get().too_long || violation {
            Link::Failing(error)
        } else {
            Link::Waiting
        };
        self.set_link(link);
    }

    fn begin_absence(self: &Rc<Self>) {
        let absence = self.absence.get();
        if !absence.away {
            let number = absence.number + 1;
            self.absence.set(Absence { number, away: true, too_long: false });
            self.engine.spawn(give_up_later(Rc::downgrade(self), number, self.settings.reconnect_delay));
        }
    }

    /// Requests wait or fail as the link says.
    fn set_link(&self, link: Link) {
        if let Link::Failing(error) | Link::Dead(error) = &link {
            self.requests.fail(error, |_, _| true);
        }
        self.link.replace(link);
    }

    /// Connects again, however often it takes; `None` when that is not wanted any more.
    async fn reconnect(&self, pause: &mut Duration) -> Option<(Rc<Connection>, Inbox)> {
        loop {
            self.engine.sleep(*pause).await;
            *pause = (*pause * 2).min(PAUSES.1);
            if matches!(&*self.link.borrow(), Link::Dead(_)) {
                return None;
            }
            let established = establish(&self.engine, &self.target, self.settings.context.as_deref()).await;
            match established.and_then(|established| self.check_same(established)) {
                Ok(established) => return Some(established),
                Err(error) => self.still_away(error),
            }
        }
    }

    /// The newest reason is the one that failing requests tell.
    fn still_away(&self, error: Error) {
        let error = self.about(error);
        if let Link::Failing(why) = &mut *self.link.borrow_mut() {
            *why = error;
        }
    }

    /// Refuses an export that is another one by now.
    fn check_same(&self, established: (Rc<Connection>, Inbox)) -> Result<(Rc<Connection>, Inbox)> {
        let (now, before) = (&established.0.export, &self.first);
        let missing = before.flags & !now.flags;
        let read_only = now.has(export::READ_ONLY) && !self.settings.read_only;
        let changed = if now.size < self.size.get() {
            format!("the export has {} bytes now, and had {}", now.size, self.size.get())
        } else if missing != 0 || read_only {
            "the export can do less than before".to_owned()
        } else if now.blocks.minimum > before.blocks.minimum || now.blocks.maximum < before.blocks.maximum {
            "the export has other block sizes than before".to_owned()
        } else {
            return Ok(established);
        };
        established.0.end();
        Err(Error::new(Kind::InvalidFormat, changed))
    }

    /// Makes the changes of the journal again, then sends what waits.
    async fn replay(self: Rc<Self>, connection: Rc<Connection>) {
        let mut number = 0;
        loop {
            let next = self.journal.borrow().entry(number);
            let Some((at, ask)) = next else { break };
            number = at + 1;
            let cookie = self.requests.add(ask, false, 0);
            let waiting = Waiting { requests: &self.requests, cookie };
            connection.send(&self.requests, cookie);
            match waiting.outcome().await {
                Outcome::Done(_) => {}
                Outcome::Lost(_) => return,
                Outcome::Refused(..) => {
                    let what = "a write that was done before the connection was lost cannot be done again";
                    self.set_link(Link::Dead(self.about(Error::new(Kind::Io, what))));
                    return connection.end();
                }
            }
        }
        if connection.is_closed() || matches!(&*self.link.borrow(), Link::Dead(_)) {
            return connection.end();
        }
        trace!(name: "nbd_back", target = %self.target, replayed = number);
        self.size.set(connection.export.size);
        self.link.replace(Link::Up(connection.clone()));
        self.requests.unsent().into_iter().for_each(|cookie| connection.send(&self.requests, cookie));
    }

    fn result(&self, outcome: Outcome) -> Result<Option<(u64, u64)>> {
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

    fn about(&self, error: Error) -> Error {
        error.path(self.target.to_string())
    }
}

/// Requests that have waited since a loss fail, once `delay` is over.
async fn give_up_later(client: Weak<Client>, number: u64, delay: Duration) {
    let Some(engine) = client.upgrade().map(|client| client.engine.clone()) else { return };
    engine.sleep(delay).await;
    let Some(client) = client.upgrade() else { return };
    let absence = client.absence.get();
    if absence.number != number || !absence.away {
        return;
    }
    client.absence.set(Absence { too_long: true, ..absence });
    let waiting = matches!(&*client.link.borrow(), Link::Waiting);
    if waiting {
        let error = Error::new(Kind::Io, "the server is away");
        client.set_link(Link::Failing(client.about(error)));
    }
}

impl Connection {
    fn send(&self, requests: &Requests, cookie: u64) {
        let Some(ask) = requests.send(cookie) else { return };
        let body = ask.memory.filter(|_| ask.command == Command::Write);
        let has_payload = body.is_some() && self.export.headers == Headers::Extended;
        let flags = ask.flags | if has_payload { command::PAYLOAD_LEN } else { 0 };
        let (offset, len) = (ask.offset, ask.len);
        let request = Request { flags, command: ask.command as u16, cookie, offset, len };
        self.outbox.push(&request.to_bytes(self.export.headers), body, None);
    }

    fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }

    fn end(&self) {
        self.outbox.close();
        self.socket.shutdown();
    }
}

/// A request that is waited for; without anybody who waits, its memory stays until its reply.
struct Waiting<'a> {
    requests: &'a Requests,
    cookie: u64,
}

impl Waiting<'_> {
    async fn outcome(&self) -> Outcome {
        poll_fn(|cx| self.requests.poll(self.cookie, cx.waker())).await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.requests.abandon(self.cookie);
    }
}

/// Connects and enters the export, within [`HANDSHAKE_TIMEOUT`].
async fn establish(
    engine: &Rc<Engine>,
    target: &Target,
    context: Option<&str>,
) -> Result<(Rc<Connection>, Inbox)> {
    let socket = Rc::new(connect(engine, &target.address).await?);
    let watch = Watch::start(&socket, HANDSHAKE_TIMEOUT);
    let wish = Wish { export: &target.export, context };
    let entered = match Handshake::begin(&socket).await {
        Ok(Greeted::Oldstyle(inbox, export)) if target.export.is_empty() => Ok((inbox, export)),
        Ok(Greeted::Oldstyle(..)) => {
            Err(Error::new(Kind::Unsupported, "Server does not support non-empty export names"))
        }
        Ok(Greeted::Newstyle(handshake)) => handshake.enter(&wish).await,
        Err(error) => Err(error),
    };
    let (inbox, export) = watch.judge(entered)?;
    Ok((Rc::new(Connection { export, socket, outbox: Outbox::default() }), inbox))
}

/// Ends a connection that takes too long, unless it is dropped before.
pub(super) struct Watch {
    alive: Rc<Cell<bool>>,
}

impl Watch {
    pub(super) fn start(socket: &Rc<Socket>, time: Duration) -> Watch {
        let alive = Rc::new(Cell::new(true));
        let (watched, socket, engine) =
            (Rc::downgrade(&alive), Rc::downgrade(socket), socket.engine().clone());
        let inner = engine.clone();
        engine.spawn(async move {
            inner.sleep(time).await;
            if let (Some(alive), Some(socket)) = (watched.upgrade(), socket.upgrade()) {
                alive.set(false);
                socket.shutdown();
            }
        });
        Watch { alive }
    }

    /// What came of it, or that it took too long.
    pub(super) fn judge<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(_) if !self.alive.get() => Err(Error::from_io(io::Error::from_raw_os_error(libc::ETIMEDOUT))
                .context("the server did not end the handshake")),
            other => other,
        }
    }
}
