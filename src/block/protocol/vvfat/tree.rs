//! The tree as it is on the host, and where on the disk each file of it is.
//!
//! Invariant: a node's parent is a directory of the tree; the root is node 0 and never goes away. Nodes are known by
//! number; a number is used again only after its node was removed.

use super::entry::Fields;
use super::host::Seen;
use std::ffi::OsString;
use std::path::PathBuf;

/// Number of a node.
pub(super) type Id = u32;
/// The root.
pub(super) const ROOT: Id = 0;

/// Clusters of a file in order, as runs: first, how many.
pub(super) type Chain = Vec<(u32, u32)>;

/// A file or a directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) parent: Id,
    /// Its name on the host.
    pub(super) host_name: OsString,
    /// Its name on the disk.
    pub(super) name: String,
    pub(super) fields: Fields,
    pub(super) chain: Chain,
    /// What the host file was when we last looked or wrote.
    pub(super) seen: Seen,
    /// The user knows that the host changed it.
    pub(super) warned: bool,
    /// The host file lacks what the guest wrote: it could not be written.
    pub(super) stale: bool,
}

/// The nodes.
#[derive(Default)]
pub(super) struct Tree {
    nodes: Vec<Option<Node>>,
    free: Vec<Id>,
}

impl Tree {
    pub(super) fn add(&mut self, node: Node) -> Id {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                (self.nodes.len() - 1) as Id
            }
        }
    }

    pub(super) fn remove(&mut self, id: Id) {
        if self.nodes.get_mut(id as usize).is_some_and(|slot| slot.take().is_some()) {
            self.free.push(id);
        }
    }

    pub(super) fn get(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize)?.as_mut()
    }

    /// All nodes with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| Some((id as Id, node.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Where a node is below the directory. The root's path is empty.
    pub(super) fn path(&self, id: Id) -> PathBuf {
        let (mut parts, mut at) = (Vec::new(), id);
        while let Some(node) = self.get(at).filter(|_| at != ROOT) {
            parts.push(node.host_name.as_os_str());
            at = node.parent;
        }
        parts.iter().rev().collect()
    }
}
