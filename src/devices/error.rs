//! What can go wrong while the machine is put together. The guest's doings are no errors: they are answered
//! by the device's own protocol.

use crate::block;
use std::io;

/// The devices' result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the devices.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two devices claim the same addresses.
    #[error("the addresses {base:#x} to {end:#x} are taken already")]
    Overlap {
        /// The first address.
        base: u64,
        /// The last address.
        end: u64,
    },
    /// An empty range, or one that passes the end of the address space.
    #[error("a range of {len:#x} bytes at {base:#x} is not possible")]
    BadRange {
        /// The first address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// All 31 slots of the PCI bus hold a device.
    #[error("the PCI bus has no free slot")]
    NoSlot,
    /// The windows of the PCI bus are full.
    #[error("the PCI bus has no room for {0:#x} bytes of registers")]
    NoWindow(u64),
    /// The host refused an eventfd or KVM an event or a route.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// A disk's option that makes no sense.
    #[error("{0}")]
    Option(String),
    /// The block layer's error.
    #[error(transparent)]
    Block(#[from] block::Error),
}

impl Error {
    /// For `map_err`: the host's refusal of `what`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Host { what, source: source.into() }
    }
}
