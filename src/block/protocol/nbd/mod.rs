//! The `nbd` protocol: an export of a server on the network, or behind a Unix socket.
//!
//! ```text
//!   driver    requests of the pipeline           target     names and addresses
//!   client    replay (the rule is there)         connect    sockets
//!   reconnect what a loss leads to               connection one of them, in use
//!   requests, journal, receive                   negotiate  the handshake
//! ```

mod client;
pub mod connect;
mod connection;
mod driver;
mod export;
mod journal;
mod list;
mod negotiate;
mod receive;
mod reconnect;
mod refusal;
mod requests;
mod target;

pub use driver::NbdDriver;
pub use export::Export;
pub use list::{Listed, list};
pub use target::{Address, Target};
