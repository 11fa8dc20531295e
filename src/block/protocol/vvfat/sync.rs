//! Carrying what the guest wrote over to the host, at a flush: from the state of the disk, if it makes sense, to
//! operations on host files.
//!
//! 1. What the guest still uses of files that are about to change is kept in the overlay.
//! 2. Directories are made, what was renamed is renamed; what is in the way goes aside under a temporary name.
//! 3. Contents are written (module `content`), then attributes and times.
//! 4. What the guest deleted is deleted: last, and only if all before succeeded.
//!
//! The tree is changed with every step that succeeded, so that it is always what the host has: a step that fails is
//! tried again at the next flush, and nothing else is lost by it.

use super::content;
use super::host::{Seen, shown};
use super::matching::{Plan, plan, segments};
use super::name::TEMPORARY;
use super::runs::Shows;
use super::state::{Fat, Refusal, State, read_state};
use super::tree::{Chain, Id, Node, ROOT};
use super::volume::Volume;
use crate::block::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// Clusters that are kept at once.
const KEEP: u32 = 64;

/// Carries over what can be; with `durable`, so that it survives a crash of the host.
///
/// # Errors
/// When something could not be carried over, though the disk makes sense: the guest must not believe that it was.
pub(super) fn sync(volume: &mut Volume, durable: bool) -> Result<()> {
    let is_clean = volume.overlay.as_ref().is_none_or(|overlay| overlay.fresh().is_empty());
    if is_clean && volume.pending.is_none() {
        return Ok(());
    }
    let state = match read_state(volume) {
        Ok(state) => state,
        Err(Refusal::Inconsistent(why)) => {
            volume.pending = Some(why);
            return Ok(());
        }
        Err(Refusal::Io(error)) => return Err(Error::from_io(error)),
    };
    let plan = plan(volume, &state).map_err(Error::from_io)?;
    Sync::new(volume, &state, plan, durable).run().map_err(Error::from_io)
}

/// One carrying over.
pub(super) struct Sync<'a> {
    pub(super) volume: &'a mut Volume,
    pub(super) state: &'a State,
    pub(super) plan: Plan,
    pub(super) durable: bool,
    /// Who is where on the host.
    places: HashMap<(Id, OsString), Id>,
    /// Directories whose entries changed.
    touched: HashSet<Id>,
    /// The first thing that failed.
    failure: Option<io::Error>,
}

