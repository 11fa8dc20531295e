//! Bringing directories and files to their places on the host: making directories, renaming.
//!
//! Directories come before what is in them, so that a path always leads through places that are right already. What is
//! in the way, and will be elsewhere or nowhere, changes places with what comes; where nothing comes that is on the host
//! already, it goes into a refuge (module `leftovers`).

use super::content::unchanged;
use super::delete::is_gone;
use super::host::Seen;
use super::sync::Sync;
use super::tree::{Chain, Id, Node};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

impl Sync<'_> {
    /// Sees to it that something is there, under its name: makes a directory, or renames. Files that are new are made
    /// when they are written.
    pub(super) fn place(&mut self, number: usize) -> io::Result<()> {
        let found = &self.state.found[number];
        let Some(parent) = self.plan.ids[found.parent] else { return Err(no_directory()) };
        let Some(name) = self.plan.names[number].clone() else { return Err(name_taken()) };
        let is_new = self.plan.ids[number].is_none();
        let node = self.plan.ids[number].and_then(|id| self.volume.tree.get_mut(id));
        if let Some(node) = node.filter(|node| node.parent == parent && node.host_name == name) {
            node.name.clone_from(&found.name);
            if found.fields.is_directory() {
                (node.fields, node.chain) = (found.fields, found.chain.clone());
            }
            return Ok(());
        }
        let id = self.plan.ids[number];
        if let Some(other) = self.in_the_way(parent, &name)?
            && id.is_none_or(|id| self.exchange(id, other).is_err())
        {
            self.clear(other)?;
        }
        match id {
            Some(id) if self.volume.tree.at(parent, &name) == Some(id) => {}
            Some(id) => self.rename(id, parent, name)?,
            None if found.fields.is_directory() => self.make_directory(number, parent, name)?,
            None => {}
        }
        if let Some(node) = self.plan.ids[number].and_then(|id| self.volume.tree.get_mut(id)) {
            // Not before it is there: what could not be renamed is tried again at the next flush.
            node.name.clone_from(&found.name);
            if found.fields.is_directory() && !is_new {
                (node.fields, node.chain) = (found.fields, found.chain.clone());
            }
        }
        Ok(())
    }

    /// What we know to be at a place where something else belongs. What the guest deleted there, and the host changed,
    /// is not touched.
    fn in_the_way(&mut self, parent: Id, name: &OsStr) -> io::Result<Option<Id>> {
        let Some(id) = self.volume.tree.at(parent, name) else { return Ok(None) };
        let Some(node) = self.volume.tree.get(id).filter(|_| self.plan.gone.contains(&id)) else {
            return Ok(Some(id));
        };
        if node.fields.is_directory() || unchanged(self.volume, &self.volume.tree.path(id), node)?.is_some() {
            return Ok(Some(id));
        }
        // Its number may be another node's from here on.
        let _ = (self.plan.gone.remove(&id), self.plan.held.remove(&id));
        self.volume.forget(id);
        Ok(None)
    }

    /// Moves something out of the way, into a refuge in the same directory.
    fn clear(&mut self, id: Id) -> io::Result<()> {
        let Some(node) = self.volume.tree.get(id) else { return Ok(()) };
        let (parent, name) = (node.parent, node.host_name.clone());
        let refuge = self.volume.make_refuge(&self.volume.tree.path(parent))?;
        self.rename(id, parent, Path::new(&refuge).join(name).into_os_string())
    }

    /// Lets two change places: whoever looks, and whoever is killed, finds both.
    fn exchange(&mut self, one: Id, other: Id) -> io::Result<()> {
        let places = [one, other].map(|id| (id, self.volume.tree.path(id)));
        self.volume.root.exchange(&places[0].1, &places[1].1)?;
        let tree = &mut self.volume.tree;
        let place = |id| tree.get(id).map(|node| (node.parent, node.host_name.clone()));
        let (Some(first), Some(second)) = (place(one), place(other)) else { return Ok(()) };
        for (id, (parent, name)) in [(one, second), (other, first)] {
            tree.relocate(id, parent, name);
            self.touched.insert(parent);
        }
        Ok(())
    }

    fn rename(&mut self, id: Id, parent: Id, name: OsString) -> io::Result<()> {
        let from = self.volume.tree.path(id);
        let to = self.volume.tree.path(parent).join(&name);
        let renamed = self.volume.root.rename(&from, &to, false);
        let vanished = renamed.is_err() && self.volume.root.look(&from).is_err_and(|error| is_gone(&error));
        if !vanished {
            renamed?;
            self.volume.leave_refuge(&from);
        }
        let Some(node) = self.volume.tree.get_mut(id) else { return Ok(()) };
        // A file that the host has no longer is made anew when it is written.
        node.stale |= vanished;
        self.touched.extend([node.parent, parent]);
        self.volume.tree.relocate(id, parent, name);
        Ok(())
    }

    fn make_directory(&mut self, number: usize, parent: Id, name: OsString) -> io::Result<()> {
        let path = self.volume.tree.path(parent).join(&name);
        match self.volume.root.create_directory(&path) {
            // One that the guest does not see, because it was left out or forgotten.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.is_directory(&path) => {}
            done => done?,
        }
        self.add(number, parent, name, Seen::default());
        Ok(())
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.volume.root.directory(path).is_ok()
    }

    /// Notes that something new is on the host.
    pub(super) fn add(&mut self, number: usize, parent: Id, name: OsString, seen: Seen) -> Id {
        let found = &self.state.found[number];
        let id = self.volume.tree.add(Node {
            parent,
            host_name: name,
            name: found.name.clone(),
            fields: found.fields,
            chain: Chain::new(),
            seen,
            warned: false,
            stale: false,
        });
        self.plan.ids[number] = Some(id);
        self.touched.insert(parent);
        if let Some(node) = self.volume.tree.get_mut(id).filter(|node| node.fields.is_directory()) {
            node.chain.clone_from(&found.chain);
        }
        id
    }
}

pub(super) fn no_directory() -> io::Error {
    io::Error::other("its directory could not be made")
}

fn name_taken() -> io::Error {
    io::Error::other("another file has its name")
}
