//! The listener: accepts clients, watches over their handshakes and hands them to the drives' threads.
//!
//! A client counts as half-open until it has entered an export. When too many are, or descriptors run out, the one
//! that has been so for longest is sent away: a client that does its part is never the victim of those that do not.

use super::export::Export;
use super::negotiate::{Agreed, Negotiation};
use super::transmit::{Arrival, transmit};
use crate::block::aio::{Engine, Inbox, Socket};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most clients in their handshake at a time.
const MAX_HALF_OPEN: usize = 256;
/// How often handshakes that take too long are looked for, while there are any.
const SWEEP: Duration = Duration::from_millis(250);
/// How long accepting pauses when the host has no descriptors left.
const PAUSE: Duration = Duration::from_millis(20);

/// How the server behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a handshake may take; `None`: for ever.
    pub handshake_limit: Option<Duration>,
    /// The server goes on when its last client has left.
    pub persistent: bool,
}

/// A server. It runs on the engine of the thread that made it; exports live on the threads of their drives.
pub struct Server {
    engine: Rc<Engine>,
    settings: Settings,
    exports: RefCell<Vec<Arc<Export>>>,
    half_open: RefCell<VecDeque<HalfOpen>>,
    sweeping: Cell<bool>,
    /// Clients in an export.
    active: Cell<usize>,
    /// Connections tell their end.
    left: (async_channel::Sender<()>, async_channel::Receiver<()>),
    /// Closed when all connections are to end.
    stop: (async_channel::Sender<()>, async_channel::Receiver<()>),
}

/// A client in its handshake.
struct HalfOpen {
    since: Instant,
    socket: Weak<Socket>,
    /// It waits for a place.
    patient: Rc<Cell<bool>>,
}

impl Server {
    /// A server without exports.
    pub fn new(engine: &Rc<Engine>, settings: Settings) -> Rc<Server> {
        Rc::new(Server {
            engine: engine.clone(),
            settings,
            exports: RefCell::default(),
            half_open: RefCell::default(),
            sweeping: Cell::new(false),
            active: Cell::new(0),
            left: async_channel::unbounded(),
            stop: async_channel::unbounded(),
        })
    }

    /// Offers an export. The first of a name is the one that clients get.
    pub fn add(&self, export: Arc<Export>) {
        self.exports.borrow_mut().push(export);
    }

    /// Serves those who come to `listener`, until `end` is over or, unless the server is persistent, the last client
    /// has left. Then all connections are closed; on return no request is under way.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(self: &Rc<Self>, listener: Socket, end: impl Future<Output = ()>) -> io::Result<()> {
        let served = {
            let (accepting, leaving) = (pin!(self.clone().accept(listener)), pin!(self.watch_leaving()));
            let working = futures_util::future::select(accepting, leaving);
            match futures_util::future::select(working, pin!(end)).await {
                futures_util::future::Either::Left((futures_util::future::Either::Left((failed, _)), _)) => {
                    failed
                }
                _ => Ok(()),
            }
        };
        self.close().await;
        served
    }

    /// Ends all connections and waits for them.
    async fn close(&self) {
        self.stop.0.close();
        for client in self.half_open.borrow_mut().drain(..) {
            client.end();
        }
        while self.active.get() > 0 && self.left.1.recv().await.is_ok() {
            self.active.set(self.active.get() - 1);
        }
    }

    /// Counts those who leave; over when the last has, unless the server is persistent.
    async fn watch_leaving(&self) {
        while self.left.1.recv().await.is_ok() {
            self.active.set(self.active.get() - 1);
            if self.active.get() == 0 && !self.settings.persistent {
                return;
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: Socket) -> io::Result<()> {
        loop {
            match listener.accept().await {
                Ok(fd) => self.greet(fd),
                Err(error) if is_shortage(&error) => {
                    self.end_oldest();
                    self.engine.sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the handshake with a client.
    fn greet(self: &Rc<Self>, fd: OwnedFd) {
        // Small messages go at once; a Unix socket has no such thing.
        let _ = crate::block::protocol::nbd::connect::prepare(&fd);
        let Ok(socket) = Socket::new(&self.engine, fd) else { return };
        let (socket, patient) = (Rc::new(socket), Rc::new(Cell::new(false)));
        self.forget_gone();
        if self.half_open.borrow().len() >= MAX_HALF_OPEN {
            self.end_oldest();
        }
        let entry =
            HalfOpen { since: Instant::now(), socket: Rc::downgrade(&socket), patient: patient.clone() };
        self.half_open.borrow_mut().push_back(entry);
        self.start_sweeping();
        self.engine.spawn(self.clone().negotiate(socket, patient));
    }

    async fn negotiate(self: Rc<Self>, socket: Rc<Socket>, patient: Rc<Cell<bool>>) {
        let mut inbox = Inbox::new(&socket);
        let exports = || self.exports.borrow().clone();
        let agreed = Negotiation::new(&socket, &mut inbox, &exports, patient).run().await;
        let Ok(Some(agreed)) = agreed else { return };
        let ahead = inbox.into_ahead();
        if let Some(fd) = Rc::try_unwrap(socket).ok().and_then(Socket::into_fd) {
            self.hand_over(fd, ahead, agreed);
        }
    }

    /// Moves a client to the thread of its drive.
    fn hand_over(&self, fd: OwnedFd, ahead: Vec<u8>, agreed: Agreed) {
        let Agreed { export, headers, contexts, place } = agreed;
        let arrival = Arrival { fd, ahead, headers, contexts, read_only: export.read_only() };
        let (left, stop) = (self.left.0.clone(), self.stop.1.clone());
        let started = export.drive().spawn(move |local| async move {
            transmit(&local, arrival, &stop).await;
            drop(place);
            // Without a server nobody counts.
            let _ = left.try_send(());
        });
        self.active.set(self.active.get() + usize::from(started.is_ok()));
    }

    fn forget_gone(&self) {
        self.half_open.borrow_mut().retain(|client| client.socket.strong_count() > 0);
    }

    fn end_oldest(&self) {
        if let Some(client) = self.half_open.borrow_mut().pop_front() {
            client.end();
        }
    }

    /// Looks for handshakes that take too long, for as long as there are any at all.
    fn start_sweeping(self: &Rc<Self>) {
        let Some(limit) = self.settings.handshake_limit else { return };
        if self.sweeping.replace(true) {
            return;
        }
        let server = Rc::downgrade(self);
        let engine = self.engine.clone();
        self.engine.spawn(async move {
            loop {
                engine.sleep(SWEEP.min(limit)).await;
                let Some(server) = server.upgrade() else { return };
                server.sweep(limit);
                if server.half_open.borrow().is_empty() {
                    return server.sweeping.set(false);
                }
            }
        });
    }

    fn sweep(&self, limit: Duration) {
        self.forget_gone();
        let now = Instant::now();
        for client in self.half_open.borrow().iter() {
            if !client.patient.get() && now.duration_since(client.since) >= limit {
                client.end();
            }
        }
    }
}

impl HalfOpen {
    fn end(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.shutdown();
        }
    }
}

/// What passes when somebody leaves.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}
