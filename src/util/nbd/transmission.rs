//! Requests and replies ("Transmission phase").
//!
//! ```text
//!   request             extended        simple reply    chunk               extended chunk
//!   0   4  magic        the same        0  4  magic     0   4  magic        the same
//!   4   2  flags        with a          4  4  error     4   2  flags        with
//!   6   2  command      length of       8  8  cookie    6   2  type         16  8  offset
//!   8   8  cookie       8 bytes         16    data      8   8  cookie       24  8  length
//!   16  8  offset                                       16  4  length       32     payload
//!   24  4  length                                       20     payload
//!   28     data
//! ```

use super::Fields;

const REQUEST: u32 = 0x2560_9513;
const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;
const EXTENDED_CHUNK: u32 = 0x6e8a_278c;

/// Flag of a chunk: it is the last of its reply.
const DONE: u16 = 1;

/// Types of chunks ("Structured reply types").
mod chunk {
    pub(super) const NONE: u16 = 0;
    pub(super) const DATA: u16 = 1;
    pub(super) const HOLE: u16 = 2;
    pub(super) const STATUS: u16 = 5;
    pub(super) const STATUS_EXTENDED: u16 = 6;
    pub(super) const ERROR_BIT: u16 = 1 << 15;
    pub(super) const ERROR: u16 = ERROR_BIT | 1;
}

/// What was agreed on: how requests and replies look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headers {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, chunks (and simple replies, but to reads and block status).
    Structured,
    /// Extended requests, extended chunks.
    Extended,
}

impl Headers {
    /// Size of a request's header.
    pub fn request_size(self) -> usize {
        if self == Headers::Extended { 32 } else { 28 }
    }
}

/// What a request asks for ("Request types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes of the export.
    Read,
    /// Changes bytes.
    Write,
    /// Says goodbye; no reply.
    Disconnect,
    /// Makes completed writes durable.
    Flush,
    /// The range is not needed any more.
    Trim,
    /// The range will be read.
    Cache,
    /// Makes the range read as zeros.
    WriteZeroes,
    /// What the range is.
    BlockStatus,
}

impl Command {
    const ALL: [Command; 8] = [
        Command::Read,
        Command::Write,
        Command::Disconnect,
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
    ];

    /// The command of a number.
    pub fn from_number(number: u16) -> Option<Command> {
        Command::ALL.get(usize::from(number)).copied()
    }
}

/// A request, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of [`super::command`].
    pub flags: u16,
    /// The number of the command; see [`Command::from_number`].
    pub command: u16,
    /// What the replies repeat.
    pub cookie: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

impl Request {
    /// The header.
    pub fn to_bytes(self, headers: Headers) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        let extended = headers == Headers::Extended;
        out.extend((if extended { EXTENDED_REQUEST } else { REQUEST }).to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        match extended {
            true => out.extend(self.len.to_be_bytes()),
            false => out.extend((self.len as u32).to_be_bytes()),
        }
        out
    }

    /// Reads a header of [`Headers::request_size`] bytes; `None` for another magic number.
    pub fn parse(bytes: &[u8], headers: Headers) -> Option<Request> {
        let mut fields = Fields(bytes);
        let extended = headers == Headers::Extended;
        if fields.u32()? != (if extended { EXTENDED_REQUEST } else { REQUEST }) {
            return None;
        }
        Some(Request {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: if extended { fields.u64()? } else { u64::from(fields.u32()?) },
        })
    }
}

/// What a reply's header says; for chunks, of what their payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The whole answer; the data of a read follows if the error is 0.
    Simple {
        /// Of [`super::error`]; 0: none.
        error: u32,
    },
    /// A part of the answer.
    Chunk {
        /// What it is.
        kind: Chunk,
        /// No other follows.
        done: bool,
        /// Bytes of payload.
        len: u64,
    },
}

/// What a chunk carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing: all is well.
    None,
    /// An offset of 8 bytes, and data.
    Data,
    /// An offset of 8 bytes and a length of 4: zeros.
    Hole,
    /// Extents of 32 bits.
    Status,
    /// Extents of 64 bits.
    StatusExtended,
    /// An error: [`parse_error`].
    Error,
}

