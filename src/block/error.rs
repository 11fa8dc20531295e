//! The one error type that leaves the block layer: a kind to match on, a message in the words that users of
//! qemu-img know, the file, what to do about it, and the host's error number where there was one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The block layer's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for code that must tell cases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host refused or failed a system call; [`Error::errno`] says how.
    Io,
    /// The file system or the image is full.
    NoSpace,
    /// Another process holds the image.
    Locked,
    /// The bytes are not what the format demands.
    InvalidFormat,
    /// Larger than readers accept.
    TooLarge,
    /// The image uses a feature that this build does not have.
    Unsupported,
    /// The image contradicts itself; nothing was written.
    Corrupt,
    /// A write to something opened read-only.
    ReadOnly,
    /// What was named is not there.
    NotFound,
    /// The drive is empty.
    NoMedium,
    /// A request outside the disk, or not aligned as it must be.
    OutOfRange,
    /// An option or a name that makes no sense.
    InvalidArgument,
    /// A change that the host may or may not have made durable, and that cannot be taken back: it is there for now.
    Undecided,
}

/// An error of the block layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
    path: Option<PathBuf>,
    remedy: Option<String>,
    errno: Option<i32>,
}

impl Error {
    /// The same, of a change that cannot be taken back: [`Kind::Undecided`].
    #[must_use]
    pub fn undecided(self) -> Error {
        Error { kind: Kind::Undecided, ..self }
    }

    /// An error of `kind` whose cause is `message` (no trailing full stop).
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), path: None, remedy: None, errno: None }
    }

    /// An option or a name that makes no sense.
    pub fn invalid_argument(message: impl Into<String>) -> Error {
        Error::new(Kind::InvalidArgument, message)
    }

    /// An option `name` that cannot have this value.
    pub fn not_accepted(name: &str, value: &str) -> Error {
        Error::invalid_argument(format!("Parameter '{name}' does not accept value '{value}'"))
    }

    /// Bytes that are not what the format demands.
    pub fn invalid_format(message: impl Into<String>) -> Error {
        Error::new(Kind::InvalidFormat, message)
    }

    /// A failed system call, said as the C library says it ("No such file or directory").
    pub fn from_io(source: io::Error) -> Error {
        let errno = source.raw_os_error();
        let kind = match errno {
            Some(libc::ENOSPC | libc::EDQUOT) => Kind::NoSpace,
            Some(libc::EROFS) => Kind::ReadOnly,
            Some(libc::ENOMEDIUM) => Kind::NoMedium,
            _ => Kind::Io,
        };
        Error { kind, message: errno_text(&source), path: None, remedy: None, errno }
    }

    /// Puts `what` and a colon before the message: "Could not open 'a': No such file or directory".
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Says it in other words.
    #[must_use]
    pub fn replaced(mut self, message: impl Into<String>) -> Error {
        self.message = message.into();
        self
    }

    /// Says it as the C library does, with nothing but what the error number tells.
    #[must_use]
    pub fn terse(self) -> Error {
        let text = errno_text(&io::Error::from_raw_os_error(self.errno()));
        self.replaced(text)
    }

    /// Names the file. The first name stays: the innermost is the one that failed.
    #[must_use]
    pub fn path(mut self, path: impl AsRef<Path>) -> Error {
        self.path.get_or_insert_with(|| path.as_ref().to_owned());
        self
    }

    /// Says what the user can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Error {
        self.remedy.get_or_insert_with(|| remedy.into());
        self
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The cause, without file and remedy.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The file that failed, where one is known.
    pub fn file(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What to do about it, where something can be done.
    pub fn hint(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The host's error number; kinds that never came from the host have the nearest one.
    pub fn errno(&self) -> i32 {
        self.errno.unwrap_or(match self.kind {
            Kind::Io | Kind::Corrupt | Kind::Undecided => libc::EIO,
            Kind::NoSpace => libc::ENOSPC,
            Kind::Locked => libc::EAGAIN,
            Kind::TooLarge => libc::EFBIG,
            Kind::InvalidFormat | Kind::InvalidArgument | Kind::OutOfRange => libc::EINVAL,
            Kind::NotFound => libc::ENOENT,
            Kind::NoMedium => libc::ENOMEDIUM,
            Kind::Unsupported => libc::ENOTSUP,
            Kind::ReadOnly => libc::EPERM,
        })
    }
}

/// The C library's words for an error number, without Rust's "(os error N)".
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(end)) => text[..end].to_owned(),
        _ => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Error {
        Error::from_io(source)
    }
}
