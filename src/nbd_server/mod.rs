//! The NBD server: exports of drives to clients, over TCP or a Unix socket.
//!
//! ```text
//!   listener's thread                                     drive's thread
//!   Server::run ─ accept ─▶ negotiate (a task each) ──fd──▶ transmit (a task each) ─▶ request (a task each)
//!                  │ oldest half-open one goes first            │ Budget: bytes in flight      │
//!                  └ handshake limit                            └ Outbox ◀─────────────────────┘ Local
//! ```
//!
//! A client is trusted with the bytes of the export that it was let into, and with nothing else:
//!
//! * where there are credentials, it is told and served nothing before TLS is on;
//! * until it has chosen an export it holds a descriptor and a little memory, for a limited time, and is sent away when
//!   too many others are like it;
//! * then its requests hold a limited number of bytes, of its own and of all together; when they are used up, its
//!   requests wait, and nobody else's;
//! * nothing more is read for it while it does not take what was read;
//! * whatever it sends that makes no sense is answered with an error or with the end of the connection.
//!
//! All connections of an export share its drive, so that a flush on one of them covers what all have written: the
//! promise of `NBD_FLAG_CAN_MULTI_CONN`.

mod background;
mod budget;
mod buffers;
mod export;
mod listen;
mod negotiate;
mod patience;
mod read;
mod request;
mod server;
mod status;
mod transmit;

pub use background::Background;
pub use export::{Context, Export, Offer};
pub use listen::{Listening, listen};
pub use server::{Server, Settings};
