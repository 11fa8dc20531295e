//! A host file as the block layer uses it: which way each request takes.
//!
//! * Reads of a cached file are tried inline with RWF_NOWAIT; what the page cache does not have goes to the
//!   reactor.
//! * Cached writes up to [`INLINE_WRITE`] bytes are done inline: they are a copy into the page cache, and ext4
//!   hands every buffered write of a ring to the same kernel worker, which is slower in all. Where other tasks can use the
//!   time meanwhile, that is worth it for copies longer than [`MIDDLE_WRITE`], and for those longer than [`SHORT_WRITE`]
//!   where about as much is read as is written: one processor reads what the other one writes.
//! * Those that follow one another become one call (module `gather`).
//! * Direct I/O always goes to the reactor.

use super::gather::Gathering;
use super::ring::Request;
use super::{Engine, Reactor};
use crate::block::Iov;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

/// Longest cached write that is done inline, in bytes.
const INLINE_WRITE: usize = 128 << 10;

/// Cached writes up to this many bytes are done inline by those who do not read as much.
const MIDDLE_WRITE: usize = 64 << 10;

/// Cached writes up to this many bytes are done inline whatever else there is to do.
const SHORT_WRITE: usize = 16 << 10;

/// The least unit of direct I/O, in bytes.
const SECTOR: usize = 512;

/// An open host file or device.
pub struct HostFile {
    engine: Rc<Engine>,
    fd: Rc<OwnedFd>,
    direct: bool,
    /// The file system knows RWF_NOWAIT.
    nowait: Cell<bool>,
    /// Cached writes that the reactor has.
    handed_out: Cell<usize>,
    gathering: Gathering,
}

/// What worker threads run: a request that its task owns until the call is over.
struct Call(*const Request);

// SAFETY: the request is boxed in a task that is not cancelled and does not touch it before the call has
// returned; the worker only reads its addresses and numbers, never its reference counts.
unsafe impl Send for Call {}

impl HostFile {
    /// A file whose requests run on `engine`; `direct` says that it was opened with O_DIRECT.
    pub fn new(engine: &Rc<Engine>, fd: OwnedFd, direct: bool) -> HostFile {
        HostFile {
            engine: engine.clone(),
            fd: Rc::new(fd),
            direct,
            nowait: Cell::new(true),
            handed_out: Cell::new(0),
            gathering: Gathering::default(),
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Rc<Engine> {
        &self.engine
    }

    /// The descriptor, for locks, seeks and ioctls.
    pub fn fd(&self) -> &Rc<OwnedFd> {
        &self.fd
    }

    /// Whether no request is in flight.
    pub fn is_idle(&self) -> bool {
        Rc::strong_count(&self.fd) == 1
    }

    /// Reads into all of `into`; what lies past the end of the file reads as zeros.
    pub async fn read(&self, offset: u64, into: &Iov) -> io::Result<()> {
        let mut done = 0;
        if !self.direct && self.nowait.get() {
            done = self.read_cached(offset, into);
            self.engine.note_read(done);
            if self.engine.inline_budget_spent() {
                self.engine.yield_now().await;
            }
        }
        while done < into.len() {
            let rest = if done == 0 { into.clone() } else { into.slice(done, into.len() - done) };
            let request = Request::Read { file: self.fd.clone(), into: rest, offset: offset + done as u64 };
            match self.run(request).await? {
                0 => break,
                n => done += n as usize,
            }
            // Direct I/O ends inside of a block only where the file does.
            if self.direct && !done.is_multiple_of(SECTOR) {
                break;
            }
        }
        into.fill(done, into.len() - done, 0);
        Ok(())
    }

    /// Writes all of `from`.
    pub async fn write(&self, offset: u64, from: &Iov) -> io::Result<()> {
        let mut done = 0;
        if self.writes_inline(from.len()) {
            if self.write_together(offset, from).await {
                return Ok(());
            }
            done = retry(|| vectored(libc::pwritev, &self.fd, from, offset))? as usize;
            if self.engine.inline_budget_spent() {
                self.engine.yield_now().await;
            }
        }
        if done == from.len() {
            return Ok(());
        }
        let _out = HandedOut::new(&self.handed_out);
        while done < from.len() {
            let rest = if done == 0 { from.clone() } else { from.slice(done, from.len() - done) };
            let request = Request::Write { file: self.fd.clone(), from: rest, offset: offset + done as u64 };
            match self.run(request).await? {
                0 => return Err(io::Error::from_raw_os_error(libc::EIO)),
                n => done += n as usize,
            }
        }
        Ok(())
    }

    /// Writes `from` with what other tasks write next to it; false if it is not written.
    async fn write_together(&self, offset: u64, from: &Iov) -> bool {
        let Some(member) = self.gathering.add(offset, from, self.engine.is_idle()) else { return false };
        self.engine.yield_now().await;
        member.finish(|start, all| {
            let done = retry(|| vectored(libc::pwritev, &self.fd, all, start));
            done.is_ok_and(|n| n as usize == all.len())
        })
    }

    /// Whether a write of `len` bytes is done at once. While the reactor has one, the next would wait for the
    /// file's lock.
    fn writes_inline(&self, len: usize) -> bool {
        let alone = || self.handed_out.get() == 0 && self.engine.is_idle();
        let writes_only = || len <= MIDDLE_WRITE && !self.engine.has_read(len);
        !self.direct && (len <= SHORT_WRITE || len <= INLINE_WRITE && (writes_only() || alone()))
    }

    /// fdatasync(2).
    pub async fn sync(&self) -> io::Result<()> {
        self.run(Request::Sync { file: self.fd.clone() }).await.map(drop)
    }

    /// Has the host begin to write back what the page cache has of the file: a later [`HostFile::sync`] waits less. What
    /// becomes of it, that one tells.
    pub async fn write_back(&self) {
        // Where the host cannot, the sync does it all.
        let _ = self.run(Request::WriteBack { file: self.fd.clone() }).await;
    }

    /// fallocate(2) with `mode`.
    pub async fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        self.run(Request::Allocate { file: self.fd.clone(), mode, offset, len }).await.map(drop)
    }

    /// What the page cache has of the range, from its start.
    fn read_cached(&self, offset: u64, into: &Iov) -> usize {
        let read = |fd: RawFd, parts, count, at| {
            // SAFETY: the ranges are mapped for as long as `into` lives.
            unsafe { libc::preadv2(fd, parts, count, at, libc::RWF_NOWAIT) }
        };
        // SAFETY: see `vectored`.
        let got = unsafe { call_vectored(read, &self.fd, into, offset) };
        match got {
            Ok(n) => n as usize,
            Err(error) => {
                if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                    self.nowait.set(false);
                }
                0
            }
        }
    }

