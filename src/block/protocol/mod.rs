//! Protocol drivers: where the bytes of an image are.

pub mod file;
pub mod nbd;
mod source;
pub mod stream;
pub mod vvfat;

pub(crate) use source::Source;
