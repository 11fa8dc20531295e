//! The handshake of servers that tests play themselves.

use cowvm::util::nbd::handshake::{Info, context_data, reply_message};
use cowvm::util::nbd::transmission::{ChunkWriter, Headers, simple_reply};
use cowvm::util::nbd::{BlockSizes, GREETING, NEWSTYLE, Request, context, export, option, reply};

/// What a server offers.
#[derive(Clone, Copy)]
pub(crate) struct Script {
    pub(crate) headers: Headers,
    /// Of [`export`].
    pub(crate) flags: u16,
    pub(crate) size: u64,
}

impl Script {
    /// What a server needs for every request but those that are durable by themselves.
    pub(crate) const FLAGS: u16 = export::HAS_FLAGS | export::FLUSH | export::WRITE_ZEROES | export::TRIM;

    /// The first message.
    pub(crate) fn greeting() -> Vec<u8> {
        [&GREETING.to_be_bytes()[..], &NEWSTYLE.to_be_bytes(), &3u16.to_be_bytes()].concat()
    }

    /// The messages that answer an option, and whether the handshake ends with them.
    pub(crate) fn answer(&self, which: u32) -> (Vec<Vec<u8>>, bool) {
        let say = |kind, data: &[u8]| reply_message(which, kind, data);
        let mut said = match which {
            option::EXTENDED_HEADERS if self.headers == Headers::Extended => Vec::new(),
            option::STRUCTURED_REPLY if self.headers == Headers::Structured => Vec::new(),
            option::SET_META_CONTEXT => vec![say(reply::META_CONTEXT, &context_data(1, context::ALLOCATION))],
            option::GO => vec![
                say(reply::INFO, &Info::Export(self.size, self.flags).to_bytes()),
                say(reply::INFO, &Info::BlockSize(BlockSizes::UNSAID).to_bytes()),
            ],
            _ => return (vec![say(reply::ERR_UNSUP, b"no")], false),
        };
        said.push(say(reply::ACK, &[]));
        (said, which == option::GO)
    }

    /// The reply to a request that has been done.
    pub(crate) fn done(&self, request: &Request) -> Vec<u8> {
        match self.headers {
            Headers::Simple => simple_reply(request.cookie, 0),
            headers => ChunkWriter { headers, cookie: request.cookie, offset: request.offset }.none(),
        }
    }
}
