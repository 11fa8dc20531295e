//! A queue at work: the task on the drive's thread that owns it.
//!
//! ```text
//!   serve: ┌▶ pop all, a task each ─▶ yield ─┐       task: execute ─▶ status ─▶ used ─▶ one interrupt a turn
//!          └──── more? else allow kicks, wait ┘
//! ```
//!
//! While it finds requests it takes no kicks: only an empty ring makes the driver's next kick worth an exit.
//! When it ends, by request or because the driver broke the ring, it waits for its tasks first.
//!
//! A request that failed and is to be done again when the guest goes on stays with the queue: whoever starts the queue
//! next begins with it.

use super::request::{Limits, Request, Status, status};
use crate::block::Iov;
use crate::block::drive::{Action, Drive, Local};
use crate::devices::Error;
use crate::devices::virtio::chain::{Chain, Popped};
use crate::devices::virtio::ring::Broken;
use crate::devices::virtio::{DriverLink, Ring, StartedQueue};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::time::Duration;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// How often a thread that waits for a worker looks whether the drive is still there.
const CHECK_DRIVE: Duration = Duration::from_millis(500);

/// The device's hold on a worker.
pub(super) struct WorkerHandle {
    stop: Arc<AtomicBool>,
    kick: EventFd,
    ended: mpsc::Receiver<StartedQueue>,
}

impl WorkerHandle {
    /// Gives `queue` to a new task on the drive's thread.
    pub(super) fn start(
        drive: &Drive,
        memory: GuestMemoryMmap,
        queue: StartedQueue,
        limits: Limits,
        link: &Arc<DriverLink>,
    ) -> crate::devices::Result<WorkerHandle> {
        let kick = queue.kick.try_clone().map_err(Error::host("eventfd"))?;
        let readable = owned(&kick).map_err(Error::host("eventfd"))?;
        let (sender, ended) = mpsc::channel();
        let handle = WorkerHandle { stop: Arc::default(), kick, ended };
        let (stop, link) = (handle.stop.clone(), link.clone());
        drive.spawn(move |local| async move {
            let worker = Rc::new(Worker {
                local,
                memory: Rc::new(memory),
                index: queue.index,
                size: queue.ring.size(),
                queue: RefCell::new(queue),
                readable: Rc::new(readable),
                limits,
                link,
                stop,
                unanswered: Cell::new(0),
                tasks: Cell::new(0),
                idle: Cell::new(None),
                signalling: Cell::new(false),
            });
            worker.run().await;
            if let Some(worker) = Rc::into_inner(worker) {
                // Nobody listens only when the device is gone.
                let _ = sender.send(worker.queue.into_inner());
            }
        })?;
        Ok(handle)
    }

    /// Tells the worker to end.
    pub(super) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        // A full counter wakes the worker as well.
        let _ = self.kick.write(1);
    }

    /// Waits until no request is in flight and takes the queue back; `None` if the drive has been closed.
    pub(super) fn join(self, drive: &Drive) -> Option<StartedQueue> {
        loop {
            match self.ended.recv_timeout(CHECK_DRIVE) {
                Ok(queue) => return Some(queue),
                Err(mpsc::RecvTimeoutError::Timeout) if drive.spawn(|_| async {}).is_ok() => {}
                Err(_) => return None,
            }
        }
    }
}

/// The queue's task and what its requests share.
struct Worker {
    local: Rc<Local>,
    memory: Rc<GuestMemoryMmap>,
    index: u16,
    size: u16,
    queue: RefCell<StartedQueue>,
    /// The kick again, for the engine to wait on.
    readable: Rc<OwnedFd>,
    limits: Limits,
    link: Arc<DriverLink>,
    stop: Arc<AtomicBool>,
    /// Requests that are not in the used ring yet.
    unanswered: Cell<u16>,
    /// Requests whose tasks have not ended.
    tasks: Cell<u32>,
    /// Woken when the last task ends.
    idle: Cell<Option<Waker>>,
    /// A task is about to interrupt the driver.
    signalling: Cell<bool>,
}

impl Worker {
    async fn run(self: &Rc<Self>) {
        if self.serve().await.is_err() {
            self.link.break_device();
        }
        self.idle().await;
    }

    async fn serve(self: &Rc<Self>) -> Result<(), Broken> {
        let held = std::mem::take(&mut self.queue.borrow_mut().held);
        held.into_iter().try_for_each(|held| self.begin(held.map(&self.memory)))?;
        while !self.stop.load(Ordering::Acquire) {
            if self.take_requests()? {
                // They run now; what the driver adds meanwhile needs no kick.
                self.local.engine().yield_now().await;
            } else if !self.with_ring(|ring, memory| ring.allow_kicks(memory))? {
                self.kicked().await?;
            }
        }
        Ok(())
    }

