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

use crate::block::aio::{Backend, Engine};
use crate::block::graph::Node;
use crate::block::graph::status::{ChainStatus, chain_status};
use crate::block::open::open;
use crate::block::options::{DetectZeroes, OpenOptions, Preallocation};
use crate::block::{Error, Iov, Kind, Result};
use async_lock::{RwLock, RwLockReadGuardArc, RwLockWriteGuardArc};
use futures_util::future::LocalBoxFuture;
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
    id: String,
    facts: Arc<Facts>,
    mailbox: Mutex<Option<async_channel::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

/// What every thread may ask at any time.
struct Facts {
    filename: String,
    format: &'static str,
    options: OpenOptions,
    read_only: bool,
    size: AtomicU64,
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
        let (mailbox, jobs) = async_channel::unbounded();
        let (opened, result) = mpsc::channel();
        let (name, options) = (filename.to_owned(), options.clone());
        let thread = std::thread::Builder::new()
            .name(format!("drive-{id}"))
            .spawn(move || run(&name, &options, reshape, &jobs, &opened))?;
        let facts = result.recv().map_err(|_| gone())??;
        Ok(Arc::new(Drive {
            id: id.to_owned(),
            facts,
            mailbox: Mutex::new(Some(mailbox)),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// The drive's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The image's name, as the user gave it.
    pub fn filename(&self) -> &str {
        &self.facts.filename
    }

    /// The image's format.
    pub fn format(&self) -> &'static str {
        self.facts.format
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

    /// Changes the size to `size` bytes, with no request in flight. The device has to tell its guest.
    ///
    /// # Errors
    /// What the image's driver or the host says; the size is then as it was.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.call(move |local| async move {
            let _drained = local.drained().await;
            let done = local.root.truncate(size, Preallocation::Off).await;
            local.facts.size.store(local.root.size(), Ordering::Release);
            done
        })?
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
            eprintln!("cowvm: {}: closing {}: {error}", self.id, self.filename());
        }
    }
}

fn gone() -> Error {
    Error::new(Kind::Io, "the drive is closed")
}

/// The drive's thread.
fn run(
    filename: &str,
    options: &OpenOptions,
    reshape: Option<Reshape>,
    jobs: &async_channel::Receiver<Job>,
    opened: &mpsc::Sender<Result<Arc<Facts>>>,
) -> Result<()> {
    let engine = Engine::new(Backend::from_environment())?;
    let opening = async {
        let root = open(&engine, filename, options).await?;
        match reshape {
            Some(reshape) => reshape(root).await,
            None => Ok(root),
        }
    };
    let local = match engine.block_on(opening)? {
        Ok(root) => Local::new(&engine, root, options),
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
        let flushed = local.root.flush().await;
        flushed.and(local.root.close().await)
    })?;
    engine.drop_tasks()?;
    closed
}

/// What a drive's own thread sees of it: the requests of devices come in here.
pub struct Local {
    engine: Rc<Engine>,
    root: Rc<Node>,
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
    fn new(engine: &Rc<Engine>, root: Rc<Node>, options: &OpenOptions) -> Rc<Local> {
        let facts = Arc::new(Facts {
            filename: root.filename().to_owned(),
            format: root.driver().format_name(),
            options: options.clone(),
            read_only: root.driver().read_only(),
            size: AtomicU64::new(root.size()),
        });
        Rc::new(Local { engine: engine.clone(), root, facts, gate: Arc::default() })
    }

    /// The engine of this thread.
    pub fn engine(&self) -> &Rc<Engine> {
        &self.engine
    }

    /// The top of the graph.
    pub fn root(&self) -> &Rc<Node> {
        &self.root
    }

    /// Reads `into.len()` bytes.
    pub async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.check_range(offset, into.len() as u64)?;
        let _entered = self.enter().await;
        self.root.read(offset, into).await
    }

    /// Writes `from.len()` bytes; durable on return if the drive has no write cache.
    pub async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.check_range(offset, from.len() as u64)?;
        let _entered = self.enter().await;
        let detect = self.facts.options.detect_zeroes;
        if detect != DetectZeroes::Off && from.is_zero() {
            let may_unmap = detect == DetectZeroes::Unmap;
            self.root.write_zeroes(offset, from.len() as u64, may_unmap).await?;
        } else {
            self.root.write(offset, from).await?;
        }
        self.write_through().await
    }

    /// Makes a range read as zeros.
    pub async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await;
        self.root.write_zeroes(offset, len, may_unmap).await?;
        self.write_through().await
    }

    /// As [`Local::write_zeroes`], but only if that is faster than writing zeros.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it is not; nothing was changed then.
    pub async fn write_zeroes_fast(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await;
        self.root.write_zeroes_fast(offset, len, may_unmap).await?;
        self.write_through().await
    }

    /// Tells that a range is no longer needed. Ignored unless the drive was opened with `discard=unmap`.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        if !self.facts.options.unmap {
            return Ok(());
        }
        let _entered = self.enter().await;
        self.root.discard(offset, len).await
    }

    /// What the first bytes of a range are, as seen through the backing chain.
    ///
    /// # Errors
    /// As the drivers say.
    pub async fn status(&self, offset: u64, len: u64) -> Result<ChainStatus> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await;
        chain_status(&self.root, offset, len).await
    }

    /// Makes all completed writes durable.
    pub async fn flush(&self) -> Result<()> {
        let _entered = self.enter().await;
        self.root.flush().await
    }

    /// Waits until no request is in flight, and holds back new ones until the token is dropped.
    pub async fn drained(&self) -> Drained {
        Drained { _gate: self.gate.write_arc().await }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.root.size()
    }

    async fn enter(&self) -> RwLockReadGuardArc<()> {
        match self.gate.try_read_arc() {
            Some(guard) => guard,
            None => self.gate.read_arc().await,
        }
    }

    async fn write_through(&self) -> Result<()> {
        if self.facts.options.cache.writeback { Ok(()) } else { self.root.flush().await }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => {
                Err(Error::new(Kind::OutOfRange, "request past the end of the disk")
                    .path(&self.facts.filename))
            }
        }
    }
}
