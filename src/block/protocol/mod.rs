//! Protocol drivers: where the bytes of an image are.

pub mod file;
pub mod host_cdrom;
mod location;
pub mod nbd;
mod source;
pub mod stream;
pub mod vvfat;

pub(crate) use location::FILE;
pub use location::Location;
pub(crate) use source::Source;
