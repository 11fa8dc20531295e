//! Protocol drivers: where the bytes of an image are.

pub mod file;
pub mod nbd;
mod source;

pub(crate) use source::Source;
