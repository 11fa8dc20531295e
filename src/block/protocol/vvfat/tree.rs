//! The tree as it is on the host, and where on the disk each file of it is.
//!
//! Invariant: a node's parent is a directory of the tree; the root is node 0 and never goes away. Nodes are known by
//! number; a number is used again only after its node was removed. A node's place is changed by [`Tree::relocate`] alone.

use super::entry::Fields;
use super::host::Seen;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Number of a node.
pub(super) type Id = u32;
/// The root.
pub(super) const ROOT: Id = 0;

/// Clusters of a file in order, as runs: first, how many.
pub(super) type Chain = SmallVec<[(u32, u32); 1]>;

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
    /// Who is in each directory, by the name on the host; from [`Tree::index`] on.
    members: Option<HashMap<Id, HashMap<OsString, Id>>>,
    /// Names in each directory of what the guest cannot see.
    hidden: HashMap<Id, HashSet<OsString>>,
}

impl Tree {
    pub(super) fn add(&mut self, node: Node) -> Id {
        let id = self.free.pop().unwrap_or(self.nodes.len() as Id);
        self.enter(id, node.parent, &node.host_name);
        match self.nodes.get_mut(id as usize) {
            Some(slot) => *slot = Some(node),
            None => self.nodes.push(Some(node)),
        }
        id
    }

    pub(super) fn remove(&mut self, id: Id) {
        self.leave(id);
        if self.nodes.get_mut(id as usize).is_some_and(|slot| slot.take().is_some()) {
            self.free.push(id);
            self.hidden.remove(&id);
            self.members.iter_mut().for_each(|members| drop(members.remove(&id)));
        }
    }

    /// Notes that something is in another place on the host now; who was there is nowhere until it is moved too.
    pub(super) fn relocate(&mut self, id: Id, parent: Id, name: OsString) {
        self.leave(id);
        self.enter(id, parent, &name);
        if let Some(node) = self.get_mut(id) {
            (node.parent, node.host_name) = (parent, name);
        }
    }

    /// From now on, members can be asked for.
    pub(super) fn index(&mut self) {
        if self.members.is_none() {
            let mut members: HashMap<Id, HashMap<OsString, Id>> = HashMap::new();
            for (id, node) in self.iter().filter(|(id, _)| *id != ROOT) {
                members.entry(node.parent).or_default().insert(node.host_name.clone(), id);
            }
            self.members = Some(members);
        }
    }

    /// Who is in a place on the host.
    pub(super) fn at(&self, parent: Id, name: &OsStr) -> Option<Id> {
        self.members.as_ref()?.get(&parent)?.get(name).copied()
    }

    /// All that are in a directory.
    pub(super) fn members(&self, parent: Id) -> impl Iterator<Item = Id> {
        self.members
            .iter()
            .filter_map(move |all| all.get(&parent))
            .flat_map(|members| members.values().copied())
    }

    fn enter(&mut self, id: Id, parent: Id, name: &OsStr) {
        if let Some(members) = &mut self.members {
            members.entry(parent).or_default().insert(name.to_owned(), id);
        }
    }

    fn leave(&mut self, id: Id) {
        let Some(node) = self.nodes.get(id as usize).and_then(Option::as_ref) else { return };
        let members = self.members.as_mut().and_then(|all| all.get_mut(&node.parent));
        if let Some(members) = members.filter(|members| members.get(&node.host_name) == Some(&id)) {
            members.remove(&node.host_name);
        }
    }

    /// Notes that the host has something of this name in a directory that the guest does not see.
    pub(super) fn hide(&mut self, parent: Id, name: OsString) {
        self.hidden.entry(parent).or_default().insert(name);
    }

    /// Whether the host has something of this name that the guest does not see.
    pub(super) fn hides(&self, parent: Id, name: &OsStr) -> bool {
        self.hidden.get(&parent).is_some_and(|names| names.contains(name))
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
