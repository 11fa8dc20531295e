//! A connection in its transmission phase, on the thread of its drive: reads requests, starts a task for each.
//!
//! Requests run at the same time and are answered as they end. Only a write that is longer than [`PIECE`] is done
//! while it is received, and holds up those behind it.

use super::budget::{Budget, PIECE, Permit};
use super::buffers::Buffers;
use super::export::Context;
use super::request::{Answer, CACHE_PIECE};
use crate::block::aio::{Detached, Inbox, Lender, Outbox, Socket};
use crate::block::drive::Local;
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{Command, MAX_TRANSFER, Request, command, error};
use async_lock::Mutex;
use futures_util::future::{Either, select};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A client that comes from its handshake.
pub(super) struct Arrival {
    pub(super) socket: Detached,
    /// What was received behind the handshake.
    pub(super) ahead: Vec<u8>,
    pub(super) terms: Terms,
}

/// What the handshake has come to.
pub(super) struct Terms {
    pub(super) headers: Headers,
    pub(super) contexts: Vec<(u32, Context)>,
    pub(super) read_only: bool,
}

/// What the requests of a connection share.
pub(super) struct Connection {
    pub(super) local: Rc<Local>,
    pub(super) outbox: Outbox<Permit>,
    pub(super) budget: Rc<Budget>,
    pub(super) buffers: Buffers,
    /// Of pages for the socket, if it takes some.
    pub(super) lender: Option<Lender>,
    pub(super) headers: Headers,
    pub(super) contexts: Vec<(u32, Context)>,
    read_only: bool,
    /// Held by whoever sends a message in pieces.
    pub(super) long: Mutex<()>,
    /// Held by the read that waits until the client takes what was read before.
    turn: Mutex<()>,
    /// Requests that are not done yet.
    running: Cell<usize>,
    idle: Cell<Option<Waker>>,
}

/// Counts a request while it is there.
pub(super) struct Running(Rc<Connection>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0
            && let Some(waker) = self.0.idle.take()
        {
            waker.wake();
        }
    }
}

/// Serves a client until it leaves, or until `stop` is closed. On return nothing of what it asked for goes on: what the
/// next client writes is not overtaken by what this one has left behind.
pub(super) async fn transmit(local: &Rc<Local>, arrival: Arrival, stop: &async_channel::Receiver<()>) {
    let socket = Rc::new(Socket::attach(local.engine(), arrival.socket));
    let mut inbox = Inbox::with_ahead(&socket, &arrival.ahead);
    let lender = socket.takes_loans().then(Lender::default);
    let connection = Rc::new(Connection::new(local, lender, arrival.terms));
    let (sender, out) = (connection.clone(), socket.clone());
    local.engine().spawn(async move {
        // Closed, or failed: nothing more is heard of the client either.
        let _ = sender.outbox.run(&out).await;
        out.shutdown();
    });
    let serving = pin!(serve(&connection, &mut inbox));
    let in_order = match select(serving, pin!(stop.recv())).await {
        Either::Left((done, _)) => done.is_ok(),
        Either::Right((_, serving)) => {
            connection.end(&socket);
            // What is half done is done first.
            let _ = serving.await;
            false
        }
    };
    if in_order {
        let answered = pin!(async {
            connection.idle().await;
            connection.outbox.drained().await;
        });
        // A client that does not listen is not waited for then.
        let _ = select(answered, pin!(stop.recv())).await;
    }
    connection.end(&socket);
    connection.idle().await;
}

/// Takes requests until the client says goodbye. It is an error where it leaves without, or breaks the protocol.
async fn serve(connection: &Rc<Connection>, inbox: &mut Inbox) -> io::Result<()> {
    let mut header = [0; 32];
    let header = &mut header[..connection.headers.request_size()];
    loop {
        inbox.exact(header).await?;
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let request = Request::parse(header, connection.headers).ok_or_else(broken)?;
        let command = Command::from_number(request.command);
        if command == Some(Command::Disconnect) {
            return Ok(());
        }
        if !connection.take(inbox, request, command).await? {
            return Err(broken());
        }
    }
}

impl Connection {
    fn new(local: &Rc<Local>, lender: Option<Lender>, terms: Terms) -> Connection {
        Connection {
            local: local.clone(),
            outbox: Outbox::default(),
            budget: Rc::default(),
            buffers: Buffers::default(),
            lender,
            headers: terms.headers,
            contexts: terms.contexts,
            read_only: terms.read_only,
            long: Mutex::default(),
            turn: Mutex::default(),
            running: Cell::new(0),
            idle: Cell::new(None),
        }
    }

    /// A request begins.
    pub(super) fn begin(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(self.clone())
    }

