//! Messages over a [`Socket`]: small ones are received and sent many at a time, large ones without a copy.
//!
//! * [`Inbox`]: reads ahead into a buffer; what is long goes to its place directly.
//! * [`Outbox`]: any task puts messages there, one task sends them, all that are there with one call.

use super::Socket;
use crate::block::{Buffer, Iov};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How much is read ahead, in bytes.
const AHEAD: usize = 32 << 10;
/// Heads of messages sent with one call, in bytes.
const HEADS: usize = 32 << 10;
/// Messages sent with one call.
const BATCH: usize = 256;

/// The receiving side of a connection.
pub struct Inbox {
    socket: Rc<Socket>,
    ahead: Iov,
    start: usize,
    end: usize,
}

impl Inbox {
    /// What comes in on `socket`.
    pub fn new(socket: &Rc<Socket>) -> Inbox {
        Inbox { socket: socket.clone(), ahead: Buffer::new(AHEAD).iov(AHEAD), start: 0, end: 0 }
    }

    /// As [`Inbox::new`], where these bytes (as many as [`Inbox::into_ahead`] gives) came before.
    pub fn with_ahead(socket: &Rc<Socket>, bytes: &[u8]) -> Inbox {
        let inbox = Inbox::new(socket);
        let end = inbox.ahead.copy_from(0, bytes);
        Inbox { end, ..inbox }
    }

    /// What was received and not taken.
    pub fn into_ahead(self) -> Vec<u8> {
        self.ahead.slice(self.start, self.end - self.start).to_vec()
    }

    /// Whether nothing was received that was not taken.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the stream ends here; waits for its next byte.
    ///
    /// # Errors
    /// What the host says.
    pub async fn at_end(&mut self) -> io::Result<bool> {
        if self.is_empty() {
            self.fill().await?;
        }
        Ok(self.is_empty())
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the stream ends before; what the host says.
    pub async fn exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            if self.at_end().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let len = (into.len() - done).min(self.end - self.start);
            self.ahead.copy_to(self.start, &mut into[done..done + len]);
            self.start += len;
            done += len;
        }
        Ok(())
    }

    /// Receives as many bytes as the array has.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// Receives `len` bytes, which must have been checked against a limit.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn exact_iov(&mut self, into: &Iov) -> io::Result<()> {
        let mut done = (self.end - self.start).min(into.len());
        into.copy_from_iov(0, &self.ahead.slice(self.start, done));
        self.start += done;
        while done < into.len() {
            let rest = into.slice(done, into.len() - done);
            if rest.len() < AHEAD / 4 {
                self.fill().await?;
                let len = (self.end - self.start).min(rest.len());
                rest.copy_from_iov(0, &self.ahead.slice(self.start, len));
                self.start += len;
                done += len;
                if len == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            match self.socket.recv(&rest).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => done += len,
            }
        }
        Ok(())
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn skip(&mut self, len: u64) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            if self.at_end().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = left.min((self.end - self.start) as u64);
            self.start += step as usize;
            left -= step;
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        (self.start, self.end) = (0, 0);
        self.end = self.socket.recv(&self.ahead).await?;
        Ok(())
    }
}

/// A message: a head that is copied, a body that is not, and what is dropped once both are sent.
struct Message<K> {
    head: SmallVec<[u8; 64]>,
    body: Option<Iov>,
    keep: Option<K>,
}

/// The sending side of a connection. `K` is what messages hold until they are sent.
pub struct Outbox<K> {
    queue: RefCell<VecDeque<Message<K>>>,
    /// While somebody streams: what waits behind.
    deferred: RefCell<Option<VecDeque<Message<K>>>>,
    /// Messages that are being sent just now.
    sending: Cell<bool>,
    closed: Cell<bool>,
    sender: Cell<Option<Waker>>,
    idle: Cell<Option<Waker>>,
}

impl<K> Default for Outbox<K> {
    fn default() -> Outbox<K> {
        Outbox {
            queue: RefCell::default(),
            deferred: RefCell::new(None),
            sending: Cell::new(false),
            closed: Cell::new(false),
            sender: Cell::new(None),
            idle: Cell::new(None),
        }
    }
}

