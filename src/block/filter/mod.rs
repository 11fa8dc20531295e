//! Filters: drivers over another node. Two stand between a format and its file, for tests of what a format does when
//! its host fails ([`blkdebug`]) or dies ([`log_writes`]); one shows a part of a disk ([`window`]).

pub mod blkdebug;
pub mod log_writes;
pub mod window;

pub use blkdebug::BlkDebug;
pub use log_writes::LogWrites;
pub use window::Window;