    /// Through the reactor. What a signal or a shortage of the moment kept from being done is tried again.
    async fn run(&self, request: Request) -> io::Result<u32> {
        loop {
            let done = match &self.engine.reactor {
                Reactor::Ring(ring) => ring.run(request.clone()).await,
                Reactor::Threads(_) => self.run_on_worker(Box::new(request.clone())).await,
            };
            match done {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                    self.engine.yield_now().await;
                }
                other => return other,
            }
        }
    }

    /// The task owns the request, and the engine, so that both outlive the call even if this future does not.
    async fn run_on_worker(&self, request: Box<Request>) -> io::Result<u32> {
        let (engine, (done, result)) = (self.engine.clone(), async_channel::bounded(1));
        self.engine.calls.begin();
        self.engine.spawn(async move {
            let call = Call(&raw const *request);
            let outcome = engine.offload(move || call.run()).await;
            drop(request);
            engine.calls.end();
            // Nobody may be waiting any more.
            let _ = done.try_send(outcome);
        });
        result.recv().await.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ECANCELED)))
    }
}

/// Counts a write that the reactor has, for as long as it lives.
struct HandedOut<'a>(&'a Cell<usize>);

impl HandedOut<'_> {
    fn new(count: &Cell<usize>) -> HandedOut<'_> {
        count.set(count.get() + 1);
        HandedOut(count)
    }
}

impl Drop for HandedOut<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Call {
    /// Carries the request out on the calling thread. A signal is no reason to stop.
    fn run(self) -> io::Result<u32> {
        // SAFETY: the task keeps the box until this returns.
        let request = unsafe { &*self.0 };
        retry(|| call(request))
    }
}

fn call(request: &Request) -> io::Result<u32> {
    match request {
        Request::Read { file, into, offset } => vectored(libc::preadv, file, into, *offset),
        Request::Write { file, from, offset } => vectored(libc::pwritev, file, from, *offset),
        // SAFETY: a plain system call on a descriptor that is open.
        Request::Sync { file } => result(unsafe { libc::fdatasync(file.as_raw_fd()) } as isize),
        Request::WriteBack { file } => {
            let (fd, how) = (file.as_raw_fd(), libc::SYNC_FILE_RANGE_WRITE);
            // SAFETY: as above.
            result(unsafe { libc::sync_file_range(fd, 0, 0, how) } as isize)
        }
        Request::Allocate { file, mode, offset, len } => {
            // SAFETY: as above.
            result(unsafe { libc::fallocate(file.as_raw_fd(), *mode, *offset as i64, *len as i64) } as isize)
        }
        // Waits belong to the poller and never come here.
        Request::Readable(_) | Request::Writable(_) | Request::Sleep(_) => {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }
}

type Vectored = unsafe extern "C" fn(RawFd, *const libc::iovec, libc::c_int, libc::off_t) -> isize;

fn vectored(call: Vectored, fd: &OwnedFd, iov: &Iov, offset: u64) -> io::Result<u32> {
    // SAFETY: the list keeps its ranges mapped, and `call` is preadv or pwritev, which want just that.
    unsafe { call_vectored(|fd, parts, count, at| call(fd, parts, count, at), fd, iov, offset) }
}

/// # Safety
/// `call` must use no more than the ranges it is given.
unsafe fn call_vectored(
    call: impl Fn(RawFd, *const libc::iovec, libc::c_int, libc::off_t) -> isize,
    fd: &OwnedFd,
    iov: &Iov,
    offset: u64,
) -> io::Result<u32> {
    let parts = iov.parts_for_one_call();
    result(call(fd.as_raw_fd(), parts.as_ptr(), parts.len() as libc::c_int, offset as libc::off_t))
}

fn result(returned: isize) -> io::Result<u32> {
    u32::try_from(returned).map_err(|_| io::Error::last_os_error())
}

fn retry(mut call: impl FnMut() -> io::Result<u32>) -> io::Result<u32> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
