//! What a client does about a connection that is lost: it connects again, makes changes again, sends requests again, or
//! gives up.
//!
//! Requests wait for [`super::client::Settings::reconnect_delay`] from the loss on; then they fail, until the server is
//! back. The rule of what is made again stands in [`super::client`].

use super::client::{Client, Waiting};
use super::connection::{Connection, establish};
use super::receive::{Broken, receive};
use super::requests::Ask;
use crate::block::aio::Inbox;
use crate::block::{Error, Kind, Result};
use crate::util::nbd::export;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tracing::trace;

/// What a client goes on using once it was there.
const NEEDED: u16 = export::FLUSH | export::FUA | export::TRIM | export::WRITE_ZEROES;
/// Changes that are made again at a time.
const BATCH: usize = 64;
/// Pauses between attempts to connect: the first, and the longest.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What there is to send on.
pub(super) enum Link {
    Up(Rc<Connection>),
    /// Requests wait for the next connection.
    Waiting,
    /// Requests have waited long enough and fail; connecting goes on.
    Failing(Error),
    /// There will be no other connection.
    Dead(Error),
}

/// A time without a server that answers: it begins when a connection is lost, and ends when the server has made changes
/// again, or answers, or when there is nothing that it could answer.
#[derive(Clone, Copy, Default)]
pub(super) struct Absence {
    /// Counts them.
    pub(super) number: u64,
    pub(super) away: bool,
    /// It has been too long.
    pub(super) too_long: bool,
}

impl Client {
    /// The task that holds the client together: receives, and connects again.
    pub(super) async fn keep(self: Rc<Self>, connection: Rc<Connection>, inbox: Inbox) {
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
            // A server that lets us in and answers nothing is asked more and more seldom.
            if connection.proven.get() {
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
            let established = establish(&self.engine, &self.target, &self.settings).await;
            match established.and_then(|established| self.check_same(established)) {
                // Closed meanwhile.
                Ok((connection, _)) if matches!(&*self.link.borrow(), Link::Dead(_)) => {
                    connection.end();
                    return None;
                }
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
        let missing =
            before.flags & !now.flags & NEEDED != 0 || now.context.is_none() && before.context.is_some();
        let read_only = now.has(export::READ_ONLY) && !self.settings.read_only;
        let changed = if now.size < self.size.get() {
            format!("the export has {} bytes now, and had {}", now.size, self.size.get())
        } else if missing || read_only {
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
        let (mut next, over) =
            (0, || connection.is_closed() || matches!(&*self.link.borrow(), Link::Dead(_)));
        loop {
            let (end, batch) = self.journal.borrow().batch(next, BATCH);
            if over() {
                return connection.end();
            }
            if batch.is_empty() {
                break;
            }
            next = end;
            if let Err(error) = self.make_again(&connection, batch).await {
                // Nothing is lost: the journal is still there, and another try may do.
                self.still_away(error);
                return connection.end();
            }
        }
        trace!(name: "nbd_back", target = %self.target, replayed = next);
        self.size.set(connection.export.size);
        self.link.replace(Link::Up(connection.clone()));
        let waiting = self.requests.unsent();
        if next > 0 || waiting.is_empty() {
            self.answered();
        }
        waiting.into_iter().for_each(|cookie| connection.send(&self.requests, cookie));
    }

    /// Makes changes again that do not touch each other.
    async fn make_again(&self, connection: &Connection, batch: Vec<Ask>) -> Result<()> {
        let send = |ask| {
            let waiting = Waiting { requests: &self.requests, cookie: self.requests.add(ask, false, 0) };
            connection.send(&self.requests, waiting.cookie);
            waiting
        };
        let sent: Vec<Waiting<'_>> = batch.into_iter().map(send).collect();
        for waiting in sent {
            self.result(waiting.outcome().await)?;
        }
        Ok(())
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
    let up = match &*client.link.borrow() {
        Link::Waiting => None,
        Link::Up(connection) => Some(connection.clone()),
        Link::Failing(_) | Link::Dead(_) => return,
    };
    match up {
        // It let us in and has answered nothing.
        Some(connection) => connection.end(),
        None => {
            let error = Error::new(Kind::Io, "the server is away");
            client.set_link(Link::Failing(client.about(error)));
        }
    }
}
