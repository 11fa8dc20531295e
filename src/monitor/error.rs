//! Why a command was not done, for users and programs.

use crate::{block, vm};
use std::fmt;

/// The monitor's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error with the class that QMP gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// "GenericError", "CommandNotFound", "DeviceNotFound".
    pub class: &'static str,
    /// One sentence.
    pub description: String,
    /// In the human monitor it stands alone, without "Error: " in front.
    pub plain: bool,
}

impl Error {
    /// An error of no special class.
    pub fn new(description: impl Into<String>) -> Error {
        Error { class: "GenericError", description: description.into(), plain: false }
    }

    /// An error that the human monitor shows as it is.
    pub fn plain(description: impl Into<String>) -> Error {
        Error { plain: true, ..Error::new(description) }
    }

    /// An error of a class.
    pub fn of_class(class: &'static str, description: impl Into<String>) -> Error {
        Error { class, ..Error::new(description) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl From<vm::Error> for Error {
    fn from(error: vm::Error) -> Error {
        Error::new(error.to_string())
    }
}

impl From<block::Error> for Error {
    fn from(error: block::Error) -> Error {
        vm::Error::from(error).into()
    }
}
