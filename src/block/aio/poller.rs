//! Waiting without a ring: descriptors and timers by poll(2).

use super::Turn;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

pub(super) struct Poller {
    kick: RawFd,
    /// By number, in the order of their beginning.
    waits: RefCell<BTreeMap<u64, Wait>>,
    next: Cell<u64>,
}

struct Wait {
    what: What,
    waker: Waker,
}

#[derive(Clone)]
enum What {
    /// The descriptor, and POLLIN or POLLOUT.
    Ready(Rc<OwnedFd>, libc::c_short),
    Until(Instant),
}

impl What {
    fn is_over(&self) -> bool {
        match self {
            What::Ready(fd, event) => is_ready(fd.as_fd(), *event),
            What::Until(end) => Instant::now() >= *end,
        }
    }
}

/// The entry of one wait, which goes with it.
struct Registration<'a> {
    poller: &'a Poller,
    number: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let gone = self.poller.waits.borrow_mut().remove(&self.number);
        drop(gone);
    }
}

impl Poller {
    /// A poller that `kick` interrupts.
    pub(super) fn new(kick: RawFd) -> Poller {
        Poller { kick, waits: RefCell::default(), next: Cell::new(0) }
    }

    /// Waits for `event` (POLLIN, POLLOUT) of a descriptor.
    pub(super) async fn ready(&self, fd: Rc<OwnedFd>, event: libc::c_short) {
        self.wait(What::Ready(fd, event)).await;
    }

    pub(super) async fn sleep(&self, time: Duration) {
        self.wait(What::Until(Instant::now() + time)).await;
    }

    async fn wait(&self, what: What) {
        let number = self.next.replace(self.next.get() + 1);
        let _registration = Registration { poller: self, number };
        poll_fn(|cx| {
            if what.is_over() {
                return Poll::Ready(());
            }
            let wait = Wait { what: what.clone(), waker: cx.waker().clone() };
            self.waits.borrow_mut().insert(number, wait);
            Poll::Pending
        })
        .await;
    }

    /// Wakes the tasks whose wait is over; sleeps until there is one, or a kick, if `wait`.
    pub(super) fn turn(&self, wait: bool) -> io::Result<Turn> {
        if !wait && self.waits.borrow().is_empty() {
            return Ok(Turn::Quiet);
        }
        let mut fds = vec![libc::pollfd { fd: self.kick, events: libc::POLLIN, revents: 0 }];
        let mut until = None::<Instant>;
        for wait in self.waits.borrow().values() {
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
        self.waits.borrow_mut().retain(|_, wait| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn a_wait_has_one_entry_however_often_it_is_polled_and_none_when_it_is_dropped() {
        let poller = Poller::new(0);
        {
            let mut wait = pin!(poller.sleep(Duration::from_secs(1000)));
            for _ in 0..3 {
                assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            assert_eq!(poller.waits.borrow().len(), 1);
        }
        assert!(poller.waits.borrow().is_empty());
    }
}
