//! Waiting without a ring: descriptors and timers by poll(2).

use super::Turn;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

pub(super) struct Poller {
    kick: RawFd,
    waits: RefCell<Vec<Wait>>,
}

struct Wait {
    what: What,
    waker: Waker,
}

enum What {
    /// The descriptor, and POLLIN or POLLOUT.
    Ready(Rc<OwnedFd>, libc::c_short),
    Until(Instant),
}

impl Poller {
    /// A poller that `kick` interrupts.
    pub(super) fn new(kick: RawFd) -> Poller {
        Poller { kick, waits: RefCell::default() }
    }

    /// Waits for `event` (POLLIN, POLLOUT) of a descriptor.
    pub(super) async fn ready(&self, fd: Rc<OwnedFd>, event: libc::c_short) {
        poll_fn(|cx| {
            if is_ready(fd.as_fd(), event) {
                return Poll::Ready(());
            }
            self.add(What::Ready(fd.clone(), event), cx.waker())
        })
        .await;
    }

    pub(super) async fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        poll_fn(
            |cx| if Instant::now() >= end { Poll::Ready(()) } else { self.add(What::Until(end), cx.waker()) },
        )
        .await;
    }

    fn add(&self, what: What, waker: &Waker) -> Poll<()> {
        self.waits.borrow_mut().push(Wait { what, waker: waker.clone() });
        Poll::Pending
    }

    /// Wakes the tasks whose wait is over; sleeps until there is one, or a kick, if `wait`.
    pub(super) fn turn(&self, wait: bool) -> io::Result<Turn> {
        if !wait && self.waits.borrow().is_empty() {
            return Ok(Turn::Quiet);
        }
        let mut fds = vec![libc::pollfd { fd: self.kick, events: libc::POLLIN, revents: 0 }];
        let mut until = None::<Instant>;
        for wait in self.waits.borrow().iter() {
            match &wait.what {
                What::Ready(fd, events) => {
                    fds.push(libc::pollfd { fd: fd.as_raw_fd(), events: *events, revents: 0 });
                }
                What::Until(end) => until = Some(until.map_or(*end, |first| first.min(*end))),
            }
        }
        let timeout = match until {
            _ if !wait => Some(Duration::ZERO),
            Some(end) => Some(end.saturating_duration_since(Instant::now())),
            None => None,
        };
        poll(&mut fds, timeout)?;
        self.wake_finished(&fds[1..]);
        Ok(if fds[0].revents != 0 { Turn::Kicked } else { Turn::Quiet })
    }

    fn wake_finished(&self, fds: &[libc::pollfd]) {
        let now = Instant::now();
        let mut ready = fds.iter().map(|fd| fd.revents != 0);
        self.waits.borrow_mut().retain(|wait| {
            let over = match wait.what {
                What::Ready(..) => ready.next().unwrap_or(false),
                What::Until(end) => end <= now,
            };
            if over {
                wait.waker.wake_by_ref();
            }
            !over
        });
    }
}

fn is_ready(fd: BorrowedFd<'_>, event: libc::c_short) -> bool {
    let mut fds = [libc::pollfd { fd: fd.as_raw_fd(), events: event, revents: 0 }];
    // A descriptor that cannot be polled is for the reader to find out about.
    poll(&mut fds, Some(Duration::ZERO)).is_err() || fds[0].revents != 0
}

/// poll(2), with a timeout rounded up so that a timer is over when it wakes; a signal ends it early.
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let millis = timeout.map_or(-1, |time| {
        let up = time.as_millis() + u128::from(time.subsec_nanos() % 1_000_000 != 0);
        libc::c_int::try_from(up).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: pointer and length are those of one slice.
    let done = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
    match io::Error::last_os_error() {
        error if done < 0 && error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
