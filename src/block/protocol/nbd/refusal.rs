//! What a server's answers mean that are no good, in qemu-img's words.

use crate::block::{Error, Kind};
use crate::util::nbd::{option, reply};

/// The options that are sent, by the names that qemu-img shows.
const NAMES: &[(u32, &str)] = &[
    (option::LIST, "list"),
    (option::STARTTLS, "starttls"),
    (option::INFO, "info"),
    (option::GO, "go"),
    (option::STRUCTURED_REPLY, "structured reply"),
    (option::LIST_META_CONTEXT, "list meta context"),
    (option::SET_META_CONTEXT, "set meta context"),
    (option::EXTENDED_HEADERS, "extended headers"),
];

/// What a server's error to an option means.
pub(super) fn refused(which: u32, kind: u32, data: &[u8]) -> Error {
    let name = NAMES.iter().find(|(option, _)| *option == which).map_or("<unknown>", |(_, name)| name);
    let option = format!("option {which} ({name})");
    let (class, words) = match kind {
        reply::ERR_UNSUP => (Kind::Unsupported, format!("Unsupported option type {which} ({name})")),
        reply::ERR_POLICY => (Kind::Unsupported, format!("Denied by server for {option}")),
        reply::ERR_INVALID => (Kind::InvalidArgument, format!("Invalid parameters for {option}")),
        reply::ERR_PLATFORM => (Kind::Unsupported, format!("Server lacks support for {option}")),
        reply::ERR_TLS_REQD => (
            Kind::Unsupported,
            format!("TLS negotiation required before {option}\nDid you forget a valid tls-creds?"),
        ),
        reply::ERR_UNKNOWN => (Kind::NotFound, "Requested export not available".to_owned()),
        reply::ERR_SHUTDOWN => (Kind::Io, format!("Server shutting down before {option}")),
        reply::ERR_BLOCK_SIZE_REQD => {
            (Kind::Unsupported, format!("Server requires INFO_BLOCK_SIZE for {option}"))
        }
        _ => return broken(format!("Unknown error code when asking for {option}")),
    };
    let said = std::str::from_utf8(data).ok().filter(|text| !text.is_empty());
    let said = said.map_or(String::new(), |text| format!("\nserver reported: {text}"));
    Error::new(class, words + &said)
}

pub(super) fn malformed() -> Error {
    broken("a reply of the server makes no sense")
}

/// A server that does not speak the protocol.
pub(super) fn broken(message: impl Into<String>) -> Error {
    Error::invalid_format(message)
}
