//! The reactor over io_uring.
//!
//! Invariant: what an operation lends the kernel (memory, file, timer) is owned by its slot here, from
//! submission to completion. The future holds only the slot's number; dropping it marks the slot as orphaned
//! and asks the kernel to cancel.

use super::Turn;
use crate::block::Iov;
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

const ENTRIES: u32 = 256;
const KICK: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// An operation and all that it lends the kernel.
#[derive(Clone)]
pub(super) enum Request {
    Read { file: Rc<OwnedFd>, into: Iov, offset: u64 },
    Write { file: Rc<OwnedFd>, from: Iov, offset: u64 },
    Sync { file: Rc<OwnedFd> },
    WriteBack { file: Rc<OwnedFd> },
    Allocate { file: Rc<OwnedFd>, mode: i32, offset: u64, len: u64 },
    Readable(Rc<OwnedFd>),
    Writable(Rc<OwnedFd>),
    Sleep(Timespec),
}

impl Request {
    pub(super) fn sleep(time: Duration) -> Request {
        Request::Sleep(Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos()))
    }

    /// The submission entry. It points into `self`, which must therefore not move until the completion.
    fn entry(&self) -> squeue::Entry {
        let fd = |file: &Rc<OwnedFd>| Fd(file.as_raw_fd());
        match self {
            Request::Read { file, into, offset } => {
                let parts = into.parts_for_one_call();
                opcode::Readv::new(fd(file), parts.as_ptr(), parts.len() as u32).offset(*offset).build()
            }
            Request::Write { file, from, offset } => {
                let parts = from.parts_for_one_call();
                opcode::Writev::new(fd(file), parts.as_ptr(), parts.len() as u32).offset(*offset).build()
            }
            Request::Sync { file } => opcode::Fsync::new(fd(file)).flags(FsyncFlags::DATASYNC).build(),
            Request::WriteBack { file } => {
                opcode::SyncFileRange::new(fd(file), 0).flags(libc::SYNC_FILE_RANGE_WRITE).build()
            }
            Request::Allocate { file, mode, offset, len } => {
                opcode::Fallocate::new(fd(file), *len).offset(*offset).mode(*mode).build()
            }
            Request::Readable(file) => opcode::PollAdd::new(fd(file), libc::POLLIN as u32).build(),
            Request::Writable(file) => opcode::PollAdd::new(fd(file), libc::POLLOUT as u32).build(),
            Request::Sleep(time) => opcode::Timeout::new(time).build(),
        }
    }
}

enum Slot {
    Free,
    /// In flight; boxed, because the kernel has its address.
    Waiting(Box<Request>, Option<Waker>),
    /// In flight, and nobody waits any more.
    Orphan(#[expect(dead_code, reason = "kept for the kernel's sake until the completion")] Box<Request>),
    Done(i32),
}

pub(super) struct Ring {
    ring: RefCell<IoUring>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    kick: RawFd,
    kick_armed: Cell<bool>,
}

impl Ring {
    /// A ring that `kick` interrupts.
    pub(super) fn new(kick: RawFd) -> io::Result<Ring> {
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES);
        // Kernels before 6.1 know none of these.
        let ring = modern.or_else(|_| IoUring::new(ENTRIES))?;
        Ok(Ring {
            ring: RefCell::new(ring),
            slots: RefCell::default(),
            free: RefCell::default(),
            kick,
            kick_armed: Cell::new(false),
        })
    }

