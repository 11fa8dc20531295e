//! Reading the directory of the host into a tree: what is shown, under which name, and what is left out.
//!
//! Directories come before what is in them, in the order of their names, so that a directory gives the same disk
//! every time.

use super::entry::{ARCHIVE, DIRECTORY, Fields, READ_ONLY, len};
use super::geometry::{ENTRY, MAX_DIRECTORY};
use super::host::{Root, Seen, listing, shown};
use super::leftovers::clear_up;
use super::name::{Names, Short, TEMPORARY};
use super::notices::Notices;
use super::stamp::Stamp;
use super::tree::{Id, Node, ROOT, Tree};
use crate::block::{Error, Kind, Result};
use std::ffi::OsString;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Most files and directories of a disk.
pub(super) const MAX_NODES: usize = 1 << 20;
/// Longest path below the directory, in bytes: the kernel takes no longer ones.
pub(super) const MAX_PATH: usize = 4000;

/// What a scan found.
pub(super) struct Scan {
    pub(super) tree: Tree,
    /// The alias of each node.
    pub(super) shorts: Vec<Short>,
    /// Nodes of each directory, in the order of their entries; empty for files.
    pub(super) members: Vec<Vec<Id>>,
}

/// An entry of the host that is to be shown.
struct Item {
    host_name: OsString,
    metadata: Metadata,
}

/// Reads all that can be shown.
///
/// # Errors
/// When the directory itself cannot be read, or holds more than [`MAX_NODES`] entries.
pub(super) fn scan(root: &Root, writable: bool, notices: &mut Notices) -> Result<Scan> {
    let metadata = root.metadata(Path::new("")).map_err(Error::from_io)?;
    let mut scan = Scan { tree: Tree::default(), shorts: Vec::new(), members: Vec::new() };
    scan.add(ROOT, Item { host_name: OsString::new(), metadata }, String::new(), [b' '; 11]);
    let (mut next, mut scanner) = (0, Scanner { root, writable, notices });
    while next < scan.tree.len() {
        let id = next as Id;
        next += 1;
        if scan.tree.get(id).is_some_and(|node| node.fields.is_directory()) {
            scanner.directory(&mut scan, id)?;
        }
    }
    Ok(scan)
}

impl Scan {
    fn add(&mut self, parent: Id, item: Item, name: String, short: Short) -> Id {
        let stamp = Stamp::from_unix(item.metadata.mtime());
        let writable = item.metadata.mode() & 0o222 != 0;
        let fields = match item.metadata.is_dir() {
            true => Fields::new(DIRECTORY, stamp, 0),
            false => {
                let attributes = if writable { ARCHIVE } else { ARCHIVE | READ_ONLY };
                Fields::new(attributes, stamp, item.metadata.len() as u32)
            }
        };
        self.shorts.push(short);
        self.members.push(Vec::new());
        self.tree.add(Node {
            parent,
            host_name: item.host_name,
            name,
            fields,
            chain: Vec::new(),
            seen: Seen::of(&item.metadata),
            warned: false,
            stale: false,
        })
    }

    /// Bytes of a directory's entries, with `.` and `..` or the label.
    pub(super) fn directory_len(&self, id: Id) -> u64 {
        let of = |member: &Id| {
            self.tree.get(*member).map_or(0, |node| len(&node.name, &self.shorts[*member as usize]))
        };
        (2 * ENTRY + self.members[id as usize].iter().map(of).sum::<usize>()) as u64
    }
}

struct Scanner<'a> {
    root: &'a Root,
    writable: bool,
    notices: &'a mut Notices,
}

