//! Tasks and their wakers.
//!
//! A task woken on its own thread goes to a thread-local list, without a lock or a system call; a waker of
//! another thread goes through a mutex and, if the engine sleeps, an eventfd.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The future of [`super::Engine::block_on`] itself.
const ROOT: usize = usize::MAX;

static NEXT_EXECUTOR: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Tasks woken by their own thread: (executor, task). One list serves all executors of the thread.
    static WOKEN: RefCell<VecDeque<(u64, usize)>> = const { RefCell::new(VecDeque::new()) };
    /// The executor that this thread runs; 0 outside of [`super::Engine::block_on`].
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A place for a task, and for another when that has ended.
struct Slot {
    /// Taken out while it is polled.
    task: Option<Task>,
    waking: Rc<Waking>,
}

/// How a task is woken.
struct Waking {
    state: Arc<TaskWaker>,
    /// Over the same.
    waker: Waker,
}

pub(super) struct Executor {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    root: Waking,
    /// Tasks of the current turn that were not polled yet.
    left: Cell<usize>,
    shared: Arc<Shared>,
}

/// What wakers reach from any thread.
struct Shared {
    id: u64,
    woken: Mutex<Vec<usize>>,
    asleep: AtomicBool,
    kick: EventFd,
}

struct TaskWaker {
    slot: usize,
    /// Already in a list.
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if CURRENT.get() == self.shared.id {
            WOKEN.with_borrow_mut(|woken| woken.push_back((self.shared.id, self.slot)));
            return;
        }
        self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        if self.shared.asleep.swap(false, Ordering::SeqCst) {
            // Only a full counter could fail, and then the engine is awake already.
            let _ = self.shared.kick.write(1);
        }
    }
}

impl Executor {
    pub(super) fn new() -> io::Result<Executor> {
        let shared = Arc::new(Shared {
            id: NEXT_EXECUTOR.fetch_add(1, Ordering::Relaxed),
            woken: Mutex::default(),
            asleep: AtomicBool::new(false),
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        Ok(Executor {
            slots: RefCell::default(),
            free: RefCell::default(),
            root: Waking::new(ROOT, &shared),
            left: Cell::new(0),
            shared,
        })
    }

    /// Readable when another thread woke a task of a sleeping engine.
    pub(super) fn kick_fd(&self) -> RawFd {
        self.shared.kick.as_raw_fd()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let task: Task = Box::pin(task);
        let slot = self.free.borrow_mut().pop();
        let mut slots = self.slots.borrow_mut();
        let slot = slot.unwrap_or_else(|| {
            let waking = Rc::new(Waking::new(slots.len(), &self.shared));
            slots.push(Slot { task: None, waking });
            slots.len() - 1
        });
        slots[slot].task = Some(task);
        slots[slot].waking.state.wake_by_ref();
    }

    pub(super) fn wake_root(&self) {
        self.root.state.wake_by_ref();
    }

    /// Makes this the executor that the thread runs, until the guard is dropped: its wake-ups stay local.
    pub(super) fn enter(&self) -> Entered {
        Entered { outer: CURRENT.replace(self.shared.id) }
    }

    /// Polls what was woken so far; what these polls wake comes with the next call.
    pub(super) fn poll_woken<T>(&self, mut root: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let (mut result, woken) = (None, self.take_woken());
        self.left.set(woken.len());
        for slot in woken {
            self.left.set(self.left.get() - 1);
            if slot == ROOT {
                if let Poll::Ready(value) = root.as_mut().poll(&mut self.root.context()) {
                    result = Some(value);
                }
            } else {
                self.poll_task(slot);
            }
        }
        result
    }

    fn take_woken(&self) -> Vec<usize> {
        let mut batch =
            std::mem::take(&mut *self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner));
        WOKEN.with_borrow_mut(|woken| {
            woken.retain(|&(executor, slot)| {
                let ours = executor == self.shared.id;
                if ours {
                    batch.push(slot);
                }
                !ours
            });
        });
        batch
    }

    fn poll_task(&self, slot: usize) {
        let taken = self.slots.borrow_mut().get_mut(slot).map(|slot| (slot.task.take(), slot.waking.clone()));
        let Some((task, waking)) = taken else { return };
        let mut context = waking.context();
        // Without one, it was a waker of a task that has ended.
        let Some(mut task) = task else { return };
        if task.as_mut().poll(&mut context).is_ready() {
            drop(task);
            self.free.borrow_mut().push(slot);
        } else if let Some(entry) = self.slots.borrow_mut().get_mut(slot) {
            entry.task = Some(task);
        }
    }

    /// Whether this thread has tasks to poll, besides the one that asks.
    pub(super) fn has_ready(&self) -> bool {
        self.left.get() > 0 || self.has_woken()
    }

    fn has_woken(&self) -> bool {
        WOKEN.with_borrow(|woken| woken.iter().any(|&(executor, _)| executor == self.shared.id))
    }

    /// Whether the engine may sleep. From here on other threads kick it.
    pub(super) fn prepare_to_wait(&self) -> bool {
        self.shared.asleep.store(true, Ordering::SeqCst);
        !self.has_woken() && self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn awake(&self) {
        self.shared.asleep.store(false, Ordering::SeqCst);
    }

    /// Makes the eventfd wait for the next kick.
    pub(super) fn drain_kick(&self) {
        // An empty counter says so, which is as good.
        let _ = self.shared.kick.read();
    }

    pub(super) fn drop_tasks(&self) {
        // Outside of the borrow: what a task drops may come back here.
        let slots = self.slots.take();
        self.free.take();
        drop(slots);
    }
}

/// While it lives, the executor is the thread's current one.
#[must_use]
pub(super) struct Entered {
    outer: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
    }
}

impl Waking {
    fn new(slot: usize, shared: &Arc<Shared>) -> Waking {
        let state = Arc::new(TaskWaker { slot, queued: AtomicBool::new(false), shared: shared.clone() });
        Waking { waker: Waker::from(state.clone()), state }
    }

    /// For a poll. From its beginning on a wake-up queues the task again.
    fn context(&self) -> Context<'_> {
        self.state.queued.store(false, Ordering::Release);
        Context::from_waker(&self.waker)
    }
}
