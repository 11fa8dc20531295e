//! Pages of a cached file on their way into a socket, without a copy: a pipe holds them meanwhile.
//!
//! ```text
//!   page cache ── splice(2) ─▶ Pipe ── splice(2) ─▶ socket ─▶ the peer copies
//! ```
//!
//! The pages stay the file's own: who writes to the file changes what the peer gets, until it has copied it. Nobody says
//! when that is: a peer on this host may have the pages in its receive queue, or splice them into a pipe of its own. But
//! writes reach only what is in the page cache. A place of the file may so become that of other bytes when the pages that
//! were lent have left the cache ([`take_back`]): whoever still has one keeps what was in it, and what is written comes
//! to another. The host lets go of no page that somebody has.
//!
//! Invariant: a [`Loan`] holds exactly the bytes that were asked for, so that a message may announce them.

use super::BulkFile;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Size of a pipe, in bytes: the most that everybody may ask for.
const CAPACITY: usize = 1 << 20;
/// Most pipes that wait to be used again.
const KEPT: usize = 4;
/// How many more pipes the process may have: descriptors are for those who connect too.
static LEFT: AtomicUsize = AtomicUsize::new(128);
/// Number of cachestat(2), which Linux has from 6.5 on.
const SYS_CACHESTAT: libc::c_long = 451;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Most bytes of a folio: pages that come to the cache, and leave it, together.
const FOLIO: u64 = 2 << 20;

/// A pipe that is empty.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Where loans have their pipes from.
#[derive(Clone, Default)]
pub struct Lender(Rc<RefCell<Vec<Pipe>>>);

/// Pages on their way; once all are sent, their pipe is used again.
pub struct Loan {
    pipe: Option<Pipe>,
    left: Cell<usize>,
    lender: Lender,
}

impl Lender {
    /// Most bytes of a loan. A pipe holds parts of pages at both ends.
    pub const MOST: usize = CAPACITY / 2;

    /// Lends `len` bytes at `offset` ([`Lender::MOST`] at most); `None` where the page cache does not have all of them,
    /// or the host gives us no pipe. Does not wait for storage.
    pub fn lend(&self, file: &BulkFile, offset: u64, len: usize) -> Option<Loan> {
        if len > Lender::MOST || !is_cached(file, offset, len) {
            return None;
        }
        let kept = self.0.borrow_mut().pop();
        let pipe = kept.or_else(Pipe::new)?;
        // A pipe that was filled in part goes away with what is in it.
        let filled = splice(file.as_raw_fd(), Some(offset), pipe.write.as_raw_fd(), len);
        let whole = filled.is_ok_and(|filled| filled == len);
        whole.then(|| Loan { pipe: Some(pipe), left: Cell::new(len), lender: self.clone() })
    }
}

impl Loan {
    /// How many bytes are not sent yet.
    pub fn len(&self) -> usize {
        self.left.get()
    }

    /// Whether all are sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends some of the bytes to a socket, at least one.
    pub(super) fn send(&self, socket: RawFd) -> io::Result<()> {
        let pipe = self.pipe.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let sent = splice(pipe.read.as_raw_fd(), None, socket, self.left.get())?;
        self.left.set(self.left.get() - sent);
        if sent == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut kept = self.lender.0.borrow_mut();
        if self.left.get() == 0 && kept.len() < KEPT {
            kept.extend(self.pipe.take());
        }
    }
}

impl Pipe {
    /// A pipe, if there are not too many.
    fn new() -> Option<Pipe> {
        LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()?;
        let made = Pipe::make();
        if made.is_err() {
            LEFT.fetch_add(1, Ordering::Relaxed);
        }
        made.ok()
    }

    fn make() -> io::Result<Pipe> {
        let mut ends = [0; 2];
        // SAFETY: there is room for both descriptors.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } as isize)?;
        // SAFETY: fresh descriptors that nobody else owns.
        let ends = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: a plain system call. Who has many pipes is refused larger ones.
        let size =
            unsafe { libc::fcntl(ends[1].as_raw_fd(), libc::F_SETPIPE_SZ, CAPACITY as libc::c_int) } as isize;
        check(size)?;
        let [read, write] = ends;
        Ok(Pipe { read, write })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        LEFT.fetch_add(1, Ordering::Relaxed);
    }
}