    /// Carries out `request`; its result is what the system call would return.
    pub(super) async fn run(&self, request: Request) -> io::Result<u32> {
        let pending = Pending { ring: self, slot: self.start(request)? };
        let result = poll_fn(|cx| self.poll(pending.slot, cx.waker())).await;
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as u32) }
    }

    fn start(&self, request: Request) -> io::Result<usize> {
        let request = Box::new(request);
        let entry = request.entry();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            self.slots.borrow_mut().push(Slot::Free);
            self.slots.borrow().len() - 1
        });
        self.slots.borrow_mut()[slot] = Slot::Waiting(request, None);
        if let Err(error) = self.push(entry.user_data(slot as u64)) {
            self.release(slot);
            return Err(error);
        }
        Ok(slot)
    }

    fn push(&self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry points to is owned by its slot until the completion, and `Drop` waits for all.
        while unsafe { self.ring.borrow_mut().submission().push(&entry) }.is_err() {
            self.enter(false)?;
            // The completions only wake tasks; a kick among them is found again.
            let _ = self.reap();
        }
        Ok(())
    }

    fn poll(&self, slot: usize, waker: &Waker) -> Poll<i32> {
        match &mut self.slots.borrow_mut()[slot] {
            Slot::Done(result) => Poll::Ready(*result),
            Slot::Waiting(_, waiting) => {
                match waiting {
                    Some(old) => old.clone_from(waker),
                    None => *waiting = Some(waker.clone()),
                }
                Poll::Pending
            }
            // Only the future itself frees or orphans its slot.
            Slot::Free | Slot::Orphan(_) => Poll::Ready(-libc::ECANCELED),
        }
    }

    fn release(&self, slot: usize) {
        self.slots.borrow_mut()[slot] = Slot::Free;
        self.free.borrow_mut().push(slot);
    }

    /// Enters the kernel once, if it has something to do: submits what is queued, reaps what is done, waits for something
    /// if `wait`.
    pub(super) fn turn(&self, wait: bool) -> io::Result<Turn> {
        if !self.kick_armed.replace(true) {
            let poll = opcode::PollAdd::new(Fd(self.kick), libc::POLLIN as u32).multi(true).build();
            self.push(poll.user_data(KICK))?;
        }
        if wait || self.kernel_has_work() {
            self.enter(wait)?;
        }
        Ok(self.reap())
    }

    /// Whether there is something to submit, or the kernel has completions that it brings only when it is entered.
    fn kernel_has_work(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let queue = ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    fn enter(&self, wait: bool) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        let queued = ring.submission().len() as u32;
        // GETEVENTS always: with DEFER_TASKRUN nothing completes without it.
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no signal mask is passed; the entries are covered by `push`.
        let entered =
            unsafe { ring.submitter().enter::<libc::sigset_t>(queued, u32::from(wait), flags, None) };
        match entered {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn reap(&self) -> Turn {
        let mut turn = Turn::Quiet;
        let mut ring = self.ring.borrow_mut();
        for entry in ring.completion() {
            match entry.user_data() {
                KICK => {
                    self.kick_armed.set(cqueue::more(entry.flags()));
                    turn = Turn::Kicked;
                }
                CANCEL => {}
                slot => self.complete(slot as usize, entry.result()),
            }
        }
        turn
    }

    fn complete(&self, slot: usize, result: i32) {
        let before = std::mem::replace(&mut self.slots.borrow_mut()[slot], Slot::Done(result));
        match before {
            Slot::Waiting(_, Some(waker)) => waker.wake(),
            Slot::Orphan(_) => self.release(slot),
            Slot::Waiting(_, None) | Slot::Free | Slot::Done(_) => {}
        }
    }

    fn in_flight(&self) -> bool {
        self.slots.borrow().iter().any(|slot| matches!(slot, Slot::Waiting(..) | Slot::Orphan(_)))
    }
}

/// Gives the slot back when the future ends or is dropped.
struct Pending<'a> {
    ring: &'a Ring,
    slot: usize,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let now = std::mem::replace(&mut self.ring.slots.borrow_mut()[self.slot], Slot::Free);
        match now {
            Slot::Waiting(request, _) => {
                self.ring.slots.borrow_mut()[self.slot] = Slot::Orphan(request);
                let cancel = opcode::AsyncCancel::new(self.slot as u64).build().user_data(CANCEL);
                // Without a place for it the operation simply runs to its end.
                let _ = self.ring.push(cancel);
            }
            Slot::Done(_) | Slot::Free | Slot::Orphan(_) => self.ring.free.borrow_mut().push(self.slot),
        }
    }
}

impl Drop for Ring {
    /// The kernel must have let go of all memory before the slots are freed.
    fn drop(&mut self) {
        if !self.in_flight() {
            return;
        }
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL);
        let _ = self.push(cancel);
        while self.in_flight() {
            if self.enter(true).is_err() {
                // The kernel may still write there: leaking is the only safe way out.
                self.slots.take().into_iter().for_each(std::mem::forget);
                return;
            }
            let _ = self.reap();
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME))
}
