//! The client's handshake: from the first byte of a new connection to the first request.
//!
//! ```text
//!   greeting ─▶ [STARTTLS] ─▶ EXTENDED_HEADERS or STRUCTURED_REPLY ─▶ SET_META_CONTEXT ─▶ GO
//!        └ oldstyle, or newstyle that is not fixed: EXPORT_NAME, and nothing of the above
//! ```
//!
//! Whatever the server sends is bounded: a message by [`MAX_DATA`], their number by [`MAX_REPLIES`], the time by the
//! caller.

use super::export::Export;
use super::refusal::{broken, malformed, refused};
use crate::block::aio::{Inbox, Socket};
use crate::block::{Buffer, Error, Kind, Result, tls};
use crate::util::nbd::handshake::{self, Info};
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{
    GREETING, NEWSTYLE, OLDSTYLE, OptionReply, ZEROES, context, hello, info, option, reply,
};
use std::io;
use std::rc::Rc;

/// Longest reply to an option, in bytes.
const MAX_DATA: u32 = 64 << 10;
/// Most replies to one option.
const MAX_REPLIES: usize = 10_000;

/// What a client wants of the export.
pub(super) struct Wish<'a> {
    pub(super) export: &'a str,
    /// The context of block status in place of `base:allocation`.
    pub(super) context: Option<&'a str>,
}

/// A connection in its handshake.
pub(super) struct Handshake {
    socket: Rc<Socket>,
    inbox: Inbox,
    headers: Headers,
    fixed: bool,
    no_zeroes: bool,
}

/// What a server is.
pub(super) enum Greeted {
    /// Options can be sent.
    Newstyle(Handshake),
    /// It has one export, and this is it.
    Oldstyle(Inbox, Export),
}

impl Handshake {
    /// Reads the server's greeting and answers it. With credentials, all that comes then goes over TLS.
    pub(super) async fn begin(socket: &Rc<Socket>, tls: Option<&tls::Client>) -> Result<Greeted> {
        let mut inbox = Inbox::new(socket);
        let magic = u64::from_be_bytes(array(&mut inbox).await?);
        if magic != GREETING {
            return Err(broken(format!("Bad initial magic received: 0x{magic:016x}")));
        }
        match u64::from_be_bytes(array(&mut inbox).await?) {
            NEWSTYLE => {}
            OLDSTYLE if tls.is_some() => return Err(no_tls()),
            OLDSTYLE => {
                let size = u64::from_be_bytes(array(&mut inbox).await?);
                let [_, _, flags @ ..] = array::<4>(&mut inbox).await?;
                inbox.skip(ZEROES as u64).await?;
                let export = Export::new(size, u16::from_be_bytes(flags));
                return Ok(Greeted::Oldstyle(inbox, export.checked()?));
            }
            magic => return Err(broken(format!("Bad server magic received: 0x{magic:016x}"))),
        }
        let flags = u16::from_be_bytes(array(&mut inbox).await?);
        let answer = flags & (hello::FIXED | hello::NO_ZEROES);
        send(socket, &u32::from(answer).to_be_bytes()).await?;
        let mut handshake = Handshake {
            socket: socket.clone(),
            inbox,
            headers: Headers::Simple,
            fixed: flags & hello::FIXED != 0,
            no_zeroes: flags & hello::NO_ZEROES != 0,
        };
        if let Some(tls) = tls {
            handshake.start_tls(tls).await?;
        }
        Ok(Greeted::Newstyle(handshake))
    }

    /// Goes on with TLS.
    async fn start_tls(&mut self, tls: &tls::Client) -> Result<()> {
        if !self.fixed {
            return Err(no_tls());
        }
        self.ask(option::STARTTLS, &[]).await?;
        match self.answer(option::STARTTLS).await? {
            (reply::ACK, _) => {}
            (kind, data) => return Err(refused(option::STARTTLS, kind, &data)),
        }
        // What somebody on the way has put behind the answer must not pass for what comes over TLS.
        if !self.inbox.is_empty() {
            return Err(broken("the server goes on without TLS"));
        }
        self.socket.start_tls(tls.session()?).await.map_err(|error| tls.explain(error))
    }

