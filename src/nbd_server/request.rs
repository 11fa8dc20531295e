//! One request: what it does to the drive, and its reply.

use super::budget::Permit;
use super::export::Context;
use super::status::{self, Extent};
use super::transmit::{Connection, Running};
use crate::block::aio::{Body, Inbox};
use crate::block::{Error, Iov, Kind, Result};
use crate::util::nbd::transmission::{ChunkWriter, Headers, simple_reply};
use crate::util::nbd::{Command, Request, command, error};
use std::io;
use std::rc::Rc;

/// Most extents of a block status.
const MAX_EXTENTS: usize = 1024;
/// How much CACHE reads at a time, in bytes.
pub(super) const CACHE_PIECE: u64 = 1 << 20;
/// How much one CACHE reads at most, in bytes: it is a hint, and no more than this is worth one.
const MAX_CACHE: u64 = 32 << 20;

/// The answer to a request.
pub(super) struct Answer {
    pub(super) connection: Rc<Connection>,
    pub(super) request: Request,
    pub(super) chunks: ChunkWriter,
    /// Those of the connection's contexts that the request is about, if it names some.
    contexts: Option<Vec<(u32, Context)>>,
    _running: Running,
}

impl Answer {
    pub(super) fn new(connection: Rc<Connection>, request: Request) -> Answer {
        let chunks =
            ChunkWriter { headers: connection.headers, cookie: request.cookie, offset: request.offset };
        let _running = connection.begin();
        Answer { connection, request, chunks, contexts: None, _running }
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    /// Takes the payload of a block status: how long the range is that it asks about, and the contexts. False where it
    /// makes no sense. ("`NBD_CMD_BLOCK_STATUS`")
    pub(super) async fn take_contexts(&mut self, inbox: &mut Inbox) -> io::Result<bool> {
        let known = &self.connection.contexts;
        let payload = self.request.len;
        if payload < 8 || payload > 8 + 4 * known.len() as u64 || !payload.is_multiple_of(4) {
            inbox.skip(payload).await?;
            return Ok(false);
        }
        self.request.len = u64::from_be_bytes(inbox.array().await?);
        let mut chosen = Vec::new();
        for _ in 0..(payload - 8) / 4 {
            let id = u32::from_be_bytes(inbox.array().await?);
            chosen.extend(known.iter().find(|(known, _)| *known == id).cloned());
        }
        let sense = chosen.len() as u64 == (payload - 8) / 4 && !chosen.is_empty();
        self.contexts = Some(chosen);
        Ok(sense)
    }

    /// Does what `command` says, and answers. Writes come through [`Answer::write`].
    pub(super) async fn run(&self, command: Command, permit: Permit) {
        let local = &self.connection.local;
        let Request { offset, len, flags, .. } = self.request;
        let done = match command {
            Command::Read => return self.read(permit).await,
            Command::BlockStatus => return self.status(permit).await,
            Command::Flush => local.flush().await,
            Command::Trim => local.discard(offset, len).await,
            Command::Cache => self.cache().await,
            Command::WriteZeroes if len == 0 => Ok(()),
            Command::WriteZeroes => {
                let may_unmap = flags & command::NO_HOLE == 0;
                match flags & command::FAST_ZERO {
                    0 => local.write_zeroes(offset, len, may_unmap).await,
                    _ => local.write_zeroes_fast(offset, len, may_unmap).await,
                }
            }
            Command::Write | Command::Disconnect => Ok(()),
        };
        self.finish_write(done, permit).await;
    }

    /// Writes a part of the request's data.
    pub(super) async fn write(&self, at: u64, data: &Iov) -> Result<()> {
        match data.len() {
            0 => Ok(()),
            _ => self.connection.local.write(self.request.offset + at, data).await,
        }
    }

    /// Answers a request that changes something, once that is durable if it must be.
    pub(super) async fn finish_write(&self, done: Result<()>, permit: Permit) {
        let done = match done {
            Ok(()) if self.request.flags & command::FUA != 0 => self.connection.local.flush().await,
            other => other,
        };
        match done {
            Ok(()) => self.push(&self.success(), None, permit),
            Err(error) => self.fail(&error, permit),
        }
    }

    /// Says no.
    pub(super) fn refuse(&self, error: u32, why: &str, permit: Permit) {
        let head = match self.connection.headers {
            Headers::Simple => simple_reply(self.request.cookie, error),
            _ => self.chunks.error(error, why),
        };
        self.push(&head, None, permit);
    }

    pub(super) fn fail(&self, why: &Error, permit: Permit) {
        let error = match why.kind() {
            Kind::Unsupported => error::ENOTSUP,
            _ => error::from_errno(why.errno()),
        };
        self.refuse(error, why.message(), permit);
    }

    pub(super) fn success(&self) -> Vec<u8> {
        match self.connection.headers {
            Headers::Extended => self.chunks.none(),
            _ => simple_reply(self.request.cookie, 0),
        }
    }

    /// Sends a message, the last one that `permit` pays for.
    pub(super) fn push(&self, head: &[u8], body: Option<Body>, permit: Permit) {
        self.connection.outbox.push(head, body, Some(permit));
    }

    async fn status(&self, permit: Permit) {
        let one = self.request.flags & command::REQ_ONE != 0;
        let limit = if one { 1 } else { MAX_EXTENTS };
        let contexts = self.contexts.as_ref().unwrap_or(&self.connection.contexts);
        let mut message = Vec::new();
        for (index, (id, context)) in contexts.iter().enumerate() {
            let (local, Request { offset, len, .. }) = (&self.connection.local, self.request);
            match status::extents(local, context, offset, len, limit).await {
                Ok(extents) => {
                    let extents: Vec<(u64, u64)> =
                        extents.iter().map(|&Extent { len, flags }| (len, flags)).collect();
                    message.extend(self.chunks.status(*id, &extents, index + 1 == contexts.len()));
                }
                Err(error) => {
                    message.extend(self.chunks.error(error::from_errno(error.errno()), error.message()));
                    break;
                }
            }
        }
        self.push(&message, None, permit);
    }

    /// Reads a range for the host's page cache to have it.
    async fn cache(&self) -> Result<()> {
        let Request { offset, len, .. } = self.request;
        let len = len.min(MAX_CACHE);
        let buffer = self.connection.buffers.take(len.min(CACHE_PIECE) as usize);
        let end = offset + len;
        let mut at = offset;
        while at < end && !self.connection.outbox.is_closed() {
            let part = buffer.slice(0, (end - at).min(CACHE_PIECE) as usize);
            self.connection.local.read(at, &part).await?;
            at += part.len() as u64;
        }
        Ok(())
    }
}
