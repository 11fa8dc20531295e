//! A drive: a graph of nodes, the thread that runs it, and the handle that other threads hold.
//!
//! ```text
//!   device, monitor ── Drive (Send) ── mailbox ──▶ thread: Engine + Local (the graph's root)
//! ```
//!
//! * [`Drive::spawn`] starts a device's queue loop on the drive's thread: from there on requests never change
//!   threads.
//! * [`Drive::call`] is the door of the control path. Work that changes the graph or the layout of metadata
//!   takes [`Local::drained`] first: it waits for the requests in flight and holds back new ones.

mod empty;
mod errors;
mod layers;
mod loans;
mod media;
mod requests;
mod stats;
#[cfg(test)]
mod tests;

pub use errors::{Action, DiskError, Listener, Operation};
pub use media::{Medium, Tray, TrayListener};
pub use stats::Count;

use crate::block::aio::{Backend, Engine};
use crate::block::graph::Node;
use crate::block::graph::driver::{DeviceFacts, HostTray};
use crate::block::options::{OpenOptions, Preallocation};
use crate::block::{Error, Kind, Result, describe};
use async_lock::{RwLock, RwLockWriteGuardArc};
use errors::Judge;
use futures_util::future::LocalBoxFuture;
use layers::{Graph, Layer, open_root};
use media::TrayState;
use stats::Stats;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce(Rc<Local>) -> LocalBoxFuture<'static, ()> + Send>;

/// What makes another node the root of a drive: a part of the disk, a snapshot of it.
pub type Reshape = Box<dyn FnOnce(Rc<Node>) -> LocalBoxFuture<'static, Result<Rc<Node>>> + Send>;

/// The handle on a drive. Dropping the last one closes the image.
pub struct Drive {
    facts: Arc<Facts>,
    mailbox: Mutex<Option<async_channel::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

/// What every thread may ask at any time.
struct Facts {
    id: String,
    /// The name and the format of the image at the top.
    image: Mutex<(String, &'static str)>,
    options: OpenOptions,
    read_only: AtomicBool,
    size: AtomicU64,
    judge: Judge,
    stats: Stats,
    /// Where the medium is in, if it can be exchanged.
    tray: Option<TrayState>,
}

impl Facts {
    fn filename(&self) -> String {
        self.image.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn set_image(&self, filename: &str, format: &'static str) {
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = (filename.to_owned(), format);
    }
}

impl Drive {
    /// Opens `filename` on a thread of its own. `id` names the drive to users ("hda"). A drive with removable media
    /// has none where the name is empty.
    ///
    /// # Errors
    /// Whatever opening the image or any file below it says.
    pub fn open(id: &str, filename: &str, options: &OpenOptions) -> Result<Arc<Drive>> {
        Drive::open_reshaped(id, filename, options, None)
    }

    /// As [`Drive::open`], of what `reshape` makes of the image.
    ///
    /// # Errors
    /// As [`Drive::open`], and what `reshape` says.
    pub fn open_reshaped(
        id: &str,
        filename: &str,
        options: &OpenOptions,
        reshape: Option<Reshape>,
    ) -> Result<Arc<Drive>> {
        let described = describe::from_name(filename, options)?;
        let (name, options) = described.unwrap_or_else(|| (filename.to_owned(), options.clone()));
        let own = options.clone();
        let open = async move |engine: &Rc<Engine>| {
            let mut graph = open_root(engine, &name, &own).await?;
            if let Some(reshape) = reshape {
                graph.root = reshape(graph.root).await?;
            }
            Ok(graph)
        };
        Drive::start(id, options, move |engine| engine.block_on(open(engine))?)
    }

    /// A drive over the graph that `open` makes, on the drive's thread.
    ///
    /// # Errors
    /// Whatever `open` says.
    #[cfg(test)]
    pub(crate) fn over(
        id: &str,
        options: OpenOptions,
        open: impl FnOnce(&Rc<Engine>) -> Result<Rc<Node>> + Send + 'static,
    ) -> Result<Arc<Drive>> {
        let own = options.clone();
        Drive::start(id, options, move |engine| Ok(Graph::of(open(engine)?, own)))
    }

    fn start(
        id: &str,
        options: OpenOptions,
        open: impl FnOnce(&Rc<Engine>) -> Result<Graph> + Send + 'static,
    ) -> Result<Arc<Drive>> {
        let (mailbox, jobs) = async_channel::unbounded();
        let (opened, result) = mpsc::channel();
        let name = id.to_owned();
        let thread = std::thread::Builder::new()
            .name(format!("drive-{id}"))
            .spawn(move || run(open, name, &options, &jobs, &opened))?;
        let facts = result.recv().map_err(|_| gone())??;
        Ok(Arc::new(Drive { facts, mailbox: Mutex::new(Some(mailbox)), thread: Mutex::new(Some(thread)) }))
    }

    /// The drive's name.
    pub fn id(&self) -> &str {
        &self.facts.id
    }

    /// The name of the image at the top, as users gave it.
    pub fn filename(&self) -> String {
        self.facts.filename()
    }

    /// The format of the image at the top.
    pub fn format(&self) -> &'static str {
        self.facts.image.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// How it was opened.
    pub fn options(&self) -> &OpenOptions {
        &self.facts.options
    }

    /// Size in bytes, now.
    pub fn size(&self) -> u64 {
        self.facts.size.load(Ordering::Acquire)
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.facts.read_only.load(Ordering::Acquire)
    }

