//! Filters: drivers between a format and its file. Both are for tests of what a format does when its host fails
//! ([`blkdebug`]) or dies ([`log_writes`]).

pub mod blkdebug;
pub mod log_writes;

pub use blkdebug::BlkDebug;
pub use log_writes::LogWrites;
