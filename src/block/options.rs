//! How an image is opened: format, access, cache mode.

use crate::block::protocol::Location;
use crate::block::secret::Secrets;
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use crate::util::size::{SizeError, parse_size};

/// What the host's page cache and write cache may do (`cache=` of QEMU's `-drive`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMode {
    /// O_DIRECT: the host's page cache is passed by.
    pub direct: bool,
    /// The guest sees a write cache and flushes it itself; without it every write is followed by a flush.
    pub writeback: bool,
    /// Flushes never reach the host.
    pub no_flush: bool,
}

impl CacheMode {
    /// QEMU's default.
    pub const WRITEBACK: CacheMode = CacheMode { direct: false, writeback: true, no_flush: false };
    /// For files whose loss costs nothing: temporary disks, conversion targets until they are complete.
    pub const UNSAFE: CacheMode = CacheMode { direct: false, writeback: true, no_flush: true };

    /// Reads one of `none`, `writeback`, `writethrough`, `directsync`, `unsafe` (and `off` for `none`).
    pub fn parse(word: &str) -> Result<CacheMode> {
        let (direct, writeback, no_flush) = match word {
            "none" | "off" => (true, true, false),
            "writeback" => (false, true, false),
            "writethrough" => (false, false, false),
            "directsync" => (true, false, false),
            "unsafe" => (false, true, true),
            _ => {
                return Err(Error::new(Kind::InvalidArgument, format!("invalid cache option: {word}"))
                    .remedy("use none, writeback, writethrough, directsync or unsafe"));
            }
        };
        Ok(CacheMode { direct, writeback, no_flush })
    }
}

/// What is done about writes of nothing but zeros (`detect-zeroes=` of QEMU's `-drive`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are not looked for.
    #[default]
    Off,
    /// They become requests for zeros; the space stays.
    On,
    /// They become requests for zeros that may give back the space.
    Unmap,
}

/// What is done about a request that fails (`werror=` and `rerror=` of QEMU's `-drive`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest hears of it.
    Report,
    /// The guest is told that all is well.
    Ignore,
    /// The guest is stopped; the request is tried again when it goes on.
    Stop,
    /// The same where the host has no room, else the guest hears of it.
    Enospc,
}

/// What is done about the requests of a drive that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorPolicy {
    /// About reads.
    pub read: OnError,
    /// About all that changes the disk, and flushes.
    pub write: OnError,
}

impl Default for ErrorPolicy {
    /// QEMU's default.
    fn default() -> ErrorPolicy {
        ErrorPolicy { read: OnError::Report, write: OnError::Enospc }
    }
}

impl ErrorPolicy {
    /// Reads the words of `rerror=` and `werror=`.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words.
    pub fn parse(read: Option<&str>, write: Option<&str>) -> Result<ErrorPolicy> {
        let parse = |word: &str, which: &str| match word {
            "report" => Ok(OnError::Report),
            "ignore" => Ok(OnError::Ignore),
            "stop" => Ok(OnError::Stop),
            "enospc" if which == "write" => Ok(OnError::Enospc),
            _ => Err(Error::new(Kind::InvalidArgument, format!("'{word}' invalid {which} error action"))),
        };
        let default = ErrorPolicy::default();
        Ok(ErrorPolicy {
            read: read.map_or(Ok(default.read), |word| parse(word, "read"))?,
            write: write.map_or(Ok(default.write), |word| parse(word, "write"))?,
        })
    }
}

/// A backing file of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// That of the top image.
    Nearest,
    /// The one of this name, seen from the image above it.
    Named(String),
}

/// A drive whose medium can be exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removable {
    /// Its media are read-only, and it has a door.
    Cdrom,
    /// A disk that can be taken out at any time.
    Floppy,
}

/// How to open an image and the chain below it.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The format's name; `None` probes.
    pub format: Option<String>,
    /// Never write. The chain below the top image is always opened so, but for `base`.
    pub read_only: bool,
    /// A backing file that is to be written too (`commit`).
    pub base: Option<Base>,
    /// Cache mode of the top image; backing files share all of it.
    pub cache: CacheMode,
    /// Discards reach the host file (`discard=unmap`).
    pub unmap: bool,
    /// Whether writes of nothing but zeros are looked for.
    pub detect_zeroes: DetectZeroes,
    /// Take no locks, and open although others write (`-U`).
    pub force_share: bool,
    /// Keep other processes from writing even where the format could bear it (a disk of a running guest).
    pub exclusive: bool,
    /// Whether a qcow2 image's refcounts may be written late; `None` does as the image says.
    pub lazy_refcounts: Option<bool>,
    /// Open it for a check or a repair alone: damage is no reason to refuse it.
    pub check: bool,
    /// What is left to the drivers: options of the format by their names in QEMU, and those of the backing file
    /// with `backing.` in front. A name that a driver does not know is refused.
    pub driver: Options,
    /// What passphrases are taken from.
    pub secrets: Secrets,
    /// Data will neither be read nor written: an encrypted image needs no key.
    pub metadata_only: bool,
    /// Leave the image as it is: writes go to a temporary overlay (`snapshot=on`). For drives.
    pub snapshot: bool,
    /// The medium can be exchanged. For drives.
    pub removable: Option<Removable>,
    /// What becomes of requests that fail (`werror=`, `rerror=`). For drives.
    pub errors: ErrorPolicy,
    /// Open the backing file and the data file too. `info` looks at one file alone.
    pub backing: bool,
    /// The external data file, in place of the one that the top image names (`data-file.filename=`).
    pub data_file: Option<String>,
    /// Where the top image is, if a description said it; else its name does.
    pub location: Option<Location>,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            format: None,
            read_only: true,
            base: None,
            cache: CacheMode::WRITEBACK,
            unmap: false,
            detect_zeroes: DetectZeroes::Off,
            force_share: false,
            exclusive: false,
            lazy_refcounts: None,
            check: false,
            driver: Options::default(),
            secrets: Secrets::default(),
            metadata_only: false,
            snapshot: false,
            removable: None,
            errors: ErrorPolicy::default(),
            backing: true,
            data_file: None,
            location: None,
        }
    }
}

/// Reads the value of an option that is a size in bytes.
///
/// # Errors
/// [`Kind::InvalidArgument`] in QEMU's words.
pub fn size_option(name: &str, value: &str) -> Result<u64> {
    parse_size(value).map_err(|error| {
        let message = match error {
            SizeError::OutOfRange => format!("Value '{value}' is out of range for parameter '{name}'"),
            SizeError::Malformed => format!(
                "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E \
                 means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
            ),
        };
        Error::new(Kind::InvalidArgument, message)
    })
}

/// How much of a new image is allocated at once (`preallocation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Tables, no data.
    Metadata,
    /// Space reserved by `fallocate`.
    Falloc,
    /// Space written with zeros.
    Full,
}

impl Preallocation {
    /// Reads one of `off`, `metadata`, `falloc`, `full`.
    pub fn parse(word: &str) -> Option<Preallocation> {
        match word {
            "off" => Some(Preallocation::Off),
            "metadata" => Some(Preallocation::Metadata),
            "falloc" => Some(Preallocation::Falloc),
            "full" => Some(Preallocation::Full),
            _ => None,
        }
    }

    /// For formats that have no tables.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for [`Preallocation::Metadata`].
    pub fn refuse_metadata(self) -> Result<()> {
        match self {
            Preallocation::Metadata => {
                let message = "Unsupported preallocation mode: metadata";
                Err(Error::new(Kind::InvalidArgument, message).remedy("use off, falloc or full"))
            }
            _ => Ok(()),
        }
    }
}
