//! A new file that takes its name when it is complete: until then it stands beside it under a name that nobody takes
//! for an image.
//!
//! ```text
//!   out                (the old file, locked; or none)      ──▶   out   (new)
//!   .out.Xy12Zq.part   (new, being written)                       –     (the old one is gone)
//! ```
//! Invariant: whatever is under the final name is whole, old or new; where an old file was, also after the host went
//! down. A process that is killed leaves the part behind; one that fails, or is told to stop, removes it.

mod alike;

use crate::block::aio::Engine;
use crate::block::protocol::file::FileDriver;
use crate::block::{Error, Result};
use crate::util::text;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::{PathPersistError, TempPath};

/// What stands before a name that is a file's, whatever it looks like.
const FILE: &str = "file:";
/// Most symbolic links on the way to a file, as the kernel has it.
const MAX_LINKS: usize = 40;
/// Longest part of a name that the name of its part begins with, in bytes: both fit into a folder.
const MAX_PREFIX: usize = 200;
/// In a folder of this mode, nobody takes away names of the files of others.
const STICKY: u32 = libc::S_ISVTX;

/// A file that is being made to take the place of another, or a place where none is.
pub(super) struct Draft {
    part: TempPath,
    /// With [`FILE`] in front.
    name: String,
    /// What users call it.
    filename: String,
    /// Where it belongs, with no symbolic link left.
    place: PathBuf,
    /// The file that is there, locked.
    old: Option<FileDriver>,
}

impl Draft {
    /// A draft of the file `filename`. `None` where the name is not one that can be given to another file, which then
    /// must be written in place: of a device or a pipe, of a file with several names, of an open descriptor, of a mount
    /// point, of a file whose name, owner or attributes we may not give away, in a folder where no file can be made.
    ///
    /// # Errors
    /// In the words of those who make files, where the old one is in use or must not be written.
    pub(super) fn new(engine: &Rc<Engine>, filename: &str) -> Result<Option<Draft>> {
        let Some(place) = follow(filename) else { return Ok(None) };
        let old = fs::symlink_metadata(&place).ok();
        let has_one_name = old.as_ref().is_none_or(|old| old.is_file() && old.nlink() == 1);
        if !has_one_name || is_mount_point(&place) {
            return Ok(None);
        }
        let claimed = old.as_ref().map(|_| FileDriver::claim(engine, filename)).transpose()?;
        let Some(part) = make_part(&place, old.as_ref()) else { return Ok(None) };
        let name = format!("{FILE}{}", text::from_os(part.as_os_str()));
        Ok(Some(Draft { part, name, filename: filename.to_owned(), place, old: claimed }))
    }

    /// The name to write to.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// An error that names the file as users do.
    #[must_use]
    pub(super) fn told(&self, error: Error) -> Error {
        let path = self.name.trim_start_matches(FILE);
        let message = error.message().replace(&self.name, &self.filename).replace(path, &self.filename);
        error.replaced(message)
    }

    /// Gives the file, which is complete and closed, its name.
    ///
    /// # Errors
    /// What the host says; the old file is there then.
    pub(super) async fn publish(self, engine: &Rc<Engine>) -> Result<()> {
        let failed = |error| Error::from_io(error).context(format!("Could not create '{}'", self.filename));
        if self.old.is_some() {
            // The old file is safe on the disk: what takes its place must be, before it does.
            let part = File::open(&self.part).map_err(failed)?;
            engine.offload(move || part.sync_data()).await.map_err(failed)?;
        }
        self.part.persist(&self.place).map_err(|PathPersistError { error, path }| {
            // It took hours, perhaps.
            let kept = path.keep().unwrap_or_else(|error| error.path.to_path_buf());
            let remedy = format!("the new image is complete: move {} to where it belongs", kept.display());
            Error::from_io(error).context(format!("Could not create '{}'", self.filename)).remedy(remedy)
        })
    }
}

/// Whether two names are those of one file, or would be.
pub(super) fn lead_to_one_place(one: &str, other: &str) -> bool {
    follow(one).is_some_and(|place| follow(other) == Some(place))
}

/// Where a name leads to, in a folder with no link left; `None` where it is no name of a file in a folder: where a link
/// stands for an open descriptor, and where there is no such folder.
fn follow(filename: &str) -> Option<PathBuf> {
    let mut name = text::to_path(filename.strip_prefix(FILE).unwrap_or(filename)).into_owned();
    for _ in 0..MAX_LINKS {
        if [b"/".as_slice(), b"/."].iter().any(|end| name.as_os_str().as_bytes().ends_with(end)) {
            return None;
        }
        let folder = fs::canonicalize(folder_of(&name)).ok()?;
        let place = folder.join(name.file_name()?);
        match fs::read_link(&place) {
            Ok(_) if folder.starts_with("/proc") => return None,
            Ok(target) => name = folder.join(target),
            Err(_) => return Some(place),
        }
    }
    None
}

fn folder_of(name: &Path) -> &Path {
    name.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Nobody gives the name of a mount point to another file.
fn is_mount_point(place: &Path) -> bool {
    let status = statx(CWD, place, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    status.is_ok_and(|status| status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// An empty file beside `place`, like `old` in all but its content.
fn make_part(place: &Path, old: Option<&Metadata>) -> Option<TempPath> {
    let name = place.file_name()?.as_bytes();
    let mut prefix = OsString::from(".");
    prefix.push(OsStr::from_bytes(&name[..name.len().min(MAX_PREFIX)]));
    prefix.push(".");
    let part = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".part")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder_of(place))
        .ok()?
        .into_temp_path();
    match old {
        Some(old) => {
            let can_take_its_name = can_replace(place, old, &part).ok()?;
            (can_take_its_name && alike::make(&part, place, old).ok()?).then_some(part)
        }
        None => Some(part),
    }
}

/// Whether we, who made `part`, may take the name of a file from it.
fn can_replace(place: &Path, old: &Metadata, part: &Path) -> std::io::Result<bool> {
    let (folder, we) = (fs::metadata(folder_of(place))?, fs::metadata(part)?.uid());
    Ok(folder.mode() & STICKY == 0 || we == 0 || [folder.uid(), old.uid()].contains(&we))
}