impl<'a> Sync<'a> {
    fn new(volume: &'a mut Volume, state: &'a State, plan: Plan, durable: bool) -> Sync<'a> {
        let place = |(id, node): (Id, &Node)| ((node.parent, node.host_name.clone()), id);
        let places = volume.tree.iter().filter(|(id, _)| *id != ROOT).map(place).collect();
        Sync { volume, state, plan, durable, places, touched: HashSet::new(), failure: None }
    }

    fn run(mut self) -> io::Result<()> {
        self.keep_what_is_used()?;
        for number in 1..self.state.found.len() {
            let done = self.place(number);
            self.note(number, done);
        }
        for number in 1..self.state.found.len() {
            if !self.state.found[number].fields.is_directory() {
                let done = self.write(number);
                self.note(number, done);
            }
        }
        if self.failure.is_none() {
            self.delete();
        }
        self.make_durable()?;
        if let Some(overlay) = &mut self.volume.overlay {
            overlay.settle();
        }
        self.volume.pending = self.failure.as_ref().map(ToString::to_string);
        self.failure.map_or(Ok(()), Err)
    }

    /// Remembers that something failed, and tells the user once for each file.
    fn note(&mut self, number: usize, done: io::Result<()>) {
        let Err(error) = done else { return };
        let what = format!("could not be brought up to date on the host ({error})");
        match self.plan.ids[number] {
            Some(id) => {
                self.volume.warn_once(id, &what);
                if let Some(node) = self.volume.tree.get_mut(id) {
                    node.stale = true;
                }
            }
            None if self.failure.is_none() => {
                let name = &self.state.found[number].host_name;
                self.volume.notices.say(format!("'{}' {what}", shown(name)));
            }
            None => {}
        }
        self.failure.get_or_insert(error);
    }

    /// Copies into the overlay what clusters show that stay in use while the file that they show changes.
    fn keep_what_is_used(&mut self) -> io::Result<()> {
        let (state, mut fat) = (self.state, Fat::default());
        for (number, found) in
            state.found.iter().enumerate().filter(|(_, found)| !found.fields.is_directory())
        {
            let before = self.plan.ids[number].map(|id| self.chain_of(id)).unwrap_or_default();
            if before == found.chain {
                continue;
            }
            for moved in segments(&found.chain, &before).iter().filter(|segment| !segment.stayed()) {
                self.keep(moved.now, moved.len)?;
            }
            self.keep_rest(&mut fat, &before, &found.chain)?;
        }
        for id in self.plan.gone.clone() {
            if !self.plan.held.contains(&id) {
                self.keep_rest(&mut fat, &self.chain_of(id), &Chain::new())?;
            }
        }
        Ok(())
    }

    fn chain_of(&self, id: Id) -> Chain {
        self.volume.tree.get(id).map(|node| node.chain.clone()).unwrap_or_default()
    }

    /// Keeps what a file had in `before` and has no longer, where it is in use and nobody's.
    fn keep_rest(&mut self, fat: &mut Fat, before: &Chain, now: &Chain) -> io::Result<()> {
        for left in segments(before, now).iter().filter(|segment| !segment.stayed()) {
            for cluster in left.now..left.now + left.len {
                if !self.state.is_claimed(cluster) && fat.entry(self.volume, cluster)? != 0 {
                    self.keep(cluster, 1)?;
                }
            }
        }
        Ok(())
    }

    /// Copies what clusters show of files into the overlay.
    fn keep(&mut self, start: u32, len: u32) -> io::Result<()> {
        let (mut at, end) = (start, start + len);
        while at < end {
            let (shows, count) = self.volume.runs.at(at);
            let count = match shows {
                Some(Shows::File { .. }) => count.min(end - at).min(KEEP),
                _ => count.min(end - at),
            };
            if matches!(shows, Some(Shows::File { .. })) {
                self.volume.keep_clusters(at, count)?;
            }
            at += count;
        }
        Ok(())
    }

    /// Sees to it that something is there, under its name: makes a directory, or renames. Files that are new are made
    /// when they are written.
    fn place(&mut self, number: usize) -> io::Result<()> {
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

    fn is_directory(&self, path: &std::path::Path) -> bool {
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

    /// Writes the content of a file, its attributes and times.
    fn write(&mut self, number: usize) -> io::Result<()> {
        let found = &self.state.found[number];
        let (Some(parent), Some(name)) = (self.plan.ids[found.parent], self.plan.names[number].clone())
        else {
            return Err(no_directory());
        };
        match self.plan.ids[number] {
            Some(id)
                if self
                    .volume
                    .tree
                    .get(id)
                    .is_some_and(|node| (node.parent, &node.host_name) != (parent, &name)) =>
            {
                // It could not be renamed; that was reported.
                Ok(())
            }
            Some(id) => {
                if content::update(self, number, id)? {
                    self.touched.insert(parent);
                }
                Ok(())
            }
            None => content::create(self, number, parent, name),
        }
    }

    /// Deletes what is gone: what is in directories before the directories.
    fn delete(&mut self) {
        let mut gone: Vec<(PathBuf, Id)> = self
            .plan
            .gone
            .iter()
            .copied()
            .filter(|id| !self.plan.held.contains(id))
            .map(|id| (self.volume.tree.path(id), id))
            .collect();
        gone.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        let mut children: HashMap<Id, usize> = HashMap::new();
        for (_, node) in self.volume.tree.iter() {
            *children.entry(node.parent).or_default() += 1;
        }
        for (path, id) in gone {
            let Some(node) = self.volume.tree.get(id) else { continue };
            let (parent, is_directory) = (node.parent, node.fields.is_directory());
            // Something in it is held.
            if is_directory && children.get(&id).is_some_and(|count| *count > 0) {
                continue;
            }
            match self.volume.delete(id, &path, is_directory) {
                Ok(()) => {
                    self.touched.insert(parent);
                    children.entry(parent).and_modify(|count| *count -= 1);
                }
                Err(error) => {
                    self.volume.warn_once(id, &format!("could not be deleted on the host ({error})"));
                    self.failure.get_or_insert(error);
                }
            }
        }
    }

    fn make_durable(&mut self) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        for id in std::mem::take(&mut self.touched) {
            if self.volume.tree.get(id).is_none() {
                continue;
            }
            match self.volume.root.directory(&self.volume.tree.path(id)) {
                Ok(directory) => File::from(directory).sync_all()?,
                // Moved or deleted by someone on the host.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn no_directory() -> io::Error {
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

    /// Copies clusters into the overlay, all that the guest did not write.
    fn keep_clusters(&mut self, start: u32, len: u32) -> io::Result<()> {
        let first = self.layout.sector_of(start);
        let end = first + u64::from(len) * self.layout.cluster_sectors;
        let mut at = first;
        while at < end {
            let Some((written, count)) = self.overlay.as_ref().map(|overlay| overlay.present().run(at..end))
            else {
                return Ok(());
            };
            if !written {
                let bytes = self.read(at..at + count)?;
                if let Some(overlay) = &mut self.overlay {
                    overlay.keep(at, &bytes)?;
                }
            }
            at += count;
        }
        Ok(())
    }

    /// Deletes a file or an empty directory of the host; one that the host changed stays, and is forgotten.
    fn delete(&mut self, id: Id, path: &std::path::Path, is_directory: bool) -> io::Result<()> {
        let changed = match (is_directory, self.root.file(path, false)) {
            (false, Ok((_, metadata))) => {
                self.tree.get(id).is_some_and(|node| node.seen != Seen::of(&metadata))
            }
            _ => false,
        };
        if changed {
            self.notices.say(format!(
                "'{}' was deleted by the guest, but changed on the host: it stays",
                shown(path)
            ));
        } else {
            match self.root.remove(path, is_directory) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => {
                    self.notices
                        .say(format!("'{}' stays: it holds files that the guest cannot see", shown(path)));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if let Some(node) = self.tree.get(id) {
            self.runs.forget(id, &node.chain);
        }
        self.tree.remove(id);
        Ok(())
    }
}