impl<K> Outbox<K> {
    /// Queues a message.
    pub fn push(&self, head: &[u8], body: Option<Iov>, keep: Option<K>) {
        if self.closed.get() {
            return;
        }
        let message = Message { head: SmallVec::from_slice(head), body, keep };
        match &mut *self.deferred.borrow_mut() {
            Some(deferred) => deferred.push_back(message),
            None => self.queue.borrow_mut().push_back(message),
        }
        wake(&self.sender);
    }

    /// Begins a message that comes in pieces, once all before it is sent. Other messages wait until it is dropped. One at
    /// a time.
    pub async fn stream(&self) -> Stream<'_, K> {
        self.deferred.borrow_mut().get_or_insert_default();
        let stream = Stream(self);
        stream.sent().await;
        stream
    }

    /// Gives up what is queued, and takes no more: [`Outbox::run`] ends.
    pub fn close(&self) {
        self.closed.set(true);
        let left = (self.queue.take(), self.deferred.borrow_mut().as_mut().map(std::mem::take));
        wake(&self.sender);
        wake(&self.idle);
        drop(left);
    }

    /// Whether it takes no more.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Waits until all is sent, or the box is closed.
    pub async fn drained(&self) {
        poll_fn(|cx| {
            if self.closed.get() || !self.sending.get() && self.queue.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.idle.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Sends messages as they come, until the box is closed. One task a box.
    ///
    /// # Errors
    /// What the host says. The box is closed then.
    pub async fn run(&self, socket: &Socket) -> io::Result<()> {
        let heads = Buffer::new(HEADS).iov(HEADS);
        while self.wait().await {
            let (bytes, keep) = self.batch(&heads);
            self.sending.set(true);
            let sent = socket.send_all(&bytes).await;
            self.sending.set(false);
            drop(keep);
            wake(&self.idle);
            if sent.is_err() {
                self.close();
                return sent;
            }
        }
        Ok(())
    }

    /// Waits for a message; false when the box is closed.
    async fn wait(&self) -> bool {
        poll_fn(|cx| {
            if self.closed.get() {
                return Poll::Ready(false);
            }
            if !self.queue.borrow().is_empty() {
                return Poll::Ready(true);
            }
            self.sender.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Takes as many messages as go with one call. A head longer than all of `heads` is sent from its own memory.
    fn batch(&self, heads: &Iov) -> (Iov, SmallVec<[K; 8]>) {
        let (mut parts, mut keep) = (Vec::new(), SmallVec::new());
        let (mut used, mut joined) = (0, 0);
        let mut queue = self.queue.borrow_mut();
        while parts.len() < BATCH
            && let Some(message) = queue.pop_front()
        {
            let len = message.head.len();
            if len > HEADS {
                parts.push(Buffer::from_bytes(&message.head).iov(len));
            } else if used + len > HEADS {
                queue.push_front(message);
                break;
            } else {
                heads.copy_from(used, &message.head);
                used += len;
            }
            // Heads without bodies between them are one part.
            if message.body.is_some() || len > HEADS {
                let before = parts.len() - usize::from(len > HEADS);
                parts.insert(before, heads.slice(joined, used - joined));
                joined = used;
            }
            parts.extend(message.body);
            keep.extend(message.keep);
        }
        parts.push(heads.slice(joined, used - joined));
        (Iov::concat(&parts), keep)
    }
}

/// A message in pieces.
#[must_use]
pub struct Stream<'a, K>(&'a Outbox<K>);

impl<K> Stream<'_, K> {
    /// Queues a piece.
    pub fn push(&self, head: &[u8], body: Iov) {
        if !self.0.closed.get() {
            let message = Message { head: SmallVec::from_slice(head), body: Some(body), keep: None };
            self.0.queue.borrow_mut().push_back(message);
            wake(&self.0.sender);
        }
    }

    /// Waits until the pieces so far are sent, or the box is closed.
    pub async fn sent(&self) {
        self.0.drained().await;
    }
}

impl<K> Drop for Stream<'_, K> {
    fn drop(&mut self) {
        if let Some(deferred) = self.0.deferred.take() {
            self.0.queue.borrow_mut().extend(deferred);
            wake(&self.0.sender);
        }
    }
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