/// Moves pages, from an offset where `from` is a file; how many bytes.
fn splice(from: RawFd, offset: Option<u64>, to: RawFd, len: usize) -> io::Result<usize> {
    let mut at = offset.unwrap_or_default() as libc::loff_t;
    let place = if offset.is_some() { &raw mut at } else { std::ptr::null_mut() };
    loop {
        // SAFETY: the offset lives during the call.
        let moved =
            unsafe { libc::splice(from, place, to, std::ptr::null_mut(), len, libc::SPLICE_F_NONBLOCK) };
        match check(moved) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Whether the page cache has all of a range. Pages that are still on their way from storage are found by their last
/// byte: they come in order.
fn is_cached(file: &BulkFile, offset: u64, len: usize) -> bool {
    let pages = (offset + len as u64).div_ceil(PAGE) - offset / PAGE;
    cached_pages(file, offset, len as u64) == Some(pages) && file.has_now(offset + len as u64 - 1)
}

/// Asks the host to drop what it has cached of a range. True when that is so: what is written there from now on comes to
/// other pages than those that were lent. Pages that are not on storage yet, or that somebody has, stay. Blocks.
pub fn take_back(file: &BulkFile, offset: u64, len: u64) -> bool {
    let range = offset..offset + len;
    let folios = offset - offset % FOLIO..range.end.next_multiple_of(FOLIO);
    [range, folios].into_iter().any(|part| {
        let (at, bytes) = (part.start as libc::off_t, (part.end - part.start) as libc::off_t);
        // SAFETY: a plain system call. What it did is seen below.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), at, bytes, libc::POSIX_FADV_DONTNEED) };
        cached_pages(file, offset, len) == Some(0)
    })
}

/// How many pages of a range the page cache has, if the kernel says.
fn cached_pages(file: &BulkFile, offset: u64, len: u64) -> Option<u64> {
    let range = [offset, len];
    // Numbers of pages: cached, dirty, under writeback, evicted, recently evicted.
    let mut found = [0u64; 5];
    // SAFETY: both structures are as the call wants them, and live during it.
    let done = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0 as libc::c_uint)
    };
    (done == 0).then_some(found[0])
}

fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, Engine, Socket};
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn file(bytes: &[u8]) -> BulkFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        BulkFile::new(&file.into()).unwrap()
    }

    #[test]
    fn what_is_lent_is_what_the_file_has_and_pipes_are_used_again() {
        let bytes: Vec<u8> = (0..400_000u32).map(|at| (at / 7) as u8).collect();
        let file = file(&bytes);
        for backend in [Backend::Auto, Backend::Threads] {
            let engine = Engine::new(backend).unwrap();
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let socket = Socket::new(&engine, ours.into()).unwrap();
            let peer = std::thread::spawn(move || {
                let mut heard = Vec::new();
                theirs.read_to_end(&mut heard).unwrap();
                heard
            });
            let lender = Lender::default();
            for (at, len) in [(5, 300_000), (4096, 4096), (399_999, 1)] {
                let Some(loan) = lender.lend(&file, at, len) else {
                    return eprintln!("this kernel does not say what it has in its page cache");
                };
                engine.block_on(socket.send_loan(&loan)).unwrap().unwrap();
            }
            socket.shutdown();
            let expected = [&bytes[5..300_005], &bytes[4096..8192], &bytes[399_999..]].concat();
            assert!(peer.join().unwrap() == expected);
            assert_eq!(lender.0.borrow().len(), 1);
        }
    }

    #[test]
    fn the_page_cache_keeps_what_somebody_has_until_he_has_taken_all_of_it() {
        for written in [4096, 1 << 20] {
            let mut storage = tempfile::tempfile().unwrap();
            (0..4 << 20).step_by(written).for_each(|_| storage.write_all(&vec![7; written]).unwrap());
            storage.sync_all().unwrap();
            let file = BulkFile::new(&storage.into()).unwrap();
            let lender = Lender::default();
            let Some(loan) = lender.lend(&file, 100_000, 100_000).filter(|_| file.has_storage()) else {
                return eprintln!("this host cannot take back what it lends");
            };
            assert!(!take_back(&file, 65_536, 131_072));
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            while !loan.is_empty() {
                loan.send(ours.as_raw_fd()).unwrap();
            }
            drop(ours);
            theirs.read_exact(&mut [0; 99_999]).unwrap();
            assert!(!take_back(&file, 65_536, 131_072));
            theirs.read_exact(&mut [0]).unwrap();
            assert!(take_back(&file, 65_536, 131_072));
        }
    }

    #[test]
    fn what_is_not_there_or_not_in_the_page_cache_is_not_lent() {
        let (lender, short) = (Lender::default(), file(&[7; 10_000]));
        assert!(lender.lend(&short, 0, 10_001).is_none());
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(1 << 20).unwrap();
        assert!(lender.lend(&BulkFile::new(&sparse.into()).unwrap(), 0, 65_536).is_none());
        assert!(lender.lend(&short, 0, Lender::MOST + 1).is_none());
    }
}
