//! The disk: its layout, the tree that it shows, and what the guest wrote to it.
//!
//! Nothing is copied: the FAT is computed from where the files are, directories are made once, data is where the host
//! has it. What a sector shows is in module `view`.

use super::boot::{self, Identity, ROOT_CLUSTER};
use super::changed::{Directories, Settled};
use super::entry::{DIRECTORY, DOT, DOT_DOT, Fields, LABEL, short_slot, write};
use super::fitting::{Content, Wish};
use super::geometry::{ENTRY, Layout};
use super::host::{Root, Seen, shown};
use super::leftovers::Refuge;
use super::made_fat::MadeFat;
use super::name::Short;
use super::notices::Notices;
use super::overlay::Overlay;
use super::runs::{Runs, Shows};
use super::scan::{Scan, scan};
use super::state::ClusterSet;
use super::tree::{Id, ROOT, Tree};
use crate::block::{Error, Result};
use smallvec::smallvec;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Room for new entries, in bytes, in a root directory that is not a small one.
const ROOT_ROOM: u64 = (512 * ENTRY) as u64;

/// A disk.
pub(super) struct Volume {
    pub(super) layout: Layout,
    pub(super) root: Arc<Root>,
    pub(super) tree: Tree,
    pub(super) notices: Notices,
    /// The first sector of a hard disk.
    pub(super) master: Vec<u8>,
    /// The sectors before the FAT.
    pub(super) reserved: Vec<u8>,
    pub(super) fat: MadeFat,
    /// The directories as they were made, and the one that is no chain.
    pub(super) directories: Vec<Vec<u8>>,
    pub(super) fixed_root: Vec<u8>,
    pub(super) runs: Runs,
    /// Where the disk is writable.
    pub(super) overlay: Option<Overlay>,
    /// Why what the guest wrote is not all in host files.
    pub(super) pending: Option<String>,
    /// Where something is that had to go out of the way.
    pub(super) refuges: Vec<Refuge>,
    /// Directories whose entries changed and that are not synced yet.
    pub(super) unsynced: HashSet<Id>,
    /// What the next flush can stand on, if the last one left nothing open.
    pub(super) settled: Option<Settled>,
}

impl Volume {
    /// Makes the disk that shows `directory`.
    ///
    /// # Errors
    /// When the directory cannot be read, or does not fit.
    pub(super) fn new(directory: &Path, wish: Wish, label: [u8; 11]) -> Result<Volume> {
        let root = Root::open(directory, wish.writable).map_err(Error::from_io)?;
        let mut notices = Notices::default();
        let mut found = scan(&root, wish.writable, &mut notices)?;
        let layout = layout_for(wish, &found)?;
        let chains = allocate(&mut found, &layout);
        let used = chains.last().map_or(0, |(start, len)| start + len - 2);
        let identity = Identity { label, serial: serial(directory), used };
        let mut volume = Volume {
            layout,
            root: Arc::new(root),
            notices,
            master: boot::master_boot_record(&layout, identity.serial),
            reserved: boot::reserved_sectors(&layout, &identity),
            fat: MadeFat { fat_type: layout.fat_type, medium: boot::medium(&layout), chains },
            directories: Vec::new(),
            fixed_root: Vec::new(),
            runs: Runs::default(),
            overlay: wish.writable.then(Overlay::new).transpose()?,
            tree: Tree::default(),
            pending: None,
            refuges: Vec::new(),
            unsynced: HashSet::new(),
            settled: None,
        };
        volume.make_directories(&found, &label);
        volume.tree = found.tree;
        volume.settled = wish.writable.then(|| Settled {
            claimed: ClusterSet::before(volume.fat.first_free(), &volume.layout),
            directories: Directories::of(&volume.tree),
            held: HashSet::new(),
        });
        Ok(volume)
    }

    /// Makes the entries of all directories, and notes what all clusters show.
    fn make_directories(&mut self, found: &Scan, label: &Short) {
        let mut runs = Vec::with_capacity(found.tree.len());
        for (id, node) in found.tree.iter() {
            let shows = match node.fields.is_directory() {
                true => {
                    let bytes = directory_bytes(found, id, label);
                    if node.chain.is_empty() {
                        self.fixed_root = bytes;
                        continue;
                    }
                    self.directories.push(bytes);
                    Shows::Directory { number: (self.directories.len() - 1) as u32, index: 0 }
                }
                false => Shows::File { id, index: 0 },
            };
            runs.extend(node.chain.iter().map(|(start, len)| (*start, *len, shows)));
        }
        self.runs = Runs::of(runs);
    }

