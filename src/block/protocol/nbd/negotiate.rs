//! The client's handshake: from the first byte of a new connection to the first request.
//!
//! ```text
//!   greeting ─▶ [STARTTLS] ─▶ EXTENDED_HEADERS or STRUCTURED_REPLY ─▶ SET_META_CONTEXT ─▶ GO
//!        └ oldstyle, or newstyle that is not fixed: EXPORT_NAME, and nothing of the above
//! ```
//!
//! Whatever the server sends is bounded: a message by [`MAX_DATA`], their number by [`MAX_REPLIES`], the time by the
//! caller.

use crate::block::aio::{Inbox, Socket};
use crate::block::{Buffer, Error, Kind, Result};
use crate::util::nbd::handshake::{self, Info};
use crate::util::nbd::transmission::Headers;
use crate::util::nbd::{
    BlockSizes, GREETING, NEWSTYLE, OLDSTYLE, OptionReply, ZEROES, context, export, hello, info, option,
    reply,
};
use std::rc::Rc;

/// Longest reply to an option, in bytes.
const MAX_DATA: u32 = 64 << 10;
/// Most replies to one option.
const MAX_REPLIES: usize = 10_000;

/// What is known of an export once its server has let us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// In bytes.
    pub size: u64,
    /// Of [`export`].
    pub flags: u16,
    /// Constraints of requests.
    pub blocks: BlockSizes,
    /// What the server said of them, if it did.
    pub said_blocks: Option<BlockSizes>,
    /// How requests and replies look.
    pub headers: Headers,
    /// The number of the context of block status that was chosen.
    pub context: Option<u32>,
    /// A text for people.
    pub description: Option<String>,
}

impl Export {
    fn new(size: u64, flags: u16) -> Export {
        let flags = if flags & export::HAS_FLAGS == 0 { 0 } else { flags };
        Export {
            size,
            flags,
            blocks: BlockSizes::UNSAID,
            said_blocks: None,
            headers: Headers::Simple,
            context: None,
            description: None,
        }
    }

    /// Whether it has the transmission flag.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

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
    /// Reads the server's greeting and answers it.
    pub(super) async fn begin(socket: &Rc<Socket>) -> Result<Greeted> {
        let mut inbox = Inbox::new(socket);
        let magic = number(&mut inbox).await?;
        if magic != GREETING {
            return Err(broken(format!("Bad initial magic received: 0x{magic:016x}")));
        }
        match number(&mut inbox).await? {
            NEWSTYLE => {}
            OLDSTYLE => {
                let size = number(&mut inbox).await?;
                let flags = fields(&mut inbox, 4).await?;
                inbox.skip(ZEROES as u64).await?;
                let export = Export::new(size, u16::from_be_bytes([flags[2], flags[3]]));
                return Ok(Greeted::Oldstyle(inbox, checked(export)?));
            }
            magic => return Err(broken(format!("Bad server magic received: 0x{magic:016x}"))),
        }
        let flags = fields(&mut inbox, 2).await?;
        let flags = u16::from_be_bytes([flags[0], flags[1]]);
        let answer = flags & (hello::FIXED | hello::NO_ZEROES);
        send(socket, &u32::from(answer).to_be_bytes()).await?;
        Ok(Greeted::Newstyle(Handshake {
            socket: socket.clone(),
            inbox,
            headers: Headers::Simple,
            fixed: flags & hello::FIXED != 0,
            no_zeroes: flags & hello::NO_ZEROES != 0,
        }))
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
                Ok((self.inbox, checked(export)?))
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

    /// The contexts of an export that match `query`.
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
                (reply::ERR_TLS_REQD, data) => return Err(refused(wanted, reply::ERR_TLS_REQD, &data)),
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
        let size = number(&mut self.inbox).await.map_err(hung_up)?;
        let flags = fields(&mut self.inbox, 2).await?;
        if !self.no_zeroes {
            self.inbox.skip(ZEROES as u64).await?;
        }
        let export = Export::new(size, u16::from_be_bytes([flags[0], flags[1]]));
        // Chunks may have been agreed on before.
        Ok((self.inbox, checked(Export { headers: self.headers, ..export })?))
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

/// Refuses what no request could be made to.
fn checked(export: Export) -> Result<Export> {
    if i64::try_from(export.size).is_err() {
        return Err(Error::new(Kind::TooLarge, "the export is larger than a disk can be"));
    }
    if !export.blocks.make_sense() {
        return Err(broken("the server's block sizes make no sense"));
    }
    Ok(export)
}

async fn send(socket: &Socket, bytes: &[u8]) -> Result<()> {
    socket.send_all(&Buffer::from_bytes(bytes).iov(bytes.len())).await.map_err(Error::from_io)
}

async fn fields(inbox: &mut Inbox, len: usize) -> Result<Vec<u8>> {
    inbox.bytes(len).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            broken("Failed to read data: Unexpected end-of-file before all data were read")
        }
        _ => Error::from_io(error),
    })
}

async fn number(inbox: &mut Inbox) -> Result<u64> {
    let bytes = fields(inbox, 8).await?;
    Ok(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// What a server's error to an option means, in qemu-img's words.
fn refused(which: u32, kind: u32, data: &[u8]) -> Error {
    let (class, words) = match kind {
        reply::ERR_UNSUP => (Kind::Unsupported, format!("Unsupported option type {which}")),
        reply::ERR_POLICY => (Kind::Unsupported, format!("Denied by server for option {which}")),
        reply::ERR_INVALID => (Kind::InvalidArgument, format!("Invalid parameters for option {which}")),
        reply::ERR_PLATFORM => (Kind::Unsupported, format!("Server lacks support for option {which}")),
        reply::ERR_TLS_REQD => (Kind::Unsupported, format!("Server requires TLS for option {which}")),
        reply::ERR_UNKNOWN => (Kind::NotFound, "Requested export not available".to_owned()),
        reply::ERR_SHUTDOWN => (Kind::Io, format!("Server shutting down before option {which}")),
        reply::ERR_BLOCK_SIZE_REQD => {
            (Kind::Unsupported, format!("Server requires INFO_BLOCK_SIZE for option {which}"))
        }
        _ => return broken(format!("Unknown error code when asking for option {which}")),
    };
    let said = std::str::from_utf8(data).ok().filter(|text| !text.is_empty());
    let said = said.map_or(String::new(), |text| format!("\nserver reported: {text}"));
    Error::new(class, words + &said)
}

fn malformed() -> Error {
    broken("a reply of the server makes no sense")
}

/// A server that does not speak the protocol.
fn broken(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidFormat, message)
}
