//! Bringing directories and files to their places on the host: making directories, renaming.
//!
//! Directories come before what is in them, so that a path always leads through places that are right already. What is
//! in the way, and will be elsewhere or nowhere, goes aside first: two files that change their names never meet.

use super::host::Seen;
use super::name::TEMPORARY;
use super::sync::Sync;
use super::tree::{Chain, Id, Node, ROOT};
use super::volume::Volume;
use std::ffi::OsString;
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
        if let Some(node) = self.plan.ids[number].and_then(|id| self.volume.tree.get_mut(id)) {
            node.name.clone_from(&found.name);
            if node.parent == parent && node.host_name == name {
                if found.fields.is_directory() {
                    (node.fields, node.chain) = (found.fields, found.chain.clone());
                }
                return Ok(());
            }
        }
        self.clear(parent, &name)?;
        match self.plan.ids[number] {
            Some(id) => self.rename(id, parent, name)?,
            None if found.fields.is_directory() => self.make_directory(number, parent, name)?,
            None => {}
        }
        match self.plan.ids[number].and_then(|id| self.volume.tree.get_mut(id)) {
            Some(node) if found.fields.is_directory() && !is_new => {
                (node.fields, node.chain) = (found.fields, found.chain.clone());
            }
            _ => {}
        }
        Ok(())
    }

    /// Moves what we know to be at a place aside.
    fn clear(&mut self, parent: Id, name: &OsString) -> io::Result<()> {
        let Some(id) = self.places.get(&(parent, name.clone())).copied() else { return Ok(()) };
        if self.plan.held.remove(&id) {
            for (start, len) in self.chain_of(id) {
                self.keep(start, len)?;
            }
        }
        let aside = self.volume.temporary_name();
        self.rename(id, ROOT, aside)
    }

    fn rename(&mut self, id: Id, parent: Id, name: OsString) -> io::Result<()> {
        let from = self.volume.tree.path(id);
        let to = self.volume.tree.path(parent).join(&name);
        self.volume.root.rename(&from, &to, false)?;
        let Some(node) = self.volume.tree.get_mut(id) else { return Ok(()) };
        self.touched.extend([node.parent, parent]);
        self.places.remove(&(node.parent, node.host_name.clone()));
        (node.parent, node.host_name) = (parent, name.clone());
        self.places.insert((parent, name), id);
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
            host_name: name.clone(),
            name: found.name.clone(),
            fields: found.fields,
            chain: Chain::new(),
            seen,
            warned: false,
            stale: false,
        });
        self.plan.ids[number] = Some(id);
        self.places.insert((parent, name), id);
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

impl Volume {
    /// A name for a file that is being written, or that has to go out of the way.
    pub(super) fn temporary_name(&mut self) -> OsString {
        self.temporaries += 1;
        format!("{TEMPORARY}{}-{}", std::process::id(), self.temporaries).into()
    }
}
