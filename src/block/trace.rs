//! The events that the block layer reports to whoever listens (`imgtool -T`).
//!
//! Each is emitted where it happens by [`tracing::trace!`] under its name here, with the node or file and the numbers
//! of the request. Nobody listens: it costs one load of an atomic.

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
    ("step", "a step within a format, such as an allocation, by its name in blkdebug"),
];
