//! The one error type that leaves the machine: what failed, and what the user can do about it.

use crate::block;
use crate::vmstate;
use std::fmt;

/// The machine's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the machine, said to the user in one sentence.
#[derive(Clone, Debug)]
pub struct Error {
    message: String,
    remedy: Option<String>,
    /// A change of a disk that cannot be taken back ([`block::Kind::Undecided`]).
    undecided: bool,
}

impl Error {
    /// An error whose cause is `message` (no trailing full stop).
    pub fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), remedy: None, undecided: false }
    }

    /// A refused KVM call: `what` could not be done.
    pub fn kvm(what: &str, source: kvm_ioctls::Error) -> Error {
        Error::new(format!("KVM cannot {what}: {}", block::error::errno_text(&source.into())))
    }

    /// Whether a disk was changed all the same, and cannot be put back.
    pub(super) fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// Puts `what` and a colon before the message.
    #[must_use]
    pub fn context(mut self, what: &str) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Says what the user can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Error {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(f, "{}; {remedy}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}

impl From<vmstate::Error> for Error {
    fn from(source: vmstate::Error) -> Error {
        Error::new(source.to_string())
    }
}

impl From<block::Error> for Error {
    fn from(source: block::Error) -> Error {
        let name = source.file().map(|file| file.display().to_string());
        let message = match name {
            // qemu-img's words for it take two lines.
            Some(name) if source.kind() == block::Kind::Locked => {
                format!("{name} is in use by another program")
            }
            Some(name) if !source.message().contains(&name) => format!("{name}: {}", source.message()),
            _ => source.message().to_owned(),
        };
        let undecided = source.kind() == block::Kind::Undecided;
        Error { message, remedy: source.hint().map(str::to_owned), undecided }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Kind;

    #[test]
    fn a_block_error_names_file_cause_and_remedy_once() {
        let locked =
            block::Error::new(Kind::Locked, "Failed\nIs another").path("a.img").remedy("stop the other");
        assert_eq!(Error::from(locked).to_string(), "a.img is in use by another program; stop the other");
        let error = block::Error::new(Kind::Corrupt, "no clusters").path("a.img").remedy("repair it");
        assert_eq!(Error::from(error).to_string(), "a.img: no clusters; repair it");
        let named = block::Error::new(Kind::Io, "Could not open 'a.img': no").path("a.img");
        assert_eq!(Error::from(named).to_string(), "Could not open 'a.img': no");
    }
}
