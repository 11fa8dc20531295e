//! The I/O engine: one a thread, an executor of `!Send` tasks over a reactor.
//!
//! ```text
//!   tasks (executor) ──▶ HostFile ──▶ inline preadv2/pwritev      when the page cache serves it
//!                           │    └──▶ ring: io_uring               else
//!                           └───────▶ pool: worker threads         where io_uring is refused, and what computes
//!         └───────────▶ Socket ────▶ inline recvmsg/sendmsg/splice (or TLS), and poll where they would block
//! ```
//!
//! * A turn of [`Engine::block_on`] polls the tasks that were woken, then enters the kernel once: it submits all
//!   that they queued and, if nobody is ready, waits.
//! * A completion only wakes a task; it never calls onward.
//! * A buffer belongs to the kernel until its completion: what an operation lends sits in the reactor, not in
//!   the future, so that a dropped future leaves it there.
//! * `COWVM_AIO=threads` forces the worker threads.

mod bulk;
mod executor;
mod file;
mod gather;
mod inbox;
mod outbox;
mod pipe;
mod poller;
mod pool;
mod ring;
mod socket;
mod tls;
mod work;

pub use bulk::{BulkFile, CopyError};
pub use file::HostFile;
pub use inbox::Inbox;
pub use outbox::{Body, Outbox, Stream};
pub use pipe::{Lender, Loan, take_back};
pub use socket::{Detached, Socket};

use super::Iov;
use executor::Executor;
use poller::Poller;
use ring::Ring;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;
use work::Work;

/// After how many requests that were served inline a task lets the others run.
const INLINE_BUDGET: u32 = 64;

/// Of how many bytes that were read inline it is remembered that they may be written next.
const MOST_READ: usize = 1 << 20;

/// Which reactor to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring, or worker threads where the host refuses it.
    Auto,
    /// Worker threads.
    Threads,
}

impl Backend {
    /// As the environment variable `COWVM_AIO` says.
    pub fn from_environment() -> Backend {
        match std::env::var("COWVM_AIO").as_deref() {
            Ok("threads") => Backend::Threads,
            _ => Backend::Auto,
        }
    }
}

/// What a turn of the reactor saw besides completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Quiet,
    /// The eventfd of another thread's wake-up is readable.
    Kicked,
}

enum Reactor {
    Ring(Box<Ring>),
    Threads(Poller),
}

/// The engine of one thread.
pub struct Engine {
    executor: Executor,
    reactor: Reactor,
    /// Work for other threads that the tasks of this turn have queued.
    offloaded: RefCell<Vec<pool::Job>>,
    inline: Cell<u32>,
    /// Bytes that were read inline and not written yet, as far as one can tell: what copies does both.
    read: Cell<usize>,
    /// System calls that worker threads carry out on memory of this thread's tasks.
    calls: Calls,
    work: Work,
}

impl Engine {
    /// An engine for the calling thread.
    ///
    /// # Errors
    /// When the host has no file descriptors left.
    pub fn new(backend: Backend) -> io::Result<Rc<Engine>> {
        let executor = Executor::new()?;
        let ring = match backend {
            Backend::Auto => Ring::new(executor.kick_fd()).ok(),
            Backend::Threads => None,
        };
        // Whatever a ring is refused for (ENOSYS, EPERM, ENOMEM), threads can do.
        let reactor = match ring {
            Some(ring) => Reactor::Ring(Box::new(ring)),
            None => Reactor::Threads(Poller::new(executor.kick_fd())),
        };
        Ok(Rc::new(Engine {
            executor,
            reactor,
            offloaded: RefCell::default(),
            inline: Cell::new(0),
            read: Cell::new(0),
            calls: Calls::default(),
            work: Work::default(),
        }))
    }

    /// Whether requests go to io_uring.
    pub fn uses_ring(&self) -> bool {
        matches!(self.reactor, Reactor::Ring(_))
    }

