//! Reading the directory of the host into a tree: what is shown, under which name, and what is left out.
//!
//! Directories come before what is in them, in the order of their names, so that a directory gives the same disk
//! every time.

use super::geometry::ENTRY;
use super::host::{Root, shown};
use super::leftovers::clear_up;
use super::listing::{Listing, list_all, root_node};
use super::name::Short;
use super::notices::Notices;
use super::tree::{Id, Node, ROOT, Tree};
use crate::block::{Error, Kind, Result};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most files and directories of a disk.
pub(super) const MAX_NODES: usize = 1 << 20;
/// Longest path below the directory, in bytes: the kernel takes no longer ones.
pub(super) const MAX_PATH: usize = 4000;

/// How many directories are listed at a time.
const BATCH: usize = 64;

/// What a scan found.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) tree: Tree,
    /// The alias of each node.
    pub(super) shorts: Vec<Short>,
    /// Nodes of each directory, in the order of their entries; none for files.
    pub(super) members: Vec<Range<Id>>,
    /// Bytes of each directory's entries, with `.` and `..` or the label.
    lens: Vec<u32>,
}

/// Reads all that can be shown.
///
/// # Errors
/// When the directory itself cannot be read, or holds more than [`MAX_NODES`] entries.
pub(super) fn scan(root: &Root, writable: bool, notices: &mut Notices) -> Result<Scan> {
    let metadata = root.metadata(Path::new("")).map_err(Error::from_io)?;
    let mut scan = Scan::default();
    scan.add(root_node(&metadata), [b' '; 11]);
    let (mut next, mut scanner) = (0, Scanner { root, writable, notices });
    while next < scan.tree.len() as Id {
        let all = next..scan.tree.len() as Id;
        let is_directory = |id: &Id| scan.tree.get(*id).is_some_and(|node| node.fields.is_directory());
        let batch: Vec<Id> = all.clone().filter(is_directory).take(BATCH).collect();
        next = if batch.len() < BATCH { all.end } else { batch[BATCH - 1] + 1 };
        let batch = batch.into_iter().map(|id| (id, scan.tree.path(id))).collect();
        scanner.directories(&mut scan, batch)?;
    }
    Ok(scan)
}

impl Scan {
    fn add(&mut self, node: Node, short: Short) {
        self.shorts.push(short);
        self.members.push(0..0);
        self.lens.push(2 * ENTRY as u32);
        self.tree.add(node);
    }

    /// Bytes of a directory's entries, with `.` and `..` or the label.
    pub(super) fn directory_len(&self, id: Id) -> u64 {
        u64::from(self.lens[id as usize])
    }
}

struct Scanner<'a> {
    root: &'a Root,
    writable: bool,
    notices: &'a mut Notices,
}

impl Scanner<'_> {
    fn directories(&mut self, scan: &mut Scan, batch: Vec<(Id, PathBuf)>) -> Result<()> {
        let listings = list_all(self.root, !self.writable, &batch);
        for (directory, listing) in batch.into_iter().zip(listings) {
            match listing.and_then(|listing| self.cleared_up(&directory, listing)) {
                Ok(listing) => self.directory(scan, &directory, listing)?,
                Err(error) if directory.0 == ROOT => return Err(Error::from_io(error)),
                Err(error) => self.leave_out(&directory.1, &format!("it cannot be read ({error})")),
            }
        }
        Ok(())
    }

    /// A listing without what killed processes left, if it can be cleared up.
    fn cleared_up(&mut self, directory: &(Id, PathBuf), listing: Listing) -> io::Result<Listing> {
        if !(self.writable && listing.has_temporary) {
            return Ok(listing);
        }
        clear_up(self.root, &directory.1, self.notices)?;
        let again = list_all(self.root, false, std::slice::from_ref(directory));
        again.into_iter().next().unwrap_or(Ok(listing))
    }

    fn directory(&mut self, scan: &mut Scan, (id, path): &(Id, PathBuf), listing: Listing) -> Result<()> {
        if scan.tree.len() + listing.shown.len() > MAX_NODES {
            let message = format!("the directory holds more than {MAX_NODES} files");
            return Err(Error::new(Kind::TooLarge, message).remedy("show a part of it"));
        }
        for (name, why) in listing.left_out {
            self.leave_out(&path.join(&name), why);
            // If the guest may write, nothing of its own gets that name.
            if self.writable {
                scan.tree.hide(*id, name);
            }
        }
        let first = scan.tree.len() as Id;
        for (node, short) in listing.shown {
            if node.host_name.to_str() != Some(&node.name) {
                let place = path.join(&node.host_name);
                self.notices.say(format!("'{}' is shown as '{}'", shown(&place), node.name));
            }
            scan.add(node, short);
        }
        scan.members[*id as usize] = first..scan.tree.len() as Id;
        scan.lens[*id as usize] = listing.len;
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        self.notices.say(format!("'{}' is left out: {why}", shown(path)));
    }
}