/// The longest header of a reply.
pub const MAX_REPLY_HEADER: usize = 32;

/// How long the header of a reply is that begins with these 4 bytes; `None` if replies of this connection never
/// begin so.
pub fn reply_header_size(magic: [u8; 4], headers: Headers) -> Option<usize> {
    match (u32::from_be_bytes(magic), headers) {
        (SIMPLE_REPLY, Headers::Simple | Headers::Structured) => Some(16),
        (CHUNK, Headers::Structured) => Some(20),
        (EXTENDED_CHUNK, Headers::Extended) => Some(32),
        _ => None,
    }
}

impl Reply {
    /// Reads a header: the cookie and what the reply is. `None` for chunks of an unknown type that are no errors.
    pub fn parse(bytes: &[u8]) -> Option<(u64, Reply)> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        if magic == SIMPLE_REPLY {
            let error = fields.u32()?;
            return Some((fields.u64()?, Reply::Simple { error }));
        }
        let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        let len = if magic == EXTENDED_CHUNK {
            // The offset repeats the request's.
            fields.u64()?;
            fields.u64()?
        } else {
            u64::from(fields.u32()?)
        };
        let kind = match kind {
            chunk::NONE => Chunk::None,
            chunk::DATA => Chunk::Data,
            chunk::HOLE => Chunk::Hole,
            chunk::STATUS => Chunk::Status,
            chunk::STATUS_EXTENDED => Chunk::StatusExtended,
            error if error & chunk::ERROR_BIT != 0 => Chunk::Error,
            _ => return None,
        };
        Some((cookie, Reply::Chunk { kind, done: flags & DONE != 0, len }))
    }
}

/// A simple reply's header.
pub fn simple_reply(cookie: u64, error: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    out.extend(SIMPLE_REPLY.to_be_bytes());
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out
}

/// Writes the chunks of one reply.
#[derive(Clone, Copy, Debug)]
pub struct ChunkWriter {
    /// Extended or not.
    pub headers: Headers,
    /// The request's.
    pub cookie: u64,
    /// The request's.
    pub offset: u64,
}