    /// Starts a task. It runs while the thread is in [`Engine::block_on`].
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.executor.spawn(task);
    }

    /// Runs the thread's tasks until `future` ends. Tasks that are left go on at the next call.
    ///
    /// # Errors
    /// When the kernel refuses to wait: then nothing can complete any more.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> io::Result<T> {
        let mut future = pin!(future);
        let _current = self.executor.enter();
        self.executor.wake_root();
        loop {
            if let Some(result) = self.executor.poll_woken(future.as_mut()) {
                return Ok(result);
            }
            let offloaded = self.offloaded.take();
            if !offloaded.is_empty() {
                pool::BLOCKING.submit(offloaded);
            }
            let wait = self.executor.prepare_to_wait();
            let turn = match &self.reactor {
                Reactor::Ring(ring) => ring.turn(wait),
                Reactor::Threads(poller) => poller.turn(wait),
            };
            self.executor.awake();
            if turn? == Turn::Kicked {
                self.executor.drain_kick();
            }
        }
    }

    /// Drops all tasks. They hold what they work on, and mostly the engine itself: without this, a thread that
    /// ends would leave its files open.
    ///
    /// # Errors
    /// As [`Engine::block_on`].
    pub fn drop_tasks(&self) -> io::Result<()> {
        self.block_on(self.calls.none())?;
        self.executor.drop_tasks();
        Ok(())
    }

    /// Waits until `fd` can be read.
    pub async fn readable(&self, fd: &Rc<OwnedFd>) -> io::Result<()> {
        match &self.reactor {
            Reactor::Ring(ring) => ring.run(ring::Request::Readable(fd.clone())).await.map(drop),
            Reactor::Threads(poller) => {
                poller.ready(fd.clone(), libc::POLLIN).await;
                Ok(())
            }
        }
    }

    /// Waits until `fd` can be written to.
    pub async fn writable(&self, fd: &Rc<OwnedFd>) -> io::Result<()> {
        match &self.reactor {
            Reactor::Ring(ring) => ring.run(ring::Request::Writable(fd.clone())).await.map(drop),
            Reactor::Threads(poller) => {
                poller.ready(fd.clone(), libc::POLLOUT).await;
                Ok(())
            }
        }
    }

    /// Waits until `fd`, a socket, has something to receive, and receives it; a ring does both at once. Without one it has
    /// only waited, and says that it would block.
    async fn receive(&self, fd: &Rc<OwnedFd>, into: &Iov) -> io::Result<usize> {
        match &self.reactor {
            Reactor::Ring(ring) => {
                let request = ring::Request::Read { file: fd.clone(), into: into.clone(), offset: 0 };
                ring.run(request).await.map(|len| len as usize)
            }
            Reactor::Threads(poller) => {
                poller.ready(fd.clone(), libc::POLLIN).await;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    /// Waits for `time`.
    pub async fn sleep(&self, time: Duration) {
        match &self.reactor {
            // A timeout completes with ETIME; there is nothing else that it could say.
            Reactor::Ring(ring) => drop(ring.run(ring::Request::sleep(time)).await),
            Reactor::Threads(poller) => poller.sleep(time).await,
        }
    }

    /// Lets every other task that is ready run first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Runs `work` on another thread: for work that blocks.
    pub async fn offload<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (job, result) = pool::job(work);
        self.offloaded.borrow_mut().push(job);
        result.await
    }

    /// Whether no other task of this thread could use its time now.
    pub fn is_idle(&self) -> bool {
        !self.executor.has_ready()
    }

    /// Runs `work` on another thread: for work that only burns CPU.
    pub async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (job, result) = pool::job(work);
        pool::COMPUTING.submit([job]);
        result.await
    }

    /// As [`Engine::compute`], but here while those threads have plenty to do: for pieces of some milliseconds at
    /// most, as all other tasks wait for one. They run before the next.
    pub async fn share<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if !pool::COMPUTING.has_plenty() {
            return self.compute(work).await;
        }
        let done = work();
        self.yield_now().await;
        done
    }

    /// From now on `listener` hears how far long work of drivers is: how much is done of how much, in bytes of what
    /// the work goes through. An earlier listener hears no more.
    pub fn listen_to_work(&self, listener: impl Fn(u64, u64) + 'static) {
        self.work.listen(Rc::new(listener));
    }

    /// Says how far long work is.
    pub fn tell_work(&self, done: u64, total: u64) {
        self.work.tell(done, total);
    }

    /// Notes that so many bytes were read inline.
    fn note_read(&self, len: usize) {
        self.read.set((self.read.get() + len).min(MOST_READ));
    }

    /// Whether most of `len` bytes that are to be written may have been read before.
    fn has_read(&self, len: usize) -> bool {
        let read = self.read.get();
        self.read.set(read.saturating_sub(len));
        read > len / 2
    }

    /// Counts a request that was served inline; true when it is time to yield.
    fn inline_budget_spent(&self) -> bool {
        let count = self.inline.get() + 1;
        self.inline.set(count % INLINE_BUDGET);
        count == INLINE_BUDGET
    }
}

/// Counts calls that must not be left alone.
#[derive(Default)]
struct Calls {
    count: Cell<usize>,
    idle: Cell<Option<Waker>>,
}

