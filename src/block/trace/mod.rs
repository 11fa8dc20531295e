//! The events that the block layer reports to whoever listens (`-T` of `imgtool` and `nbd`).
//!
//! Each is emitted where it happens by [`tracing::trace!`] under its name here, with the node or file and the numbers
//! of the request. Nobody listens: it costs one load of an atomic.

mod listen;

pub use listen::{Trace, list};

/// Name and meaning of every event.
pub const EVENTS: &[(&str, &str)] = &[
    ("block_discard", "a range is no longer needed"),
    ("block_flush", "all that was written is to be durable"),
    ("block_read", "a range is read"),
    ("block_truncate", "the size is changed"),
    ("block_write", "a range is written"),
    ("block_write_compressed", "clusters are written compressed"),
    ("block_write_zeroes", "a range is to read as zeros"),
    ("image_close", "an image, or a file of it, is closed"),
    ("image_create", "a new image is made"),
    ("image_open", "an image of a chain was opened"),
    ("nbd_back", "the server of an export is back, and all changes that it may have lost are made again"),
    ("nbd_lost", "the connection to the server of an export was lost"),
    ("step", "a step within a format, such as an allocation, by its name in blkdebug"),
];