    /// Enters an export.
    pub(super) async fn enter(mut self, wish: &Wish<'_>) -> Result<(Inbox, Export)> {
        if !self.fixed {
            return self.enter_by_name(wish).await;
        }
        self.choose_headers().await?;
        let context = match self.headers {
            Headers::Simple => None,
            _ => self.choose_context(wish).await?,
        };
        if let (Some(name), None) = (wish.context, context) {
            return Err(Error::new(Kind::NotFound, format!("requested x-dirty-bitmap {name} not found")));
        }
        match self.go(option::GO, wish.export).await? {
            Some(export) => {
                let export = Export { headers: self.headers, context, ..export };
                Ok((self.inbox, export.checked()?))
            }
            None => self.enter_by_name(wish).await,
        }
    }

    /// Lists the exports: their names.
    pub(super) async fn list(&mut self) -> Result<Vec<String>> {
        self.ask(option::LIST, &[]).await?;
        let mut names = Vec::new();
        for _ in 0..MAX_REPLIES {
            match self.answer(option::LIST).await? {
                (reply::SERVER, data) => {
                    let name = handshake::parse_listed(&data).ok_or_else(malformed)?;
                    names.push(name.to_owned());
                }
                (reply::ACK, _) => return Ok(names),
                (kind, data) => return Err(refused(option::LIST, kind, &data)),
            }
        }
        Err(broken("the server's list of exports has no end"))
    }

    /// The contexts of an export.
    pub(super) async fn contexts(&mut self, export: &str) -> Result<Vec<String>> {
        self.ask(option::LIST_META_CONTEXT, &handshake::contexts_data(export, &[])).await?;
        let mut names = Vec::new();
        for _ in 0..MAX_REPLIES {
            match self.answer(option::LIST_META_CONTEXT).await? {
                (reply::META_CONTEXT, data) => {
                    let (_, name) = handshake::parse_context(&data).ok_or_else(malformed)?;
                    names.push(name.to_owned());
                }
                (reply::ACK, _) => return Ok(names),
                // A server without contexts has none.
                (kind, _) if kind & reply::ERROR != 0 => return Ok(names),
                (kind, data) => return Err(refused(option::LIST_META_CONTEXT, kind, &data)),
            }
        }
        Err(broken("the server's list of contexts has no end"))
    }

    /// The socket.
    pub(super) fn socket(&self) -> &Rc<Socket> {
        &self.socket
    }

    /// The form of replies, once [`Handshake::choose_headers`] has found it.
    pub(super) fn headers(&self) -> Headers {
        self.headers
    }

    /// Says goodbye.
    pub(super) async fn abort(&mut self) {
        // It need not be heard.
        let _ = self.ask(option::ABORT, &[]).await;
    }

    /// Agrees on the best form of headers that both know.
    pub(super) async fn choose_headers(&mut self) -> Result<()> {
        for (wanted, headers) in
            [(option::EXTENDED_HEADERS, Headers::Extended), (option::STRUCTURED_REPLY, Headers::Structured)]
        {
            self.ask(wanted, &[]).await?;
            match self.answer(wanted).await? {
                (reply::ACK, _) => {
                    self.headers = headers;
                    return Ok(());
                }
                (kind, _) if kind & reply::ERROR != 0 => {}
                _ => return Err(malformed()),
            }
        }
        Ok(())
    }

    async fn choose_context(&mut self, wish: &Wish<'_>) -> Result<Option<u32>> {
        let name = wish.context.unwrap_or(context::ALLOCATION);
        self.ask(option::SET_META_CONTEXT, &handshake::contexts_data(wish.export, &[name])).await?;
        let mut chosen = None;
        for _ in 0..MAX_REPLIES {
            match self.answer(option::SET_META_CONTEXT).await? {
                (reply::META_CONTEXT, data) => {
                    let (id, given) = handshake::parse_context(&data).ok_or_else(malformed)?;
                    if given != name {
                        return Err(broken(format!("the server answered with the context '{given}'")));
                    }
                    chosen = Some(id);
                }
                (reply::ACK, _) => return Ok(chosen),
                // GO says better what is wrong with an export.
                (kind, _) if kind & reply::ERROR != 0 => return Ok(None),
                _ => return Err(malformed()),
            }
        }
        Err(broken("the server's list of contexts has no end"))
    }

