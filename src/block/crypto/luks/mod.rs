//! LUKS1 (LUKS On-Disk Format Specification 1.2.3): a header, eight key slots, then the payload.
//!
//! ```text
//!   header | slot 0's stripes | … | slot 7's stripes | payload: sectors under the master key
//!             ▲
//!             master key, split (af), encrypted under PBKDF2(passphrase of the slot)
//! ```
//!
//! A master key that comes out of a slot is right when its own PBKDF2 digest is the header's.

mod create;
mod header;
mod slots;
#[cfg(test)]
mod tests;

pub use create::CreateOptions;
pub use header::{HEADER_LEN, Header, SLOTS, STRIPES, Slot};
