//! One connection to a server: made, secured, let into the export, and given up.

use super::client::Settings;
use super::connect::connect;
use super::export::Export;
use super::negotiate::{Greeted, Handshake, Wish};
use super::requests::Requests;
use super::target::Target;
use crate::block::aio::{Body, Engine, Inbox, Outbox, Socket};
use crate::block::{Error, Kind, Result};
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{Command, Request, command};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How long a server may take for the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection after its handshake.
pub(super) struct Connection {
    pub(super) export: Export,
    pub(super) socket: Rc<Socket>,
    pub(super) outbox: Outbox<()>,
    /// It has answered a request of the pipeline.
    pub(super) proven: Cell<bool>,
}

impl Connection {
    /// Sends a request, unless it has an outcome already.
    pub(super) fn send(&self, requests: &Requests, cookie: u64) {
        let Some(ask) = requests.send(cookie) else { return };
        let body = ask.memory.filter(|_| ask.command == Command::Write).map(Body::Memory);
        let has_payload = body.is_some() && self.export.headers == Headers::Extended;
        let flags = ask.flags | if has_payload { command::PAYLOAD_LEN } else { 0 };
        let (offset, len) = (ask.offset, ask.len);
        let request = Request { flags, command: ask.command as u16, cookie, offset, len };
        self.outbox.push(&request.to_bytes(self.export.headers), body, None);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }

    /// Gives it up: its tasks end.
    pub(super) fn end(&self) {
        self.outbox.close();
        self.socket.shutdown();
    }
}

/// Connects and enters the export, within [`HANDSHAKE_TIMEOUT`].
pub(super) async fn establish(
    engine: &Rc<Engine>,
    target: &Target,
    settings: &Settings,
) -> Result<(Rc<Connection>, Inbox)> {
    let socket = Rc::new(connect(engine, &target.address).await?);
    let watch = Watch::start(&socket, HANDSHAKE_TIMEOUT);
    let wish = Wish { export: &target.export, context: settings.context.as_deref() };
    let entered = match Handshake::begin(&socket, settings.tls.as_ref()).await {
        Ok(Greeted::Oldstyle(inbox, export)) if target.export.is_empty() => Ok((inbox, export)),
        Ok(Greeted::Oldstyle(..)) => {
            Err(Error::new(Kind::Unsupported, "Server does not support non-empty export names"))
        }
        Ok(Greeted::Newstyle(handshake)) => handshake.enter(&wish).await,
        Err(error) => Err(error),
    };
    let (inbox, export) = watch.judge(entered)?;
    Ok((Rc::new(Connection { export, socket, outbox: Outbox::default(), proven: Cell::new(false) }), inbox))
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
