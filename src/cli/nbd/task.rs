//! What a command line of `cowvm nbd` asks for.

use crate::block::graph::snapshots::Selector;
use crate::block::options::OpenOptions;
use crate::block::protocol::nbd::Address;
use crate::block::tls;
use std::time::Duration;

/// What the command line asks for.
pub(super) enum Task {
    Help,
    Version,
    /// The names of the events that can be traced.
    Events,
    /// Over TLS, if there are credentials.
    List(Address, Option<tls::Client>),
    Disconnect(String),
    Serve(Box<Wish>),
}

/// How an image is to be served.
pub(super) struct Wish {
    pub(super) file: String,
    /// `file` is an option string.
    pub(super) described: bool,
    pub(super) open: OpenOptions,
    pub(super) address: Address,
    pub(super) shared: usize,
    pub(super) persistent: bool,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) handshake_limit: Option<Duration>,
    pub(super) offset: Option<String>,
    pub(super) allocation_depth: bool,
    pub(super) bitmaps: Vec<String>,
    pub(super) overlay: bool,
    pub(super) snapshot: Option<Selector>,
    pub(super) fork: bool,
    pub(super) pid_file: Option<String>,
    pub(super) device: Option<String>,
    /// Only over TLS.
    pub(super) tls: Option<tls::Server>,
}