impl Calls {
    fn begin(&self) {
        self.count.set(self.count.get() + 1);
    }

    fn end(&self) {
        self.count.set(self.count.get() - 1);
        if self.count.get() == 0
            && let Some(waker) = self.idle.take()
        {
            waker.wake();
        }
    }

    /// Waits until there is none.
    async fn none(&self) {
        poll_fn(|cx| match self.count.get() {
            0 => Poll::Ready(()),
            _ => {
                self.idle.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::FromRawFd;
    use std::sync::{Arc, Condvar, Mutex, mpsc};

    fn engines() -> Vec<Rc<Engine>> {
        vec![Engine::new(Backend::Auto).unwrap(), Engine::new(Backend::Threads).unwrap()]
    }

    #[test]
    fn tasks_run_interleaved_until_the_root_ends() {
        for engine in engines() {
            let log = Rc::new(RefCell::new(Vec::new()));
            for name in [1, 2] {
                let (log, inner) = (log.clone(), engine.clone());
                engine.spawn(async move {
                    for step in 0..3 {
                        log.borrow_mut().push((step, name));
                        inner.yield_now().await;
                    }
                });
            }
            let inner = engine.clone();
            engine
                .block_on(async {
                    while log.borrow().len() < 6 {
                        inner.yield_now().await;
                    }
                })
                .unwrap();
            assert_eq!(*log.borrow(), [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]);
        }
    }

    #[test]
    fn another_thread_wakes_a_sleeping_engine() {
        for engine in engines() {
            let (tx, rx) = async_channel::bounded(1);
            let sender = std::thread::spawn(move || tx.send_blocking(7));
            assert_eq!(engine.block_on(rx.recv()).unwrap(), Ok(7));
            sender.join().unwrap().unwrap();
        }
    }

    #[test]
    fn offloaded_work_runs_on_another_thread() {
        for engine in engines() {
            let here = std::thread::current().id();
            let there = engine.block_on(engine.offload(|| std::thread::current().id())).unwrap();
            assert_ne!(here, there);
            let there = engine.block_on(engine.compute(|| std::thread::current().id())).unwrap();
            assert_ne!(here, there);
        }
    }

    #[test]
    fn the_own_thread_takes_shared_work_when_the_others_have_plenty() {
        for engine in engines() {
            let here = std::thread::current().id();
            let gate = Arc::new((Mutex::new(false), Condvar::new()));
            let jobs = (0..1000).map(|_| {
                let gate = gate.clone();
                engine.share(move || {
                    let mine = std::thread::current().id() == here;
                    let mut open = gate.0.lock().unwrap();
                    *open |= mine;
                    gate.1.notify_all();
                    // The other threads wait until this one has done a piece, but not for ever if it never does.
                    drop(gate.1.wait_timeout_while(open, Duration::from_secs(60), |open| !*open).unwrap());
                    mine
                })
            });
            let mine = engine.block_on(futures_util::future::join_all(jobs)).unwrap();
            assert!(mine.contains(&true));
        }
    }

    #[test]
    fn readable_waits_for_the_event_and_sleep_ends() {
        for engine in engines() {
            // SAFETY: a fresh descriptor that nobody else owns.
            let event = Rc::new(unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) });
            let (order, seen) = mpsc::channel();
            let (waiter, fd, first) = (engine.clone(), event.clone(), order.clone());
            engine.spawn(async move {
                waiter.readable(&fd).await.unwrap();
                first.send("event").unwrap();
            });
            let inner = engine.clone();
            engine
                .block_on(async move {
                    inner.sleep(Duration::from_millis(5)).await;
                    order.send("slept").unwrap();
                    std::fs::File::from(event.try_clone().unwrap()).write_all(&1u64.to_ne_bytes()).unwrap();
                    inner.readable(&event).await.unwrap();
                    for _ in 0..100 {
                        inner.yield_now().await;
                    }
                })
                .unwrap();
            assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["slept", "event"]);
        }
    }

    #[test]
    fn dropped_tasks_give_back_the_engine_and_what_they_hold() {
        for engine in engines() {
            // SAFETY: a fresh descriptor that nobody else owns.
            let event = Rc::new(unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) });
            let (inner, fd) = (engine.clone(), event.clone());
            engine.spawn(async move { drop(inner.readable(&fd).await) });
            engine.block_on(engine.yield_now()).unwrap();
            engine.drop_tasks().unwrap();
            assert_eq!(Rc::strong_count(&engine), 1);
            drop(engine);
            assert_eq!(Rc::strong_count(&event), 1);
        }
    }
}