    /// What the device of the host is like that the disk is, if it is one.
    ///
    /// # Errors
    /// Only when the drive is closed.
    pub fn device(&self) -> Result<Option<DeviceFacts>> {
        self.call(|local| async move { local.root().driver().device() })
    }

    /// What it has done of an operation since it was opened.
    pub fn count(&self, operation: Operation) -> Count {
        self.facts.stats.of(operation)
    }

    /// Runs `work` as a task on the drive's thread and waits for its result.
    ///
    /// # Errors
    /// Only when the drive is closed.
    pub fn call<T, F>(&self, work: impl FnOnce(Rc<Local>) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, result) = mpsc::channel();
        self.spawn(move |local| {
            let task = work(local);
            async move {
                // The caller waits below, so there is a receiver.
                let _ = sender.send(task.await);
            }
        })?;
        result.recv().map_err(|_| gone())
    }

    /// Starts `work` as a task on the drive's thread.
    ///
    /// # Errors
    /// Only when the drive is closed.
    pub fn spawn<F>(&self, work: impl FnOnce(Rc<Local>) -> F + Send + 'static) -> Result<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let job: Job = Box::new(move |local| Box::pin(work(local)));
        let mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        mailbox.as_ref().ok_or_else(gone)?.try_send(job).map_err(|_| gone())
    }

    /// Waits for the requests in flight, writes back all caches and closes the image. Later calls do nothing.
    ///
    /// # Errors
    /// What could not be written back.
    pub fn close(&self) -> Result<()> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread {
            Some(thread) => thread.join().map_err(|_| gone())?,
            None => Ok(()),
        }
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            eprintln!("cowvm: {}: closing {}: {error}", self.id(), self.filename());
        }
    }
}

fn gone() -> Error {
    Error::new(Kind::Io, "the drive is closed")
}

/// The drive's thread.
fn run(
    open: impl FnOnce(&Rc<Engine>) -> Result<Graph>,
    id: String,
    options: &OpenOptions,
    jobs: &async_channel::Receiver<Job>,
    opened: &mpsc::Sender<Result<Arc<Facts>>>,
) -> Result<()> {
    let start = || {
        let engine = Engine::new(Backend::from_environment())?;
        let graph = open(&engine)?;
        Ok((Local::new(&engine, id, graph, options), engine))
    };
    let (local, engine) = match start() {
        Ok(started) => started,
        Err(error) => {
            let _ = opened.send(Err(error));
            return Ok(());
        }
    };
    let _ = opened.send(Ok(local.facts.clone()));
    let closed = engine.block_on(async {
        while let Ok(job) = jobs.recv().await {
            engine.spawn(job(local.clone()));
        }
        let _drained = local.drained().await;
        let root = local.root();
        let flushed = root.flush().await;
        flushed.and(root.close().await)
    })?;
    engine.drop_tasks()?;
    closed
}

/// What a drive's own thread sees of it: the requests of devices come in here.
pub struct Local {
    engine: Rc<Engine>,
    root: RefCell<Rc<Node>>,
    /// How the image below the root is opened, where the drive itself put the root on top of it.
    below: RefCell<Option<Layer>>,
    /// How the top image is opened that is in the drive, or was the last.
    how: RefCell<Layer>,
    facts: Arc<Facts>,
    /// Requests hold it shared, drained sections exclusively.
    gate: Arc<RwLock<()>>,
    /// Counts the media that were put in and taken out.
    medium: Cell<u64>,
    /// The drive of the host that the medium is in, or was the last.
    host: RefCell<Option<Arc<dyn HostTray>>>,
    /// There is a medium in that drive, but it could not be opened.
    unreadable: Cell<bool>,
}

/// Held while no request is in flight and new ones wait.
#[must_use]
pub struct Drained {
    _gate: RwLockWriteGuardArc<()>,
}

impl Local {
    fn new(engine: &Rc<Engine>, id: String, graph: Graph, options: &OpenOptions) -> Rc<Local> {
        let facts = Arc::new(Facts {
            id,
            image: Mutex::default(),
            options: options.clone(),
            read_only: AtomicBool::default(),
            size: AtomicU64::default(),
            judge: Judge::new(options.errors),
            stats: Stats::default(),
            tray: options.removable.map(TrayState::new),
        });
        let local = Rc::new(Local {
            engine: engine.clone(),
            root: RefCell::new(graph.root.clone()),
            below: RefCell::default(),
            how: RefCell::new(graph.how.clone()),
            facts,
            gate: Arc::default(),
            medium: Cell::new(0),
            host: RefCell::default(),
            unreadable: Cell::new(false),
        });
        local.put_in(graph);
        local
    }

    /// The engine of this thread.
    pub fn engine(&self) -> &Rc<Engine> {
        &self.engine
    }

    /// The top of the graph, as it is now: a control operation may put another image on top.
    pub fn root(&self) -> Rc<Node> {
        self.root.borrow().clone()
    }

    /// Changes the size to `size` bytes, with no request in flight. The device has to tell its guest.
    ///
    /// # Errors
    /// What the image's driver or the host says; the size is then as it was.
    pub async fn resize(&self, size: u64) -> Result<()> {
        let _drained = self.drained().await;
        self.require_medium()?;
        let done = self.root().truncate(size, Preallocation::Off).await;
        self.note_size();
        done
    }

    /// Waits until no request is in flight, and holds back new ones until the token is dropped.
    pub async fn drained(&self) -> Drained {
        Drained { _gate: self.gate.write_arc().await }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.root.borrow().size()
    }

    /// Tells all threads what size the image has now.
    pub fn note_size(&self) {
        self.facts.size.store(self.size(), Ordering::Release);
    }
}
