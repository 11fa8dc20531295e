//! Files under names of our own, while a flush is carried over, and what becomes of them if it was killed.
//!
//! ```text
//!   DIR/.cowvm-fat-PID-N         a file that is being written: it is renamed to its name when it is complete
//!   DIR/.cowvm-fat-PID-N/NAME    a refuge: DIR/NAME, which is in the way of something else, until it has its new place
//! ```
//! Who made one holds a lock on it, which the kernel takes back when the process ends. When a disk is opened to be
//! written, what nobody has locked is cleared up: a file is removed, since no flush has promised it and what it was to
//! replace is there under its name; what is in a refuge goes back to its name, or to the first of NAME~1, NAME~2 …
//! that is free. So nothing is lost that the guest did not delete.

use super::host::{Root, listing, shown};
use super::name::TEMPORARY;
use super::notices::Notices;
use super::tree::{Id, Node};
use super::volume::Volume;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many names are tried, for what is made and for what comes back from a refuge.
const NAMES: u32 = 100;
/// Numbers the names that this process makes: several disks may show one directory.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A directory for something that has to go out of the way.
pub(super) struct Refuge {
    name: OsString,
    _locked: File,
}

impl Volume {
    /// Makes a file that is to be renamed when it is complete.
    pub(super) fn make_temporary(&self, directory: &Path, mode: u64) -> io::Result<(PathBuf, File)> {
        let (name, file) = with_new_name(|name| self.root.create(&directory.join(name), mode))?;
        hold(&file);
        Ok((directory.join(name), file))
    }

    /// Makes a refuge in a directory; returns its name.
    pub(super) fn make_refuge(&mut self, directory: &Path) -> io::Result<OsString> {
        let (name, ()) = with_new_name(|name| self.root.create_directory(&directory.join(name)))?;
        let locked = File::from(self.root.directory(&directory.join(&name))?);
        hold(&locked);
        self.refuges.push(Refuge { name: name.clone(), _locked: locked });
        Ok(name)
    }

    /// Removes the refuge that something at `path` was in, if it was in one.
    pub(super) fn leave_refuge(&mut self, path: &Path) {
        let Some(refuge) = refuge_of(path) else { return };
        self.refuges.retain(|other| Some(other.name.as_os_str()) != refuge.file_name());
        // One that cannot be removed now is cleared up when the disk is opened the next time.
        let _ = self.root.remove(refuge, true);
    }

    /// Brings back all that is still in a refuge, at the end of the disk.
    pub(super) fn empty_refuges(&mut self) -> io::Result<()> {
        let inside = |(id, node): (Id, &Node)| {
            refuge_of(Path::new(&node.host_name)).is_some().then(|| self.tree.path(id))
        };
        let paths: Vec<PathBuf> = self.tree.iter().filter_map(inside).collect();
        paths.iter().try_for_each(|path| self.bring_back(path))
    }

    /// Brings back what stays on the host though it had gone out of the way.
    pub(super) fn bring_back(&mut self, path: &Path) -> io::Result<()> {
        let Some(refuge) = refuge_of(path) else { return Ok(()) };
        let back = come_back(&self.root, refuge)?;
        self.leave_refuge(path);
        back.iter().for_each(|place| self.notices.say(format!("'{}' is back", shown(place))));
        Ok(())
    }
}

/// The refuge that a path leads into.
pub(super) fn refuge_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|refuge| refuge.file_name().is_some_and(is_temporary))
}

/// Makes something under a name that nobody has: a process in another container may have our number.
fn with_new_name<T>(make: impl Fn(&OsStr) -> io::Result<T>) -> io::Result<(OsString, T)> {
    for _ in 0..NAMES {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!("{TEMPORARY}{}-{number}", std::process::id()));
        match make(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|made| (name, made)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Keeps other processes from clearing up what is ours. Where the file system knows no locks, nobody clears up.
fn hold(file: &File) {
    let _ = file.try_lock();
}

/// Whether a name is one of ours: `.cowvm-fat-`, a number, a dash, a number.
fn is_temporary(name: &OsStr) -> bool {
    let numbers = name.to_str().and_then(|name| name.strip_prefix(TEMPORARY)?.split_once('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

/// Clears up what killed processes left in a directory, and says so.
///
/// # Errors
/// When the directory cannot be listed.
pub(super) fn clear_up(root: &Root, directory: &Path, notices: &mut Notices) -> io::Result<()> {
    for name in names(&root.directory(directory)?)?.into_iter().filter(|name| is_temporary(name)) {
        let path = directory.join(name);
        match clear(root, &path) {
            Ok(back) if back.is_empty() => {
                notices.say(format!("'{}' is removed: a write that was killed left it behind", shown(&path)));
            }
            Ok(back) => back.iter().for_each(|place| {
                notices.say(format!("'{}' is back: a write that was killed had moved it", shown(place)));
            }),
            // It is left out, with a warning of its own.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Clears up one; returns what came back.
fn clear(root: &Root, path: &Path) -> io::Result<Vec<PathBuf>> {
    if let Ok((file, _)) = root.file(path, false) {
        file.try_lock()?;
        return root.remove(path, false).map(|()| Vec::new());
    }
    File::from(root.directory(path)?).try_lock()?;
    let back = come_back(root, path)?;
    root.remove(path, true).map(|()| back)
}

/// Moves all that is in a refuge back to where it was.
fn come_back(root: &Root, refuge: &Path) -> io::Result<Vec<PathBuf>> {
    let home = refuge.parent().unwrap_or(Path::new(""));
    let names = names(&root.directory(refuge)?)?;
    names.iter().map(|name| to_free_name(root, &refuge.join(name), home, name)).collect()
}

/// Renames something to the first name in `home` that is free.
fn to_free_name(root: &Root, from: &Path, home: &Path, name: &OsStr) -> io::Result<PathBuf> {
    let mut to = home.join(name);
    for number in 1..=NAMES {
        match root.rename(from, &to, false) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| to),
        }
        let mut other = name.to_owned();
        other.push(format!("~{number}"));
        to = home.join(other);
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    fs::read_dir(listing(directory))?.map(|entry| Ok(entry?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_are_cleared_up() {
        for (name, ours) in [
            (".cowvm-fat-12-3", true),
            (".cowvm-fat-12-", false),
            (".cowvm-fat--3", false),
            (".cowvm-fat-12-3.txt", false),
            (".cowvm-fat-notes", false),
            ("cowvm-fat-12-3", false),
        ] {
            assert_eq!(is_temporary(OsStr::new(name)), ours, "{name}");
        }
        assert_eq!(refuge_of(Path::new("a/.cowvm-fat-1-2/b")), Some(Path::new("a/.cowvm-fat-1-2")));
        assert_eq!(refuge_of(Path::new("a/b")), None);
    }
}