    /// Starts a task for each request in the ring; false if there was none.
    fn take_requests(self: &Rc<Self>) -> Result<bool, Broken> {
        self.with_ring(|ring, memory| ring.suppress_kicks(memory))?;
        let mut found = false;
        while let Some(popped) = self.with_ring(Ring::pop)? {
            self.begin(popped)?;
            found = true;
        }
        Ok(found)
    }

    fn begin(self: &Rc<Self>, popped: Popped) -> Result<(), Broken> {
        // An honest driver has no more chains than descriptors.
        if self.unanswered.get() == self.size {
            return Err(Broken);
        }
        self.unanswered.set(self.unanswered.get() + 1);
        self.tasks.set(self.tasks.get() + 1);
        self.local.engine().spawn(self.clone().serve_one(popped));
        Ok(())
    }

    /// Waits for the driver's kick, or for being asked to stop.
    async fn kicked(&self) -> Result<(), Broken> {
        self.local.engine().readable(&self.readable).await.map_err(|_| Broken)?;
        // Somebody else may have emptied the counter: then the ring is looked at once too often.
        let _ = self.queue.borrow().kick.read();
        Ok(())
    }

    async fn serve_one(self: Rc<Self>, popped: Popped) {
        match popped {
            Popped::Chain(chain) => match self.execute(&chain).await {
                Some(written) => self.give_back(chain.head, written).await,
                None => self.queue.borrow_mut().held.push(chain.hold()),
            },
            Popped::Faulty { head, last } => {
                self.give_back(head, answer(&last, Err(Status::IoError))).await;
            }
        }
        self.tasks.set(self.tasks.get() - 1);
        if self.tasks.get() == 0
            && let Some(waker) = self.idle.take()
        {
            waker.wake();
        }
    }

    /// Serves a request; says how many bytes of the chain it wrote. `None`: it is to be done again.
    async fn execute(&self, chain: &Chain) -> Option<u32> {
        if chain.writable.is_empty() {
            // No room for a status: there is nobody to tell.
            return Some(0);
        }
        let outcome = match Request::parse(chain, &self.limits) {
            Ok(request) => self.carry_out(&request).await?,
            Err(status) => Err(status),
        };
        Some(answer(&chain.writable, outcome))
    }

    async fn carry_out(&self, request: &Request) -> Option<Result<usize, Status>> {
        let error = match request.execute(&self.local, &self.limits).await {
            Ok(written) => return Some(Ok(written)),
            Err(error) => error,
        };
        match self.local.judge(request.operation(), &error) {
            Action::Report => Some(Err(status(&error))),
            Action::Ignore => Some(Ok(request.readable_len())),
            Action::Stop => None,
        }
    }

    /// Puts a chain into the used ring. The first that does so in a turn interrupts the driver for all.
    async fn give_back(&self, head: u16, written: u32) {
        let pushed = self.with_ring(|ring, memory| ring.push_used(memory, head, written));
        self.unanswered.set(self.unanswered.get() - 1);
        if self.signalling.replace(true) {
            return;
        }
        self.local.engine().yield_now().await;
        self.signalling.set(false);
        match pushed.and_then(|()| self.with_ring(|ring, memory| ring.wants_interrupt(memory))) {
            Ok(true) => self.link.queue_used(self.index),
            Ok(false) => {}
            Err(Broken) => self.link.break_device(),
        }
    }

    /// Waits until all tasks have ended.
    async fn idle(&self) {
        poll_fn(|cx| {
            if self.tasks.get() == 0 {
                return Poll::Ready(());
            }
            self.idle.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn with_ring<T>(&self, f: impl FnOnce(&mut Ring, &Rc<GuestMemoryMmap>) -> T) -> T {
        f(&mut self.queue.borrow_mut().ring, &self.memory)
    }
}

/// Writes the status into the last byte, if there is one; says how many bytes of the chain are written now.
fn answer(writable: &Iov, outcome: Result<usize, Status>) -> u32 {
    let (status, written) = match outcome {
        Ok(written) => (Status::Ok, written),
        Err(status) => (status, 0),
    };
    let Some(last) = writable.len().checked_sub(1) else { return 0 };
    writable.copy_from(last, &[status as u8]);
    // A chain is shorter than 4 GiB.
    (written + 1) as u32
}

/// Another descriptor of an eventfd.
fn owned(event: &EventFd) -> io::Result<OwnedFd> {
    let fd = event.try_clone()?.into_raw_fd();
    // SAFETY: `into_raw_fd` gave up the descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