    /// Sends INFO or GO; `None` where the server does not know it.
    pub(super) async fn go(&mut self, which: u32, name: &str) -> Result<Option<Export>> {
        self.ask(which, &handshake::go_data(name, &[info::BLOCK_SIZE, info::DESCRIPTION])).await?;
        let (mut export, mut blocks, mut description) = (None, None, None);
        for _ in 0..MAX_REPLIES {
            match self.answer(which).await? {
                (reply::INFO, data) => match Info::parse(&data).ok_or_else(malformed)? {
                    Info::Export(size, flags) => export = Some(Export::new(size, flags)),
                    Info::BlockSize(sizes) => blocks = Some(sizes),
                    Info::Description(text) => description = Some(text),
                    Info::Name(_) | Info::Other => {}
                },
                (reply::ACK, _) => {
                    let export = export.ok_or_else(|| broken("the server did not tell the size"))?;
                    let said = Export { said_blocks: blocks, description, ..export };
                    return Ok(Some(Export { blocks: blocks.unwrap_or(said.blocks), ..said }));
                }
                (reply::ERR_UNSUP, _) => return Ok(None),
                (kind, data) => return Err(refused(which, kind, &data)),
            }
        }
        Err(broken("the server's facts have no end"))
    }

    /// The way in of old servers; what they do not like they answer by hanging up.
    async fn enter_by_name(mut self, wish: &Wish<'_>) -> Result<(Inbox, Export)> {
        self.ask(option::EXPORT_NAME, wish.export.as_bytes()).await?;
        let hung_up = |error: Error| {
            error.replaced("Requested export not available").remedy("ask the server for its exports")
        };
        let size = u64::from_be_bytes(array(&mut self.inbox).await.map_err(hung_up)?);
        let flags = u16::from_be_bytes(array(&mut self.inbox).await?);
        if !self.no_zeroes {
            self.inbox.skip(ZEROES as u64).await?;
        }
        let export = Export::new(size, flags);
        // Chunks may have been agreed on before.
        Ok((self.inbox, Export { headers: self.headers, ..export }.checked()?))
    }

    async fn ask(&mut self, option: u32, data: &[u8]) -> Result<()> {
        send(&self.socket, &handshake::option_message(option, data)).await
    }

    /// The next reply to `option`: its type and data.
    async fn answer(&mut self, option: u32) -> Result<(u32, Vec<u8>)> {
        let head = fields(&mut self.inbox, OptionReply::SIZE).await?;
        let head = OptionReply::parse(&head).ok_or_else(|| broken("Unexpected option reply magic"))?;
        if head.option != option {
            return Err(broken(format!("Unexpected option type {} (expected {option})", head.option)));
        }
        if head.len > MAX_DATA {
            return Err(broken("a reply of the server is too long"));
        }
        Ok((head.kind, fields(&mut self.inbox, head.len as usize).await?))
    }
}

async fn send(socket: &Socket, bytes: &[u8]) -> Result<()> {
    socket.send_all(&Buffer::from_bytes(bytes).iov(bytes.len())).await.map_err(Error::from_io)
}

async fn fields(inbox: &mut Inbox, len: usize) -> Result<Vec<u8>> {
    inbox.bytes(len).await.map_err(ended)
}

async fn array<const N: usize>(inbox: &mut Inbox) -> Result<[u8; N]> {
    inbox.array().await.map_err(ended)
}

fn ended(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            broken("Failed to read data: Unexpected end-of-file before all data were read")
        }
        _ => Error::from_io(error),
    }
}

fn no_tls() -> Error {
    Error::new(Kind::Unsupported, "Server does not support STARTTLS")
}
