//! Carrying what the guest wrote over to the host, at a flush: from the state of the disk, if it makes sense, to
//! operations on host files.
//!
//! 1. What the guest still uses of files that are about to change is kept in the overlay (module `keep`).
//! 2. Directories are made, what was renamed is renamed (module `place`).
//! 3. Contents are written, then attributes and times (module `content`).
//! 4. What the guest deleted is deleted (module `delete`): last, and only if all before succeeded.
//!
//! The tree is changed with every step that succeeded, so that it is always what the host has: a step that fails is
//! tried again at the next flush, and nothing else is lost by it.

use super::changed::{Directories, Settled, read_touched};
use super::content;
use super::delete::is_gone;
use super::host::shown;
use super::matching::{Plan, plan};
use super::place::no_directory;
use super::state::{Refusal, State, read_state};
use super::tree::Id;
use super::volume::Volume;
use crate::block::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io;

/// Carries over what can be; with `durable`, so that it survives a crash of the host.
///
/// # Errors
/// When something could not be carried over, though the disk makes sense: the guest must not believe that it was.
pub(super) fn sync(volume: &mut Volume, durable: bool) -> Result<()> {
    let is_clean = volume.overlay.as_ref().is_none_or(|overlay| overlay.fresh().is_empty());
    if is_clean && volume.pending.is_none() {
        return Ok(());
    }
    volume.tree.index();
    let touched = match volume.settled.take() {
        Some(settled) => read_touched(volume, settled).map_err(Error::from_io)?,
        None => None,
    };
    let (state, directories) = match touched {
        Some((state, directories)) => (state, Some(directories)),
        None => match read_state(volume) {
            Ok(state) => (state, None),
            Err(Refusal::Inconsistent(why)) => {
                volume.pending = Some(why);
                return Ok(());
            }
            Err(Refusal::Io(error)) => return Err(Error::from_io(error)),
        },
    };
    let plan = plan(volume, &state).map_err(Error::from_io)?;
    let held = Sync::new(volume, &state, plan, durable).run()?;
    let is_directory = |id: &Id| volume.tree.get(*id).is_none_or(|node| node.fields.is_directory());
    if !held.iter().any(is_directory) {
        let directories = directories.unwrap_or_else(|| Directories::of(&volume.tree));
        volume.settled = Some(Settled { claimed: state.claimed, directories, held });
    }
    Ok(())
}

/// One carrying over.
pub(super) struct Sync<'a> {
    pub(super) volume: &'a mut Volume,
    pub(super) state: &'a State,
    pub(super) plan: Plan,
    pub(super) durable: bool,
    /// Directories whose entries changed.
    pub(super) touched: HashSet<Id>,
    /// The first thing that failed: what, and why.
    pub(super) failure: Option<(String, io::Error)>,
}

impl<'a> Sync<'a> {
    fn new(volume: &'a mut Volume, state: &'a State, plan: Plan, durable: bool) -> Sync<'a> {
        Sync { volume, state, plan, durable, touched: HashSet::new(), failure: None }
    }

    /// Does all that can be done. Returns what the guest still has hold of.
    fn run(mut self) -> Result<HashSet<Id>> {
        self.keep_what_is_used().map_err(Error::from_io)?;
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
        self.volume.unsynced.extend(std::mem::take(&mut self.touched));
        self.make_durable().map_err(Error::from_io)?;
        self.remember_held();
        if let Some(overlay) = &mut self.volume.overlay {
            overlay.settle();
        }
        self.volume.pending = self.failure.as_ref().map(|(what, why)| format!("{what}: {why}"));
        let failure = self.failure.map(|(what, why)| Error::from_io(why).context(what));
        failure.map_or(Ok(self.plan.held), Err)
    }

    /// Remembers that something failed, and tells the user once for each file.
    fn note(&mut self, number: usize, done: io::Result<()>) {
        let Err(error) = done else { return };
        let name = match self.plan.ids[number] {
            Some(id) => {
                self.volume.warn_once(id, &format!("could not be brought up to date on the host ({error})"));
                if let Some(node) = self.volume.tree.get_mut(id) {
                    node.stale = true;
                }
                shown(self.volume.tree.path(id))
            }
            None => shown(&self.state.found[number].host_name),
        };
        self.failure.get_or_insert((format!("Could not bring '{name}' up to date on the host"), error));
    }

    /// Writes the content of a file, its attributes and times.
    fn write(&mut self, number: usize) -> io::Result<()> {
        let found = &self.state.found[number];
        let (parent, name) = (self.plan.ids[found.parent], &self.plan.names[number]);
        let (Some(parent), Some(name)) = (parent, name) else { return Err(no_directory()) };
        match self.plan.ids[number] {
            Some(id) if self.volume.tree.at(parent, name) == Some(id) => {
                if content::update(self, number, id)? {
                    self.touched.insert(parent);
                }
                Ok(())
            }
            // It could not be renamed; that was reported.
            Some(_) => Ok(()),
            None => content::create(self, number, parent, name.clone()),
        }
    }

    fn make_durable(&mut self) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        let all: Vec<Id> = self.volume.unsynced.iter().copied().collect();
        for id in all {
            if self.volume.tree.get(id).is_some() {
                match self.volume.root.directory(&self.volume.tree.path(id)) {
                    Ok(directory) => File::from(directory).sync_all()?,
                    // Moved or deleted by someone on the host.
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            self.volume.unsynced.remove(&id);
        }
        Ok(())
    }

    /// A file between two steps of a move may have been written to as well: that is not on the host yet.
    fn remember_held(&mut self) {
        let Some(overlay) = &self.volume.overlay else { return };
        let (tree, layout) = (&mut self.volume.tree, &self.volume.layout);
        for id in &self.plan.held {
            let Some(node) = tree.get_mut(*id).filter(|node| !node.fields.is_directory()) else { continue };
            node.stale |= node.chain.iter().any(|(start, len)| {
                let first = layout.sector_of(*start);
                overlay.fresh().has_any(first..first + u64::from(*len) * layout.cluster_sectors)
            });
        }
    }
}
