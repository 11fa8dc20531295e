//! The listener: accepts clients, watches over their handshakes and hands them to the drives' threads.
//!
//! A client counts as half-open until it has entered an export. When too many are, or descriptors run out, the one
//! that has been so for longest is sent away, but none that waits for a place: a client that does its part is never the
//! victim of those that do not.

use super::export::Export;
use super::negotiate::{Agreed, Negotiation};
use super::patience::Patience;
use super::transmit::{Arrival, Terms, transmit};
use crate::block::aio::{Detached, Engine, Inbox, Socket};
use crate::block::tls;
use std::cell::{Cell, RefCell};
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
#[derive(Clone)]
pub struct Settings {
    /// How long a handshake may take; `None`: for ever.
    pub handshake_limit: Option<Duration>,
    /// The server goes on when its last client has left.
    pub persistent: bool,
    /// Clients are served over TLS, or not at all.
    pub tls: Option<tls::Server>,
}

/// A server. It runs on the engine of the thread that made it; exports live on the threads of their drives.
pub struct Server {
    engine: Rc<Engine>,
    settings: Settings,
    exports: RefCell<Vec<Arc<Export>>>,
    half_open: RefCell<Vec<HalfOpen>>,
    /// That of nobody.
    patience: Patience,
    sweeping: Cell<bool>,
    /// Clients in an export.
    active: Cell<usize>,
    /// Connections tell their end.
    left: (async_channel::Sender<Leaving>, async_channel::Receiver<Leaving>),
}

/// Who leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// A client that never entered an export.
    HalfOpen,
    /// One that did.
    Active,
}

/// Tells that a client leaves an export, also when its drive is closed under it.
struct Farewell(async_channel::Sender<Leaving>);

impl Drop for Farewell {
    fn drop(&mut self) {
        // Without a server nobody counts.
        let _ = self.0.try_send(Leaving::Active);
    }
}

/// A client in its handshake.
struct HalfOpen {
    since: Instant,
    socket: Weak<Socket>,
    patience: Rc<Patience>,
}

impl Server {
    /// A server without exports.
    pub fn new(engine: &Rc<Engine>, settings: Settings) -> Rc<Server> {
        Rc::new(Server {
            engine: engine.clone(),
            settings,
            exports: RefCell::default(),
            half_open: RefCell::default(),
            patience: Patience::default(),
            sweeping: Cell::new(false),
            active: Cell::new(0),
            left: async_channel::unbounded(),
        })
    }

    /// Offers an export. The first of a name is the one that clients get.
    pub fn add(&self, export: Arc<Export>) {
        self.exports.borrow_mut().push(export);
    }

    /// The export of a name.
    pub fn find(&self, name: &str) -> Option<Arc<Export>> {
        self.exports.borrow().iter().find(|export| export.offer().name == name).cloned()
    }

    /// Takes an export away; its clients must leave.
    pub fn remove(&self, export: &Arc<Export>) {
        self.exports.borrow_mut().retain(|other| !Arc::ptr_eq(other, export));
        export.end();
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
        self.exports.borrow().iter().for_each(|export| export.end());
        for client in self.half_open.borrow_mut().drain(..) {
            client.end();
        }
        while self.active.get() > 0
            && let Ok(leaving) = self.left.1.recv().await
        {
            self.count(leaving);
        }
    }

    fn count(&self, leaving: Leaving) {
        self.active.set(self.active.get() - usize::from(leaving == Leaving::Active));
    }

    /// Counts those who leave; over when the last has, unless the server is persistent.
    async fn watch_leaving(&self) {
        let mut served = false;
        while let Ok(leaving) = self.left.1.recv().await {
            served |= leaving == Leaving::Active;
            self.count(leaving);
            self.forget_gone();
            let alone = self.active.get() == 0 && self.half_open.borrow().is_empty();
            if served && alone && !self.settings.persistent {
                return;
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: Socket) -> io::Result<()> {
        loop {
            match listener.accept().await {
                Ok(fd) => self.greet(fd),
                Err(error) if is_fatal(&error) => return Err(error),
                Err(error) => {
                    if is_shortage(&error) {
                        self.end_oldest();
                    }
                    self.engine.sleep(PAUSE).await;
                }
            }
        }
    }

    /// Starts the handshake with a client.
    fn greet(self: &Rc<Self>, fd: OwnedFd) {
        // One that cannot be prepared is slower.
        let _ = crate::block::protocol::nbd::connect::prepare(&fd);
        let Ok(socket) = Socket::new(&self.engine, fd) else { return };
        let (socket, patience) = (Rc::new(socket), self.patience.of_another());
        self.forget_gone();
        if self.half_open.borrow().len() >= MAX_HALF_OPEN {
            self.end_oldest();
        }
        let entry =
            HalfOpen { since: Instant::now(), socket: Rc::downgrade(&socket), patience: patience.clone() };
        self.half_open.borrow_mut().push(entry);
        self.start_sweeping();
        self.engine.spawn(self.clone().negotiate(socket, patience));
    }

    async fn negotiate(self: Rc<Self>, socket: Rc<Socket>, patience: Rc<Patience>) {
        if self.clone().enter(socket, patience).await.is_none() {
            // There is always room.
            let _ = self.left.0.try_send(Leaving::HalfOpen);
        }
    }

    /// Runs the handshake and moves the client to its drive, if it comes so far.
    async fn enter(self: Rc<Self>, socket: Rc<Socket>, patience: Rc<Patience>) -> Option<()> {
        let mut inbox = Inbox::new(&socket);
        let exports = || self.exports.borrow().clone();
        let tls = self.settings.tls.as_ref();
        let agreed = Negotiation::new(&socket, &mut inbox, &exports, tls, patience).run().await;
        let agreed = agreed.ok()??;
        let ahead = inbox.into_ahead();
        let socket = Rc::try_unwrap(socket).ok()?.detach().ok()?;
        self.hand_over(socket, ahead, agreed)
    }

    /// Moves a client to the thread of its drive, if that is there.
    fn hand_over(&self, socket: Detached, ahead: Vec<u8>, agreed: Agreed) -> Option<()> {
        let Agreed { export, headers, contexts, place } = agreed;
        let terms = Terms { headers, contexts, read_only: export.read_only() };
        let arrival = Arrival { socket, ahead, terms };
        let (farewell, stop) = (Farewell(self.left.0.clone()), export.stop());
        // Counted first: it leaves in any case.
        self.active.set(self.active.get() + 1);
        let started = export.drive().spawn(move |local| async move {
            let _farewell = farewell;
            transmit(&local, arrival, &stop).await;
            drop(place);
        });
        started.ok()
    }

    fn forget_gone(&self) {
        self.half_open.borrow_mut().retain(|client| client.socket.strong_count() > 0);
    }

    /// Sends the one away that has been half-open for longest, of those that do not wait for a place.
    fn end_oldest(&self) {
        let mut half_open = self.half_open.borrow_mut();
        if let Some(at) = half_open.iter().position(|client| !client.patience.is_shown()) {
            half_open.remove(at).end();
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
            if !client.patience.is_shown() && now.duration_since(client.since) >= limit {
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

/// What says that the listener is none. All else belongs to one connection, or passes ("Error handling" of accept(2)).
fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EFAULT))
}
