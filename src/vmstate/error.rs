//! What can be wrong with a VM state. Nothing has been changed when one of these is seen.

/// The result of taking a VM state apart.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a VM state is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes at its start are of something else.
    #[error("this is not a VM state of cowvm")]
    Foreign,
    /// Written by a later cowvm.
    #[error("{what} has version {version}, and this cowvm reads versions up to {known}")]
    Newer {
        /// What it is the version of.
        what: String,
        /// The one that was found.
        version: u32,
        /// The latest that can be read.
        known: u32,
    },
    /// A checksum or a length does not fit.
    #[error("the VM state is damaged: {0}")]
    Damaged(String),
    /// A sound state, but not of this machine.
    #[error("{0}")]
    Mismatch(String),
    /// More than the format has room for.
    #[error("the VM state is too large: {0}")]
    TooLarge(String),
}

impl Error {
    /// A damage.
    pub fn damaged(what: impl Into<String>) -> Error {
        Error::Damaged(what.into())
    }

    /// A state that does not fit this machine.
    pub fn mismatch(what: impl Into<String>) -> Error {
        Error::Mismatch(what.into())
    }
}