impl ChunkWriter {
    fn header(&self, done: bool, kind: u16, len: u64) -> Vec<u8> {
        let extended = self.headers == Headers::Extended;
        let mut out = Vec::with_capacity(48);
        out.extend((if extended { EXTENDED_CHUNK } else { CHUNK }).to_be_bytes());
        out.extend((if done { DONE } else { 0 }).to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        if extended {
            out.extend(self.offset.to_be_bytes());
            out.extend(len.to_be_bytes());
        } else {
            out.extend((len as u32).to_be_bytes());
        }
        out
    }

    /// The end of a reply that has nothing to say.
    pub fn none(&self) -> Vec<u8> {
        self.header(true, chunk::NONE, 0)
    }

    /// The head of `len` bytes of data at `offset`.
    pub fn data(&self, offset: u64, len: u64, done: bool) -> Vec<u8> {
        let mut out = self.header(done, chunk::DATA, 8 + len);
        out.extend(offset.to_be_bytes());
        out
    }

    /// `len` zeros at `offset`.
    pub fn hole(&self, offset: u64, len: u32, done: bool) -> Vec<u8> {
        let mut out = self.header(done, chunk::HOLE, 12);
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        out
    }

    /// An error, and why.
    pub fn error(&self, error: u32, message: &str) -> Vec<u8> {
        let message = message.as_bytes();
        let message = &message[..message.len().min(super::MAX_STRING)];
        let mut out = self.header(true, chunk::ERROR, 6 + message.len() as u64);
        out.extend(error.to_be_bytes());
        out.extend((message.len() as u16).to_be_bytes());
        out.extend(message);
        out
    }

    /// Extents (length, flags) of one context.
    pub fn status(&self, context: u32, extents: &[(u64, u64)], done: bool) -> Vec<u8> {
        let mut out;
        if self.headers == Headers::Extended {
            out = self.header(done, chunk::STATUS_EXTENDED, 8 + 16 * extents.len() as u64);
            out.extend(context.to_be_bytes());
            out.extend((extents.len() as u32).to_be_bytes());
            extents
                .iter()
                .for_each(|(len, flags)| out.extend([len.to_be_bytes(), flags.to_be_bytes()].concat()));
        } else {
            out = self.header(done, chunk::STATUS, 4 + 8 * extents.len() as u64);
            out.extend(context.to_be_bytes());
            for (len, flags) in extents {
                out.extend([(*len as u32).to_be_bytes(), (*flags as u32).to_be_bytes()].concat());
            }
        }
        out
    }
}

/// Reads the payload of an error: the error and its text.
pub fn parse_error(payload: &[u8]) -> Option<(u32, &str)> {
    let mut fields = Fields(payload);
    let (error, len) = (fields.u32()?, fields.u16()?);
    let text = std::str::from_utf8(fields.bytes(usize::from(len))?).unwrap_or("");
    // An error is an error.
    (error != 0).then_some((error, text))
}

/// Reads the payload of a hole: offset and length.
pub fn parse_hole(payload: &[u8]) -> Option<(u64, u64)> {
    let mut fields = Fields(payload);
    let hole = (fields.u64()?, u64::from(fields.u32()?));
    fields.end()?;
    Some(hole)
}

/// Reads the payload of a block status: the context and the first extent (length, flags); its length is not 0.
pub fn parse_first_extent(payload: &[u8], extended: bool) -> Option<(u32, u64, u64)> {
    let mut fields = Fields(payload);
    let context = fields.u32()?;
    let unit = if extended { 16 } else { 8 };
    if extended {
        let count = fields.u32()? as usize;
        if count.checked_mul(unit)? != fields.0.len() {
            return None;
        }
    }
    if fields.0.is_empty() || !fields.0.len().is_multiple_of(unit) {
        return None;
    }
    let (len, flags) = match extended {
        true => (fields.u64()?, fields.u64()?),
        false => (u64::from(fields.u32()?), u64::from(fields.u32()?)),
    };
    (len > 0).then_some((context, len, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_back_in_both_forms() {
        for headers in [Headers::Structured, Headers::Extended] {
            let request = Request { flags: 1, command: 6, cookie: 7, offset: 1 << 40, len: 99 };
            let bytes = request.to_bytes(headers);
            assert_eq!(bytes.len(), headers.request_size());
            assert_eq!(Request::parse(&bytes, headers), Some(request));
            assert_eq!(Request::parse(&bytes[..20], headers), None);
        }
    }

    #[test]
    fn chunks_are_read_back_in_both_forms() {
        for headers in [Headers::Structured, Headers::Extended] {
            let writer = ChunkWriter { headers, cookie: 5, offset: 100 };
            let split = |message: &[u8]| {
                let size = reply_header_size(message[..4].try_into().unwrap(), headers).unwrap();
                (Reply::parse(&message[..size]).unwrap(), message[size..].to_vec())
            };
            let ((cookie, reply), payload) = split(&writer.hole(100, 50, false));
            assert_eq!((cookie, reply), (5, Reply::Chunk { kind: Chunk::Hole, done: false, len: 12 }));
            assert_eq!(parse_hole(&payload), Some((100, 50)));
            let (_, payload) = split(&writer.error(5, "broken"));
            assert_eq!(parse_error(&payload), Some((5, "broken")));
            let (_, payload) = split(&writer.status(9, &[(4096, 3), (1, 0)], true));
            assert_eq!(parse_first_extent(&payload, headers == Headers::Extended), Some((9, 4096, 3)));
        }
    }

    #[test]
    fn replies_of_another_form_than_agreed_are_refused() {
        let simple: [u8; 4] = simple_reply(0, 0)[..4].try_into().unwrap();
        assert_eq!(reply_header_size(simple, Headers::Simple), Some(16));
        assert_eq!(reply_header_size(simple, Headers::Extended), None);
        assert_eq!(reply_header_size([0; 4], Headers::Structured), None);
        assert_eq!(parse_first_extent(&[0; 12], false), None);
    }
}
