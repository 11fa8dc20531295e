//! The block layer: images as graphs of nodes, run by one thread a drive.
//!
//! ```text
//!   data path                                   control path
//!   virtio-blk, INT 13h, imgtool convert        monitor, imgtool
//!        │ Iov (guest memory or a buffer)           │ Drive::call, open, create, check
//!        ▼                                          ▼
//!   Node::read / write …  (graph::io: the one   open, registry, probe
//!        │ request pipeline)                        │
//!        ▼                                          ▼
//!   format driver (raw, qcow2)  ──child──▶  protocol driver (file)
//!                                               │
//!                                               ▼
//!                                         aio::Engine (io_uring, inline, threads)
//! ```
//!
//! Everything of one graph runs on one thread: nodes are `Rc`, state is in `Cell` and `RefCell`, and no
//! borrow is held across an await. [`drive::Drive`] is the handle that other threads hold.

pub mod aio;
pub mod cluster_map;
pub mod crypto;
pub mod describe;
pub mod drive;
pub mod encryption;
pub mod error;
pub mod filename;
pub mod filter;
pub mod format;
pub mod graph;
pub mod iov;
pub mod open;
pub mod ops;
pub mod options;
pub mod probe;
pub mod protocol;
pub mod range_lock;
pub mod secret;
pub mod tls;
pub mod trace;

pub use error::{Error, Kind, Result};
pub use iov::{AlignedBytes, Buffer, Iov};
