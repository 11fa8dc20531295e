//! Replies to reads.
//!
//! Nothing is read before the client has taken what was read for it earlier. Long parts that the host has in its page
//! cache are lent to the socket; the rest is read into memory of the connection.

use super::budget::{PIECE, Permit};
use super::request::Answer;
use super::status;
use crate::block::aio::{Body, Loan};
use crate::block::{Error, Iov, Result};
use crate::util::nbd::context;
use crate::util::nbd::transmission::{Headers, simple_reply};
use crate::util::nbd::{Request, command};

/// From this length on, in bytes, lending is cheaper than a copy.
const LONG: u64 = 64 << 10;

/// What is done about a read that failed: the permit that pays for the answer.
type Failed = (Error, Permit);

impl Answer {
    /// Answers a read.
    pub(super) async fn read(&self, permit: Permit) {
        if !self.connection.may_read().await {
            return;
        }
        let whole = self.connection.headers == Headers::Simple || self.request.flags & command::DF != 0;
        match (self.request.len as usize, whole) {
            (0, true) if self.connection.headers == Headers::Simple => {
                self.push(&self.success(), None, permit);
            }
            (0, _) => self.push(&self.chunks.none(), None, permit),
            (len, true) if len > PIECE => self.read_long(permit).await,
            (_, true) => self.read_whole(permit).await,
            (_, false) => self.read_in_pieces(permit).await,
        }
    }

    /// Reads all into one message.
    async fn read_whole(&self, permit: Permit) {
        let Request { offset, len, cookie, .. } = self.request;
        let body = match self.lend(offset, len, len).await {
            Some(loan) => Ok(Body::Loan(loan)),
            None => self.read_range(offset, len).await.map(Body::Memory),
        };
        match body {
            Err(error) => self.fail(&error, permit),
            Ok(body) if self.connection.headers == Headers::Simple => {
                self.push(&simple_reply(cookie, 0), Some(body), permit);
            }
            Ok(body) => self.push(&self.chunks.data(offset, len, true), Some(body), permit),
        }
    }

    /// Reads into one message that is too long to be held as a whole: a piece after the other, with no other message
    /// between them. Once it has begun, an error cannot be told but by hanging up.
    async fn read_long(&self, permit: Permit) {
        let outbox = &self.connection.outbox;
        let _alone = self.connection.long.lock().await;
        let stream = outbox.stream().await;
        let (offset, len) = (self.request.offset, self.request.len);
        for at in (0..len).step_by(PIECE) {
            let part = match self.read_range(offset + at, (len - at).min(PIECE as u64)).await {
                Ok(part) => part,
                Err(error) => {
                    drop(stream);
                    return if at == 0 { self.fail(&error, permit) } else { outbox.close() };
                }
            };
            let head = match (at, self.connection.headers) {
                (0, Headers::Simple) => simple_reply(self.request.cookie, 0),
                (0, _) => self.chunks.data(offset, len, true),
                _ => Vec::new(),
            };
            stream.push(&head, part);
            stream.sent().await;
            if outbox.is_closed() {
                return;
            }
        }
        drop(permit);
    }

    /// Reads piece by piece, each a few chunks; what is not there is not sent.
    async fn read_in_pieces(&self, first: Permit) {
        let (mut at, end) = (self.request.offset, self.request.offset + self.request.len);
        let mut permit = Some(first);
        while at < end {
            let len = (end - at).min(PIECE as u64);
            let permit = match permit.take() {
                Some(permit) => permit,
                None if !self.connection.may_read().await => return,
                None => self.connection.budget.acquire(len as usize).await,
            };
            match self.read_piece(at, len, permit).await {
                Ok(()) => at += len,
                Err((error, permit)) => return self.fail(&error, permit),
            }
        }
    }

    async fn read_piece(&self, at: u64, len: u64, permit: Permit) -> std::result::Result<(), Failed> {
        let extents = match status::allocation(&self.connection.local, at, len, usize::MAX).await {
            Ok(extents) => extents,
            Err(error) => return Err((error, permit)),
        };
        let mut offset = at;
        for extent in extents {
            if extent.flags & context::ZERO != 0 {
                let head = self.chunks.hole(offset, extent.len as u32, self.is_last(offset + extent.len));
                self.connection.outbox.push(&head, None, None);
            } else if let Err(error) = self.read_data(offset, extent.len).await {
                return Err((error, permit));
            }
            offset += extent.len;
        }
        // Behind all that it pays for.
        self.push(&[], None, permit);
        Ok(())
    }

    /// Sends data in chunks.
    async fn read_data(&self, offset: u64, len: u64) -> Result<()> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (len, body) = match self.lend(at, end - at, LONG).await {
                Some(loan) => (loan.len() as u64, Body::Loan(loan)),
                // All at once: it may have to come from storage.
                None => (end - at, Body::Memory(self.read_range(at, end - at).await?)),
            };
            let head = self.chunks.data(at, len, self.is_last(at + len));
            self.connection.outbox.push(&head, Some(body), None);
            at += len;
        }
        Ok(())
    }

    /// Whether a chunk that ends there is the last of the reply.
    fn is_last(&self, end: u64) -> bool {
        end == self.request.offset + self.request.len
    }

    /// Lends the first bytes of a range, as many as `least`.
    async fn lend(&self, offset: u64, len: u64, least: u64) -> Option<Loan> {
        let lender = self.connection.lender.as_ref().filter(|_| len >= LONG)?;
        self.connection.local.lend(offset, len, least, lender).await
    }

    async fn read_range(&self, offset: u64, len: u64) -> Result<Iov> {
        let memory = self.connection.buffers.take(len as usize);
        self.connection.local.read(offset, &memory).await?;
        Ok(memory)
    }
}
