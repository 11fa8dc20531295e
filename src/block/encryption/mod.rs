//! Encrypted data and key slots in files: what formats with encryption have in common, on top of
//! [`super::crypto`].
//!
//! | module | owns |
//! | --- | --- |
//! | `transfer` | guest bytes through a bounce buffer, on worker threads where they are many |
//! | `slots` | a LUKS header in a file: opening it, changing its key slots in the right order |

mod slots;
mod transfer;

pub use slots::{KeySlots, SlotChange};
pub use transfer::Cipherer;

use super::{Error, Kind};

/// The refusal of whoever has no key, in QEMU's words. `option` is what would name it.
pub fn no_key(option: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("Parameter '{option}' is required for cipher"))
        .remedy("define a secret with --object secret,id=ID,file=FILE and name it with --image-opts")
}