impl Scanner<'_> {
    fn directory(&mut self, scan: &mut Scan, id: Id) -> Result<()> {
        let path = scan.tree.path(id);
        let items = match self.list(&path) {
            Ok(items) => items,
            Err(error) if id == ROOT => return Err(Error::from_io(error)),
            Err(error) => {
                self.leave_out(&path, &format!("it cannot be read ({error})"));
                return Ok(());
            }
        };
        if scan.tree.len() + items.len() > MAX_NODES {
            let message = format!("the directory holds more than {MAX_NODES} files");
            return Err(Error::new(Kind::TooLarge, message).remedy("show a part of it"));
        }
        self.name_all(scan, id, &path, items);
        Ok(())
    }

    /// Gives names to all of a directory: first to those whose alias is their own name.
    fn name_all(&mut self, scan: &mut Scan, id: Id, path: &Path, items: Vec<Item>) {
        let mut names = Names::default();
        let mut named = Vec::with_capacity(items.len());
        for item in items {
            match names.long(&item.host_name) {
                Some(name) => {
                    let short = names.own_alias(&name);
                    named.push((item, name, short));
                }
                None => self.leave_out(&path.join(&item.host_name), "there is no name left for it"),
            }
        }
        let mut used = 2 * ENTRY;
        for (item, name, short) in named {
            let place = path.join(&item.host_name);
            let Some(short) = short.or_else(|| names.alias(&name)) else {
                self.leave_out(&place, "there is no short name left for it");
                continue;
            };
            used += len(&name, &short);
            if used as u64 > MAX_DIRECTORY {
                self.leave_out(&place, "its directory has more entries than FAT allows");
                continue;
            }
            if item.host_name.to_str() != Some(&name) {
                self.notices.say(format!("'{}' is shown as '{name}'", shown(&place)));
            }
            let member = scan.add(id, item, name, short);
            scan.members[id as usize].push(member);
        }
    }

    fn list(&mut self, path: &Path) -> io::Result<Vec<Item>> {
        if self.writable {
            clear_up(self.root, path, self.notices)?;
        }
        let directory = self.root.directory(path)?;
        let mut items = Vec::new();
        for entry in fs::read_dir(listing(&directory))? {
            items.extend(self.item(path, &entry?));
        }
        items.sort_unstable_by(|a, b| a.host_name.cmp(&b.host_name));
        Ok(items)
    }

    /// What an entry shows, if it can be shown.
    fn item(&mut self, directory: &Path, entry: &DirEntry) -> Option<Item> {
        let host_name = entry.file_name();
        let path = directory.join(&host_name);
        if host_name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            self.leave_out(&path, "it was left behind by a write that was killed");
            return None;
        }
        let metadata = match entry.metadata() {
            Ok(metadata) if metadata.is_symlink() => self.target(&path)?,
            Ok(metadata) => metadata,
            // Gone since it was listed.
            Err(_) => return None,
        };
        let kind = metadata.file_type();
        let reason = match () {
            () if path.as_os_str().len() > MAX_PATH => "its path is too long",
            () if kind.is_file() && metadata.len() > u64::from(u32::MAX) => "it is larger than 4 GiB - 1",
            () if kind.is_file() || kind.is_dir() => return Some(Item { host_name, metadata }),
            () if kind.is_fifo() => "it is a FIFO",
            () if kind.is_socket() => "it is a socket",
            () => "it is a device",
        };
        self.leave_out(&path, reason);
        None
    }

    /// What a link shows: a file of this directory.
    fn target(&mut self, path: &Path) -> Option<Metadata> {
        if self.writable {
            self.leave_out(path, "it is a symbolic link, and the disk is writable");
            return None;
        }
        match self.root.metadata(path) {
            Ok(metadata) if metadata.is_file() => Some(metadata),
            Ok(metadata) if metadata.is_dir() => {
                self.leave_out(path, "it is a symbolic link to a directory");
                None
            }
            Ok(metadata) => Some(metadata),
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                self.leave_out(path, "it is a symbolic link that leaves the directory");
                None
            }
            Err(_) => {
                self.leave_out(path, "it is a symbolic link to nothing that can be reached");
                None
            }
        }
    }

    fn leave_out(&mut self, path: &Path, reason: &str) {
        self.notices.say(format!("'{}' is left out: {reason}", shown(path)));
    }
}
