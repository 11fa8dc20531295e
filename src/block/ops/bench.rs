//! A simple benchmark: equal requests at regular steps, some of them at a time.

use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::iov::BUFFER_ALIGN;
use crate::block::{Buffer, Error, Kind, Result};
use std::rc::Rc;

/// Most memory that requests in flight may take, in bytes.
const MAX_MEMORY: u64 = 4 << 30;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many requests.
    pub count: u64,
    /// How many of them at a time.
    pub depth: u64,
    /// Where the first one begins, in bytes.
    pub offset: u64,
    /// Bytes of a request.
    pub len: u64,
    /// How far apart they begin, in bytes; behind the end of the disk they begin again.
    pub step: u64,
    /// Writes of this byte; reads without.
    pub write: Option<u8>,
    /// Flush whenever the number of requests that are left is a multiple of this; 0 never.
    pub flush_interval: u64,
    /// Wait for all requests before a flush.
    pub drain: bool,
}

/// Sends `load` to `node`, each request as a task of its own, as a guest's are.
///
/// # Errors
/// The first failure; a request that reaches behind the end of the disk is one. What was sent before is over then.
pub async fn run(engine: &Rc<Engine>, node: &Rc<Node>, load: &Load) -> Result<()> {
    let slots = load.depth.min(load.count);
    // Each has a buffer of whole pages, and what it takes to wait for its end.
    let waiting = size_of_val(&act(node, load, Action::Flush)) as u64;
    let buffer = load.len.checked_next_multiple_of(BUFFER_ALIGN as u64).unwrap_or(u64::MAX);
    if slots.saturating_mul(buffer.saturating_add(waiting)) > MAX_MEMORY {
        let message = format!("{slots} requests of {} bytes at a time need too much memory", load.len);
        return Err(Error::new(Kind::InvalidArgument, message).remedy("choose a smaller depth"));
    }
    let (ended, ends) = async_channel::unbounded();
    let (left, offset, idle) = (load.count, load.offset, Vec::new());
    Sender { engine, node, load, left, offset, slots, running: 0, idle, ended, ends, outcome: Ok(()) }
        .send()
        .await
}

struct Sender<'a> {
    engine: &'a Rc<Engine>,
    node: &'a Rc<Node>,
    load: &'a Load,
    left: u64,
    offset: u64,
    /// How many requests may still be started now.
    slots: u64,
    /// How many things are in flight.
    running: u64,
    /// Buffers of requests that are over.
    idle: Vec<Buffer>,
    /// Where each thing's end is told, and heard.
    ended: async_channel::Sender<Result<Option<Buffer>>>,
    ends: async_channel::Receiver<Result<Option<Buffer>>>,
    outcome: Result<()>,
}

/// One thing in flight.
enum Action {
    Transfer(Buffer, u64),
    Flush,
}

impl Sender<'_> {
    async fn send(mut self) -> Result<()> {
        loop {
            let mut flush = false;
            while self.left > 0 && self.slots > 0 && !flush {
                let request = self.next();
                self.start(request);
                flush = self.load.flush_interval > 0 && self.left.is_multiple_of(self.load.flush_interval);
            }
            while flush && self.load.drain && self.finish_one().await {}
            if flush && self.outcome.is_ok() {
                self.start(Action::Flush);
            }
            if !self.finish_one().await {
                return self.outcome;
            }
        }
    }

    fn start(&mut self, action: Action) {
        let (node, load, ended) = (self.node.clone(), *self.load, self.ended.clone());
        self.running += 1;
        self.engine.spawn(async move {
            // Nobody listens any more where the whole was given up.
            let _ = ended.try_send(act(&node, &load, action).await);
        });
    }

    /// Waits until something in flight is over; false when there was nothing. After a failure nothing more is started.
    async fn finish_one(&mut self) -> bool {
        if self.running == 0 {
            return false;
        }
        self.running -= 1;
        match self.ends.recv().await {
            Ok(Ok(buffer)) => {
                self.slots += u64::from(buffer.is_some());
                self.idle.extend(buffer);
            }
            Ok(Err(error)) => {
                self.left = 0;
                self.outcome = self.outcome.clone().and(Err(error));
            }
            // It has a sender itself.
            Err(_) => return false,
        }
        true
    }

    /// The next request.
    fn next(&mut self) -> Action {
        let (len, at) = (self.load.len as usize, self.offset);
        self.left -= 1;
        self.slots -= 1;
        let size = self.node.size();
        self.offset = if size <= self.load.step { 0 } else { (at + self.load.step) % size };
        let buffer = self.idle.pop().unwrap_or_else(|| {
            let buffer = Buffer::new(len);
            buffer.iov(len).fill(0, len, self.load.write.unwrap_or(0));
            buffer
        });
        Action::Transfer(buffer, at)
    }
}

/// Does it, and returns the buffer.
async fn act(node: &Rc<Node>, load: &Load, action: Action) -> Result<Option<Buffer>> {
    let Action::Transfer(buffer, offset) = action else {
        return node.flush().await.map(|()| None);
    };
    if offset.checked_add(load.len).is_none_or(|end| end > node.size()) {
        return Err(Error::from_io(std::io::Error::from_raw_os_error(libc::EIO)));
    }
    let iov = buffer.iov(load.len as usize);
    match load.write {
        Some(_) => node.write(offset, &iov).await?,
        None => node.read(offset, &iov).await?,
    }
    Ok(Some(buffer))
}