    /// Waits until no request is under way.
    async fn idle(&self) {
        poll_fn(|cx| match self.running.get() {
            0 => Poll::Ready(()),
            _ => {
                self.idle.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }

    /// Waits until the client takes what was read for it before; false when it has left.
    pub(super) async fn may_read(&self) -> bool {
        let _turn = self.turn.lock().await;
        self.outbox.room().await
    }

    /// Nothing more is sent or received.
    fn end(&self, socket: &Socket) {
        self.outbox.close();
        socket.shutdown();
    }

    /// Takes one request with its payload, and starts it. False: the connection cannot go on.
    async fn take(
        self: &Rc<Self>,
        inbox: &mut Inbox,
        request: Request,
        command: Option<Command>,
    ) -> io::Result<bool> {
        // QEMU's client forgets the flag at writes.
        let flagged = self.headers == Headers::Extended && request.flags & command::PAYLOAD_LEN != 0;
        let mut has_payload = flagged || command == Some(Command::Write);
        let mut answer = Answer::new(self.clone(), request);
        if has_payload && request.len > u64::from(MAX_TRANSFER) {
            // Nobody is waited for that long.
            return Ok(false);
        }
        let mut sense = true;
        if flagged && command == Some(Command::BlockStatus) {
            sense = answer.take_contexts(inbox).await?;
            has_payload = false;
        }
        let refused = match command {
            Some(command) if sense => self.check(answer.request(), command),
            Some(_) => Some((error::EINVAL, "the payload makes no sense")),
            None => Some((error::EINVAL, "unknown command")),
        };
        if let Some((error, why)) = refused {
            inbox.skip(if has_payload { request.len } else { 0 }).await?;
            let permit = self.budget.acquire(0).await;
            answer.refuse(error, why, permit);
            return Ok(true);
        }
        match command {
            Some(Command::Write) => self.take_write(inbox, answer).await?,
            Some(command) => {
                let held = request.len.min(match command {
                    Command::Read => PIECE as u64,
                    Command::Cache => CACHE_PIECE,
                    _ => 0,
                }) as usize;
                let permit = self.budget.acquire(held).await;
                self.local.engine().spawn(async move { answer.run(command, permit).await });
            }
            None => {}
        }
        Ok(true)
    }

    /// Receives the data of a write and starts it; a long one is done piece by piece.
    async fn take_write(self: &Rc<Self>, inbox: &mut Inbox, answer: Answer) -> io::Result<()> {
        let len = answer.request().len as usize;
        let permit = self.budget.acquire(len.min(PIECE)).await;
        let data = self.buffers.take(len.min(PIECE));
        if len <= PIECE {
            inbox.exact_iov(&data).await?;
            self.local.engine().spawn(async move {
                let done = answer.write(0, &data).await;
                answer.finish_write(done, permit).await;
            });
            return Ok(());
        }
        let mut done = Ok(());
        for at in (0..len).step_by(PIECE) {
            let part = data.slice(0, (len - at).min(PIECE));
            inbox.exact_iov(&part).await?;
            if done.is_ok() {
                done = answer.write(at as u64, &part).await;
            }
        }
        answer.finish_write(done, permit).await;
        Ok(())
    }

    /// Whether a request makes sense; the error and why, if it does not.
    fn check(&self, request: &Request, command: Command) -> Option<(u32, &'static str)> {
        use command::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        let chunks = self.headers != Headers::Simple;
        let allowed = match command {
            Command::Read if chunks => FUA | DF,
            Command::WriteZeroes => FUA | NO_HOLE | FAST_ZERO,
            Command::BlockStatus if self.headers == Headers::Extended => FUA | REQ_ONE | PAYLOAD_LEN,
            Command::BlockStatus => FUA | REQ_ONE,
            Command::Write if self.headers == Headers::Extended => FUA | PAYLOAD_LEN,
            _ => FUA,
        };
        let changes = matches!(command, Command::Write | Command::WriteZeroes | Command::Trim);
        let end = request.offset.checked_add(request.len);
        if request.flags & !allowed != 0 {
            Some((error::EINVAL, "unsupported flags"))
        } else if self.read_only && changes {
            Some((error::EPERM, "export is read-only"))
        } else if command == Command::BlockStatus && (self.contexts.is_empty() || request.len == 0) {
            Some((error::EINVAL, "need non-zero length and a negotiated context"))
        } else if command == Command::Read && request.len > u64::from(MAX_TRANSFER) {
            Some((error::EINVAL, "a read longer than the maximum block size"))
        } else if end.is_none_or(|end| end > self.local.size()) {
            let full = command == Command::Write || command == Command::WriteZeroes;
            Some((if full { error::ENOSPC } else { error::EINVAL }, "operation past EOF"))
        } else {
            None
        }
    }
}
