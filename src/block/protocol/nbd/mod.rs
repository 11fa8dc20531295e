//! The `nbd` protocol: an export of a server on the network, or behind a Unix socket.
//!
//! ```text
//!   driver    requests of the pipeline           target     names and addresses
//!   client    links, replay (the rule is there)  connect    sockets
//!   requests, journal, receive                   negotiate  the handshake
//! ```

mod client;
pub mod connect;
mod driver;
mod journal;
mod list;
mod negotiate;
mod receive;
mod requests;
mod target;

pub use driver::NbdDriver;
pub use list::{Listed, list};
pub use negotiate::Export;
pub use target::{Address, Target};
