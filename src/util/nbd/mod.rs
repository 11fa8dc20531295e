//! The NBD protocol on the wire, as both sides speak it: names of its numbers here, layouts in the modules.
//!
//! ```text
//!   handshake      server greets ─▶ client flags ─▶ options and their replies ─▶ GO (or EXPORT_NAME)
//!   transmission   requests with a cookie each ─▶ replies in any order, whole or in chunks
//! ```
//!
//! All integers are big-endian. Section names in the modules are those of the protocol's text ("The NBD protocol",
//! doc/proto.md of the reference implementation). Parsers take bytes of strangers: they answer `None` for what is too
//! short or too long, and never allocate by a number that they read.

pub mod handshake;
pub mod transmission;

pub use handshake::{BlockSizes, OptionHeader, OptionReply};
pub use transmission::{Command, Reply, Request};

/// The port that is meant where none is named.
pub const DEFAULT_PORT: u16 = 10809;
/// Longest name of an export or a context, and longest text for people, in bytes ("Values").
pub const MAX_STRING: usize = 4096;
/// The longest transfer that every server takes, in bytes ("Block size constraints").
pub const MAX_TRANSFER: u32 = 32 << 20;

/// First bytes of a server ("Newstyle negotiation").
pub const GREETING: u64 = 0x4e42_444d_4147_4943;
/// Second number of a newstyle server, and first of every option.
pub const NEWSTYLE: u64 = 0x4948_4156_454f_5054;
/// Second number of an oldstyle server.
pub const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
/// Zeros behind the facts of an export, where nobody spared them.
pub const ZEROES: usize = 124;

/// Handshake flags of the server ("Handshake flags") and of the client ("Client flags"): the same bits.
pub mod hello {
    /// The fixed newstyle negotiation: unknown options are answered.
    pub const FIXED: u16 = 1;
    /// No zeros behind the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 2;
}

/// Options ("Option types").
pub mod option {
    /// Choose an export and begin; the answer has no header.
    pub const EXPORT_NAME: u32 = 1;
    /// Say goodbye.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go on with TLS.
    pub const STARTTLS: u32 = 5;
    /// Facts of an export.
    pub const INFO: u32 = 6;
    /// Facts of an export, and begin.
    pub const GO: u32 = 7;
    /// Replies may come in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which contexts of block status there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Which of them are wanted.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Lengths and block status of 64 bits.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options ("Option reply types").
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export of the list.
    pub const SERVER: u32 = 2;
    /// A fact of an export.
    pub const INFO: u32 = 3;
    /// A context.
    pub const META_CONTEXT: u32 = 4;
    /// All errors have this bit.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The server's owner does not want it.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// What came with the option makes no sense.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// The server's host cannot do it.
    pub const ERR_PLATFORM: u32 = ERROR | 4;
    /// Not without TLS.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// Not without asking for block sizes.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// Too much came with the option.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    /// Not without extended headers.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Facts of an export ("Option reply types", `NBD_REP_INFO`).
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Its name, as the server has it.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Constraints of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export ("Transmission flags").
pub mod export {
    /// The others mean something.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH.
    pub const FLUSH: u16 = 1 << 2;
    /// The FUA flag.
    pub const FUA: u16 = 1 << 3;
    /// TRIM.
    pub const TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES.
    pub const WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag of reads.
    pub const DF: u16 = 1 << 7;
    /// What one connection has flushed all of them see, and so on ("Transmission flags").
    pub const MULTI_CONN: u16 = 1 << 8;
    /// CACHE.
    pub const CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag of WRITE_ZEROES.
    pub const FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS may name the contexts that it is about, in a payload.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

    /// The flags by the names that qemu-nbd lists them by.
    pub const NAMES: &[(u16, &str)] = &[
        (READ_ONLY, "readonly"),
        (FLUSH, "flush"),
        (FUA, "fua"),
        (1 << 4, "rotational"),
        (TRIM, "trim"),
        (WRITE_ZEROES, "zeroes"),
        (DF, "df"),
        (MULTI_CONN, "multi"),
        (1 << 9, "resize"),
        (CACHE, "cache"),
        (FAST_ZERO, "fast-zero"),
        (BLOCK_STATUS_PAYLOAD, "block-status-payload"),
    ];
}

/// Flags of requests ("Command flags").
pub mod command {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// Zeros keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The data in one chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeros only if that is faster than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload behind the header (extended headers).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Errors of requests ("Error values"); they are Linux's numbers.
pub mod error {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// The medium failed.
    pub const EIO: u32 = 5;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// The request makes no sense.
    pub const EINVAL: u32 = 22;
    /// No space.
    pub const ENOSPC: u32 = 28;
    /// Too large for one chunk.
    pub const EOVERFLOW: u32 = 75;
    /// Not in the way that was asked for.
    pub const ENOTSUP: u32 = 95;
    /// The server is going down.
    pub const ESHUTDOWN: u32 = 108;

    /// The value that says a host's error number best.
    pub fn from_errno(errno: i32) -> u32 {
        match errno {
            libc::EPERM | libc::EACCES | libc::EROFS => EPERM,
            libc::ENOMEM => ENOMEM,
            libc::EINVAL => EINVAL,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ENOSPC,
            libc::EOVERFLOW => EOVERFLOW,
            libc::EOPNOTSUPP => ENOTSUP,
            libc::ESHUTDOWN => ESHUTDOWN,
            _ => EIO,
        }
    }

    /// The host's error number; what the protocol does not know is EINVAL there ("Error values").
    pub fn to_errno(error: u32) -> i32 {
        match error {
            EPERM | EIO | ENOMEM | EINVAL | ENOSPC | EOVERFLOW | ENOTSUP | ESHUTDOWN => error as i32,
            _ => libc::EINVAL,
        }
    }
}

/// Contexts of block status ("Metadata querying").
pub mod context {
    /// Holes and zeros.
    pub const ALLOCATION: &str = "base:allocation";
    /// How deep in the backing chain the content is decided (QEMU).
    pub const DEPTH: &str = "qemu:allocation-depth";
    /// Dirty bitmaps by name (QEMU).
    pub const BITMAP: &str = "qemu:dirty-bitmap:";

    /// Of [`ALLOCATION`]: no space is in use.
    pub const HOLE: u64 = 1;
    /// Of [`ALLOCATION`]: reads as zeros.
    pub const ZERO: u64 = 2;
    /// Of [`BITMAP`]: dirty.
    pub const DIRTY: u64 = 1;
}

/// Takes big-endian fields off the front of a message.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its length in four bytes, [`MAX_STRING`] bytes of UTF-8 at most.
    pub fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        if len > MAX_STRING {
            return None;
        }
        std::str::from_utf8(self.bytes(len)?).ok()
    }

    /// All that is left, as a string.
    pub fn rest(self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok().filter(|text| text.len() <= MAX_STRING)
    }

    /// Nothing may be left.
    pub fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Puts a string behind its length.
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text.as_bytes());
}
