//! A new file that takes its name when it is complete: until then it stands beside it under a name that nobody takes
//! for an image.
//!
//! ```text
//!   out                (the old file, locked; or none)      ──▶   out   (new)
//!   .out.Xy12Zq.part   (new, being written)                       –     (the old one is gone)
//! ```
//! Invariant: whatever is under the final name is whole, old or new. A process that is killed leaves the part behind; one
//! that fails, or is told to stop, removes it.

use crate::block::aio::Engine;
use crate::block::filename::sibling;
use crate::block::protocol::file::FileDriver;
use crate::block::{Error, Result};
use crate::util::text;
use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempPath;

/// A file that is being made to take the place of another, or a place where none is.
pub struct Draft {
    part: TempPath,
    /// As those who open it name it: what is relative to the folder of the one is relative to that of the other.
    part_name: String,
    /// What users call it.
    filename: String,
    /// Where it belongs, with no symbolic link left.
    place: PathBuf,
    /// The file that is there, locked.
    old: Option<FileDriver>,
}

impl Draft {
    /// A draft of the file `filename`; `None` where the name is not one that can be given to another file: of a device or
    /// a pipe, of a file with several names, in a folder where no file can be made. `keeps_folder`: names that the
    /// new file will hold are relative to the folder of `filename`.
    ///
    /// # Errors
    /// In the words of those who make files, where the old one is in use or must not be written.
    pub fn new(engine: &Rc<Engine>, filename: &str, keeps_folder: bool) -> Result<Option<Draft>> {
        let given = text::to_path(filename.strip_prefix("file:").unwrap_or(filename)).into_owned();
        let (place, old) = match fs::metadata(&given) {
            Ok(metadata) if !metadata.is_file() || metadata.nlink() > 1 => return Ok(None),
            Ok(metadata) => (fs::canonicalize(&given)?, Some(metadata)),
            // A link that leads nowhere: the file is made where it leads to.
            Err(_) if given.is_symlink() => return Ok(None),
            Err(_) => (given.clone(), None),
        };
        if keeps_folder && given.is_symlink() {
            return Ok(None);
        }
        let claimed = old.as_ref().map(|_| FileDriver::claim(engine, filename)).transpose()?;
        let Some(part) = make_part(&place, old.as_ref()) else { return Ok(None) };
        let beside = if given.is_symlink() { &place } else { &given };
        let name = part.file_name().map(text::from_os).unwrap_or_default();
        let part_name = sibling(&text::from_os(beside.as_os_str()), &name);
        Ok(Some(Draft { part, part_name, filename: filename.to_owned(), place, old: claimed }))
    }

    /// The name to write to.
    pub fn part(&self) -> &str {
        &self.part_name
    }

    /// An error that names the file as users do.
    #[must_use]
    pub fn told(&self, error: Error) -> Error {
        let message = error.message().replace(&self.part_name, &self.filename);
        error.replaced(message)
    }

    /// Gives the file, which is complete and closed, its name.
    ///
    /// # Errors
    /// What the host says; the old file is there then.
    pub fn publish(self) -> Result<()> {
        // Exchanged, not renamed: where a name is taken over, ext4 writes the new file to disk first. What goes away
        // with the draft is the old file then.
        let exchanged = self.old.is_some() && exchange(&self.part, &self.place).is_ok();
        if !exchanged {
            fs::rename(&self.part, &self.place).map_err(|error| {
                Error::from_io(error).context(format!("Could not create '{}'", self.filename))
            })?;
        }
        Ok(())
    }
}

/// An empty file beside `place`, with the owner and the mode of `old`.
fn make_part(place: &Path, old: Option<&Metadata>) -> Option<TempPath> {
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(place.file_name()?);
    prefix.push(".");
    let part = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".part")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .ok()?
        .into_temp_path();
    if let Some(old) = old {
        // Only root can give files away.
        let _ = chown(&part, Some(old.uid()), Some(old.gid()));
        fs::set_permissions(&part, old.permissions()).ok()?;
    }
    Some(part)
}

/// renameat2(2) with RENAME_EXCHANGE.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let (one, other) =
        (CString::new(one.as_os_str().as_bytes())?, CString::new(other.as_os_str().as_bytes())?);
    // SAFETY: two strings that end with a zero.
    let done = unsafe {
        libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, other.as_ptr(), libc::RENAME_EXCHANGE)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
