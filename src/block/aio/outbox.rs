//! The sending side of messages over a [`Socket`]: any task puts messages there, one task sends them, all that are
//! there with one call.

use super::{Loan, Socket};
use crate::block::{Buffer, Iov};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};

/// Heads of messages sent with one call, in bytes.
const HEADS: usize = 32 << 10;
/// Messages sent with one call.
const BATCH: usize = 256;
/// Bodies that wait to be sent leave no room for others from this many bytes on: as many as stay in a processor's cache.
const FULL: usize = 256 << 10;

/// What a message has behind its head. It is not copied.
pub enum Body {
    /// Memory.
    Memory(Iov),
    /// Pages of a file.
    Loan(Loan),
}

/// A message: a head that is copied, its body, and what is dropped once both are sent.
struct Message<K> {
    head: SmallVec<[u8; 64]>,
    body: Option<Body>,
    keep: Option<K>,
}

/// The sending side of a connection. `K` is what messages hold until they are sent.
pub struct Outbox<K> {
    queue: RefCell<VecDeque<Message<K>>>,
    /// While somebody streams: what waits behind.
    deferred: RefCell<Option<VecDeque<Message<K>>>>,
    /// Messages that are being sent just now.
    sending: Cell<bool>,
    /// Bytes of bodies that are not sent yet.
    unsent: Cell<usize>,
    closed: Cell<bool>,
    sender: Cell<Option<Waker>>,
    idle: Cell<Option<Waker>>,
    roomy: Cell<Option<Waker>>,
}

impl<K> Default for Outbox<K> {
    fn default() -> Outbox<K> {
        Outbox {
            queue: RefCell::default(),
            deferred: RefCell::new(None),
            sending: Cell::new(false),
            unsent: Cell::new(0),
            closed: Cell::new(false),
            sender: Cell::new(None),
            idle: Cell::new(None),
            roomy: Cell::new(None),
        }
    }
}

impl<K> Outbox<K> {
    /// Queues a message.
    pub fn push(&self, head: &[u8], body: Option<Body>, keep: Option<K>) {
        match &mut *self.deferred.borrow_mut() {
            Some(deferred) => self.put(deferred, head, body, keep),
            None => self.put(&mut self.queue.borrow_mut(), head, body, keep),
        }
    }

    fn put(&self, queue: &mut VecDeque<Message<K>>, head: &[u8], body: Option<Body>, keep: Option<K>) {
        if !self.closed.get() {
            self.unsent.set(self.unsent.get() + body.as_ref().map_or(0, Body::len));
            queue.push_back(Message { head: SmallVec::from_slice(head), body, keep });
            wake(&self.sender);
        }
    }

    /// Waits until few bytes wait to be sent: what is read no earlier than that is sent while it is in the processor's
    /// cache, and a peer that does not listen has nothing read for it. False when the box is closed. One at a time.
    pub async fn room(&self) -> bool {
        poll_fn(|cx| match self.closed.get() {
            closed if closed || self.unsent.get() < FULL => Poll::Ready(!closed),
            _ => {
                self.roomy.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
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
        [&self.sender, &self.idle, &self.roomy].into_iter().for_each(wake);
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
            let mut batch = self.batch(&heads);
            self.sending.set(true);
            let sent = batch.send(socket).await;
            self.sending.set(false);
            self.unsent.set(self.unsent.get() - batch.bodies);
            drop(batch);
            [&self.idle, &self.roomy].into_iter().for_each(wake);
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

    /// Takes as many messages as go together.
    fn batch(&self, heads: &Iov) -> Batch<K> {
        let mut batch = Batch::new(heads);
        let mut queue = self.queue.borrow_mut();
        while queue.front().is_some_and(|next| batch.takes(next))
            && let Some(message) = queue.pop_front()
        {
            batch.add(message);
        }
        batch
    }
}

/// Messages that are sent together: what is in memory with one call, and then pages of a file, which end a batch.
struct Batch<K> {
    heads: Iov,
    used: usize,
    /// Heads up to here are in `parts`: those without bodies between them are one part.
    joined: usize,
    parts: Vec<Iov>,
    loan: Option<Loan>,
    /// How many bytes are bodies.
    bodies: usize,
    keep: SmallVec<[K; 8]>,
}

impl<K> Batch<K> {
    /// Nothing yet; heads are copied to `heads`.
    fn new(heads: &Iov) -> Batch<K> {
        Batch {
            heads: heads.clone(),
            used: 0,
            joined: 0,
            parts: Vec::new(),
            loan: None,
            bodies: 0,
            keep: SmallVec::new(),
        }
    }

    /// Whether there is room for a message. A head that is longer than all of the room is sent from memory of its own.
    fn takes(&self, message: &Message<K>) -> bool {
        let len = message.head.len();
        self.parts.len() < BATCH && self.loan.is_none() && (len > HEADS || self.used + len <= HEADS)
    }

    fn add(&mut self, message: Message<K>) {
        let len = message.head.len();
        if len > HEADS {
            self.join();
            self.parts.push(Buffer::from_bytes(&message.head).iov(len));
        } else {
            self.used += self.heads.copy_from(self.used, &message.head);
        }
        self.bodies += message.body.as_ref().map_or(0, Body::len);
        self.keep.extend(message.keep);
        match message.body {
            Some(Body::Memory(memory)) => {
                self.join();
                self.parts.push(memory);
            }
            Some(Body::Loan(loan)) => self.loan = Some(loan),
            None => {}
        }
    }

    fn join(&mut self) {
        if self.used > self.joined {
            self.parts.push(self.heads.slice(self.joined, self.used - self.joined));
            self.joined = self.used;
        }
    }

    async fn send(&mut self, socket: &Socket) -> io::Result<()> {
        self.join();
        let bytes = Iov::concat(&self.parts);
        match &self.loan {
            None => socket.send_all(&bytes).await,
            Some(loan) => {
                socket.send_before(&bytes).await?;
                socket.send_loan(loan).await
            }
        }
    }
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Body::Memory(memory) => memory.len(),
            Body::Loan(loan) => loan.len(),
        }
    }
}

/// A message in pieces.
#[must_use]
pub struct Stream<'a, K>(&'a Outbox<K>);

impl<K> Stream<'_, K> {
    /// Queues a piece.
    pub fn push(&self, head: &[u8], body: Iov) {
        self.0.put(&mut self.0.queue.borrow_mut(), head, Some(Body::Memory(body)), None);
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