    /// Opens the host file of a node to read it.
    pub(super) fn open(&mut self, id: Id) -> io::Result<File> {
        let opened = self.root.file(&self.tree.path(id), false);
        self.noticed(id, opened)
    }

    /// What was got of the host file of a node. Tells the user, once, if that is not what it was, or nothing.
    pub(super) fn noticed<T>(&mut self, id: Id, got: io::Result<(T, Metadata)>) -> io::Result<T> {
        match got {
            Ok((value, metadata)) => {
                self.notice(id, &metadata);
                Ok(value)
            }
            Err(error) => {
                self.warn_once(id, &format!("cannot be read any more ({error})"));
                Err(error)
            }
        }
    }

    /// Tells the user, once, if the file of a node is not what it was.
    pub(super) fn notice(&mut self, id: Id, metadata: &Metadata) {
        if self.tree.get(id).is_some_and(|node| node.seen != Seen::of(metadata)) {
            self.warn_once(id, "was changed on the host: the guest sees its new content in its old size");
        }
    }

    pub(super) fn warn_once(&mut self, id: Id, what: &str) {
        let path = self.tree.path(id);
        if let Some(node) = self.tree.get_mut(id).filter(|node| !node.warned) {
            node.warned = true;
            self.notices.say(format!("'{}' {what}", shown(&path)));
        }
    }
}

fn layout_for(wish: Wish, found: &Scan) -> Result<Layout> {
    let size = |(id, node): (Id, &super::tree::Node)| match node.fields.is_directory() {
        true => found.directory_len(id),
        false => u64::from(node.fields.size),
    };
    let sizes: Vec<u64> = found.tree.iter().filter(|(id, _)| *id != ROOT).map(size).collect();
    let root = found.directory_len(ROOT);
    let crowded = wish.writable && root > ROOT_ROOM / 2;
    Layout::fitting(wish, &Content { sizes: &sizes, root: if crowded { root + ROOT_ROOM } else { root } })
}

/// Gives clusters to all nodes, one after another. Returns all chains.
fn allocate(found: &mut Scan, layout: &Layout) -> Vec<(u32, u32)> {
    let (mut chains, mut next) = (Vec::new(), ROOT_CLUSTER);
    for id in 0..found.tree.len() as Id {
        let directory = found.directory_len(id);
        let Some(node) = found.tree.get_mut(id) else { continue };
        let bytes = match node.fields.is_directory() {
            true if id == ROOT && layout.root_entries > 0 => 0,
            true => directory,
            false => u64::from(node.fields.size),
        };
        let clusters = bytes.div_ceil(layout.cluster_bytes()) as u32;
        if clusters > 0 {
            node.fields.cluster = next;
            node.chain = smallvec![(next, clusters)];
            chains.push((next, clusters));
            next += clusters;
        }
    }
    chains
}

fn directory_bytes(found: &Scan, id: Id, label: &Short) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(found.directory_len(id) as usize);
    let Some(node) = found.tree.get(id) else { return bytes };
    if id == ROOT {
        bytes.extend(short_slot(label, &Fields { attributes: LABEL, ..node.fields.clone_for_link(0) }));
    } else {
        // The root has no number here, wherever it is.
        let parent = found.tree.get(node.parent).filter(|_| node.parent != ROOT);
        let parent = parent.map_or(0, |parent| parent.fields.cluster);
        bytes.extend(short_slot(&DOT, &node.fields));
        bytes.extend(short_slot(&DOT_DOT, &node.fields.clone_for_link(parent)));
    }
    for member in found.members[id as usize].clone() {
        if let Some(node) = found.tree.get(member) {
            write(&mut bytes, &node.name, &found.shorts[member as usize], &node.fields);
        }
    }
    bytes
}

impl Fields {
    /// The same times for another entry, of a directory.
    fn clone_for_link(&self, cluster: u32) -> Fields {
        Fields { attributes: DIRECTORY, cluster, size: 0, ..*self }
    }
}

/// A number for the disk that is the same every time the directory is shown.
fn serial(directory: &Path) -> u32 {
    let bytes = directory.as_os_str().as_bytes();
    bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)) | 1
}
