//! The replies of a connection, to the requests that they belong to.
//!
//! The server is not trusted: a reply that nobody waits for, bytes outside of what was asked for, a payload longer than
//! it can be, all end the connection.

use super::client::Client;
use super::connection::Connection;
use super::requests::{Ask, Outcome};
use crate::block::aio::Inbox;
use crate::util::nbd::transmission::{
    Chunk, Headers, MAX_REPLY_HEADER, Reply, parse_error, parse_first_extent, parse_hole, reply_header_size,
};
use crate::util::nbd::{Command, error};
use std::io;

/// Longest payload of an error, in bytes.
const MAX_ERROR: u64 = 64 << 10;
/// Longest payload of a block status, in bytes.
const MAX_STATUS: u64 = 1 << 20;

/// Why nothing more will come.
#[derive(Debug)]
pub(super) enum Broken {
    /// The stream has ended, or the host says so.
    Lost(io::Error),
    /// The server does not keep to the protocol.
    Violation(&'static str),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Lost(error)
    }
}

/// Hands out replies until the connection ends.
pub(super) async fn receive(client: &Client, connection: &Connection, inbox: &mut Inbox) -> Broken {
    loop {
        if let Err(broken) = next(client, connection, inbox).await {
            return broken;
        }
    }
}

async fn next(client: &Client, connection: &Connection, inbox: &mut Inbox) -> Result<(), Broken> {
    let mut header = [0; MAX_REPLY_HEADER];
    inbox.exact(&mut header[..4]).await?;
    let magic = [header[0], header[1], header[2], header[3]];
    let size = reply_header_size(magic, connection.export.headers);
    let size = size.ok_or(Broken::Violation("a reply begins with another number"))?;
    inbox.exact(&mut header[4..size]).await?;
    let parsed = Reply::parse(&header[..size]);
    let (cookie, reply) = parsed.ok_or(Broken::Violation("a chunk of an unknown type"))?;
    let known = client.requests.replied(cookie);
    let (ask, mark, lasting) = known.ok_or(Broken::Violation("a reply that nobody waits for"))?;
    let reader =
        Reader { client, cookie, ask: &ask, extended: connection.export.headers == Headers::Extended };
    let done = match reply {
        Reply::Simple { error } => {
            if error == 0 && connection.export.headers != Headers::Simple && ask.command == Command::Read {
                return Err(Broken::Violation("a read was not answered in chunks"));
            }
            reader.simple(inbox, error).await?;
            true
        }
        Reply::Chunk { kind, done, len } => {
            reader.chunk(inbox, kind, len, connection.export.context).await?;
            done
        }
    };
    if done {
        let outcome = client.requests.sum(cookie).ok_or(Broken::Violation("a reply lacks something"))?;
        if matches!(outcome, Outcome::Refused(error::ESHUTDOWN, _)) {
            // It was not done, and another server may do it.
            return Err(Broken::Lost(io::Error::from_raw_os_error(libc::ESHUTDOWN)));
        }
        if lasting {
            connection.proven.set(true);
            client.answered();
            if matches!(outcome, Outcome::Done(_)) {
                client.acknowledged(&ask, mark);
            }
        }
        client.requests.finish(cookie, outcome);
    }
    Ok(())
}

/// Reads what one reply says.
struct Reader<'a> {
    client: &'a Client,
    cookie: u64,
    ask: &'a Ask,
    extended: bool,
}

impl Reader<'_> {
    async fn simple(&self, inbox: &mut Inbox, error: u32) -> Result<(), Broken> {
        if error != 0 {
            self.client.requests.note_error(self.cookie, error, "");
        } else if self.ask.command == Command::Read {
            self.data(inbox, self.ask.offset, self.ask.len).await?;
        }
        Ok(())
    }

    async fn chunk(
        &self,
        inbox: &mut Inbox,
        kind: Chunk,
        len: u64,
        context: Option<u32>,
    ) -> Result<(), Broken> {
        let is = |command| self.ask.command == command;
        match kind {
            Chunk::None if len == 0 => Ok(()),
            Chunk::Data if is(Command::Read) && len > 8 => {
                let offset = u64::from_be_bytes(inbox.array().await?);
                self.data(inbox, offset, len - 8).await
            }
            Chunk::Hole if is(Command::Read) && len == 12 => self.hole(inbox).await,
            Chunk::Status | Chunk::StatusExtended if is(Command::BlockStatus) && len <= MAX_STATUS => {
                if (kind == Chunk::StatusExtended) != self.extended {
                    return Err(Broken::Violation("extents of another width than agreed"));
                }
                self.status(inbox, len, context).await
            }
            Chunk::Error if len <= MAX_ERROR => {
                let payload = inbox.bytes(len as usize).await?;
                let error = parse_error(&payload);
                let (error, text) = error.ok_or(Broken::Violation("an error makes no sense"))?;
                self.client.requests.note_error(self.cookie, error, text);
                Ok(())
            }
            _ => Err(Broken::Violation("a chunk that is no answer to the request")),
        }
    }

    /// Zeros of a read.
    async fn hole(&self, inbox: &mut Inbox) -> Result<(), Broken> {
        let hole = parse_hole(&inbox.array::<12>().await?);
        let (offset, len) = hole.ok_or(Broken::Violation("a hole makes no sense"))?;
        let start = self.place(offset, len)?;
        self.note_received(len)?;
        self.ask.memory.iter().for_each(|memory| memory.fill(start, len as usize, 0));
        Ok(())
    }

    /// Extents, of which the first counts.
    async fn status(&self, inbox: &mut Inbox, len: u64, context: Option<u32>) -> Result<(), Broken> {
        let payload = inbox.bytes(len as usize).await?;
        let extent = parse_first_extent(&payload, self.extended);
        let (of, len, flags) = extent.ok_or(Broken::Violation("extents make no sense"))?;
        if Some(of) != context {
            return Err(Broken::Violation("extents of a context that was not chosen"));
        }
        self.client.requests.note_extent(self.cookie, (len, flags));
        Ok(())
    }

    /// Receives bytes of a read to their place.
    async fn data(&self, inbox: &mut Inbox, offset: u64, len: u64) -> Result<(), Broken> {
        let start = self.place(offset, len)?;
        if let Some(memory) = &self.ask.memory {
            inbox.exact_iov(&memory.slice(start, len as usize)).await?;
        }
        self.note_received(len)
    }

    /// No byte comes twice: a server could go on for ever.
    fn note_received(&self, len: u64) -> Result<(), Broken> {
        match self.client.requests.note_received(self.cookie, len) {
            true => Ok(()),
            false => Err(Broken::Violation("more bytes than were asked for")),
        }
    }

    /// Where a range of the export is in the memory of the read.
    fn place(&self, offset: u64, len: u64) -> Result<usize, Broken> {
        let start = offset.checked_sub(self.ask.offset);
        let inside =
            start.filter(|start| len > 0 && start.checked_add(len).is_some_and(|end| end <= self.ask.len));
        inside.map(|start| start as usize).ok_or(Broken::Violation("bytes that were not asked for"))
    }
}
