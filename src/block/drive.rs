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

mod errors;
mod layers;
mod stats;

pub use errors::{Action, DiskError, Listener, Operation};
pub use stats::Count;

use crate::block::aio::{Backend, Engine};
use crate::block::graph::Node;
use crate::block::graph::status::{ChainStatus, chain_status};
use crate::block::options::{DetectZeroes, OpenOptions, Preallocation};
use crate::block::{Error, Iov, Kind, Result, describe};
use async_lock::{RwLock, RwLockReadGuardArc, RwLockWriteGuardArc};
use errors::Judge;
use futures_util::future::LocalBoxFuture;
use layers::{Layer, open_root};
use stats::{Moment, Stats};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    read_only: bool,
    size: AtomicU64,
    judge: Judge,
    stats: Stats,
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
    /// Opens `filename` on a thread of its own. `id` names the drive to users ("hda").
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
            let (root, below) = open_root(engine, &name, &own).await?;
            match reshape {
                Some(reshape) => Ok((reshape(root).await?, below)),
                None => Ok((root, below)),
            }
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
        Drive::start(id, options, move |engine| Ok((open(engine)?, None)))
    }

    fn start(
        id: &str,
        options: OpenOptions,
        open: impl FnOnce(&Rc<Engine>) -> Result<(Rc<Node>, Option<Layer>)> + Send + 'static,
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
        self.facts.read_only
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
    open: impl FnOnce(&Rc<Engine>) -> Result<(Rc<Node>, Option<Layer>)>,
    id: String,
    options: &OpenOptions,
    jobs: &async_channel::Receiver<Job>,
    opened: &mpsc::Sender<Result<Arc<Facts>>>,
) -> Result<()> {
    let start = || {
        let engine = Engine::new(Backend::from_environment())?;
        let (root, below) = open(&engine)?;
        Ok((Local::new(&engine, id, root, below, options), engine))
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
    facts: Arc<Facts>,
    /// Requests hold it shared, drained sections exclusively.
    gate: Arc<RwLock<()>>,
}

/// Held while no request is in flight and new ones wait.
#[must_use]
pub struct Drained {
    _gate: RwLockWriteGuardArc<()>,
}

impl Local {
    fn new(
        engine: &Rc<Engine>,
        id: String,
        root: Rc<Node>,
        below: Option<Layer>,
        options: &OpenOptions,
    ) -> Rc<Local> {
        let facts = Arc::new(Facts {
            id,
            image: Mutex::new((root.filename().to_owned(), root.driver().format_name())),
            options: options.clone(),
            read_only: root.driver().read_only(),
            size: AtomicU64::new(root.size()),
            judge: Judge::new(options.errors),
            stats: Stats::default(),
        });
        let (root, below) = (RefCell::new(root), RefCell::new(below));
        Rc::new(Local { engine: engine.clone(), root, below, facts, gate: Arc::default() })
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
        let done = self.root().truncate(size, Preallocation::Off).await;
        self.note_size();
        done
    }

    /// Reads `into.len()` bytes.
    pub async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.check_range(offset, into.len() as u64)?;
        let _entered = self.enter().await;
        let since = Moment::now();
        let done = self.root().read(offset, into).await;
        self.facts.stats.count(Operation::Read, into.len() as u64, since, &done);
        done
    }

    /// Writes `from.len()` bytes; durable on return if the drive has no write cache.
    pub async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.check_range(offset, from.len() as u64)?;
        let _entered = self.enter().await;
        let since = Moment::now();
        let done = self.write_now(offset, from).await;
        self.facts.stats.count(Operation::Write, from.len() as u64, since, &done);
        done
    }

    async fn write_now(&self, offset: u64, from: &Iov) -> Result<()> {
        let detect = self.facts.options.detect_zeroes;
        if detect != DetectZeroes::Off && from.is_zero() {
            let may_unmap = detect == DetectZeroes::Unmap;
            self.root().write_zeroes(offset, from.len() as u64, may_unmap).await?;
        } else {
            self.root().write(offset, from).await?;
        }
        self.write_through().await
    }

    /// Makes a range read as zeros.
    pub async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await;
        let since = Moment::now();
        let done = match self.root().write_zeroes(offset, len, may_unmap).await {
            Ok(()) => self.write_through().await,
            failed => failed,
        };
        self.facts.stats.count(Operation::Write, len, since, &done);
        done
    }

    /// As [`Local::write_zeroes`], but only if that is faster than writing zeros.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it is not; nothing was changed then.
    pub async fn write_zeroes_fast(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await;
        let since = Moment::now();
        let done = match self.root().write_zeroes_fast(offset, len, may_unmap).await {
            Ok(()) => self.write_through().await,
            failed => failed,
        };
        self.facts.stats.count(Operation::Write, len, since, &done);
        done
    }

    /// Tells that a range is no longer needed. Ignored unless the drive was opened with `discard=unmap`.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        if !self.facts.options.unmap {
            return Ok(());
        }
        let _entered = self.enter().await;
        let since = Moment::now();
        let done = self.root().discard(offset, len).await;
        self.facts.stats.count(Operation::Discard, len, since, &done);
        done
    }

    /// What the first bytes of a range are, as seen through the backing chain.
    ///
    /// # Errors
    /// As the drivers say.
    pub async fn status(&self, offset: u64, len: u64) -> Result<ChainStatus> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await;
        chain_status(&self.root(), offset, len).await
    }

    /// Makes all completed writes durable.
    pub async fn flush(&self) -> Result<()> {
        let _entered = self.enter().await;
        let since = Moment::now();
        let done = self.root().flush().await;
        self.facts.stats.count(Operation::Flush, 0, since, &done);
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

    async fn enter(&self) -> RwLockReadGuardArc<()> {
        match self.gate.try_read_arc() {
            Some(guard) => guard,
            None => self.gate.read_arc().await,
        }
    }

    async fn write_through(&self) -> Result<()> {
        if self.facts.options.cache.writeback { Ok(()) } else { self.root().flush().await }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => {
                Err(Error::new(Kind::OutOfRange, "request past the end of the disk")
                    .path(self.facts.filename()))
            }
        }
    }
}
