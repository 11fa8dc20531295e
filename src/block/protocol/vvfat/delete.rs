//! Deleting on the host what the guest deleted. What the host changed, or what holds files that the guest cannot see,
//! stays there and is forgotten.

use super::host::{Seen, shown};
use super::sync::Sync;
use super::tree::Id;
use super::volume::Volume;
use std::io;
use std::path::{Path, PathBuf};

impl Sync<'_> {
    /// Deletes what is gone: what is in directories before the directories.
    pub(super) fn delete(&mut self) {
        let mut gone: Vec<(PathBuf, Id)> = self
            .plan
            .gone
            .iter()
            .copied()
            .filter(|id| !self.plan.held.contains(id))
            .map(|id| (self.volume.tree.path(id), id))
            .collect();
        gone.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        for (path, id) in gone {
            let Some(node) = self.volume.tree.get(id) else { continue };
            let (parent, is_directory) = (node.parent, node.fields.is_directory());
            // Something in it is held.
            if is_directory && self.volume.tree.members(id).next().is_some() {
                continue;
            }
            match self.volume.remove(id, &path, is_directory) {
                Ok(()) => drop(self.touched.insert(parent)),
                Err(error) => {
                    let what = format!("Could not delete '{}' on the host", shown(&path));
                    self.failure.get_or_insert((what, error));
                }
            }
        }
    }
}

/// Whether there is nothing of that name: neither it, nor the directories on the way to it.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

impl Volume {
    /// Deletes a file or an empty directory of the host; one that the host changed stays, and is forgotten.
    fn remove(&mut self, id: Id, path: &Path, is_directory: bool) -> io::Result<()> {
        let seen = self.tree.get(id).map(|node| node.seen).unwrap_or_default();
        let changed = match self.root.look(path) {
            Ok(metadata) if is_directory => !metadata.is_dir(),
            Ok(metadata) => !metadata.is_file() || seen != Seen::of(&metadata),
            Err(error) if is_gone(&error) => false,
            Err(error) => return Err(error),
        };
        if changed {
            self.notices.say(format!(
                "'{}' was deleted by the guest, but changed on the host: it stays",
                shown(path)
            ));
            self.bring_back(path)?;
        } else {
            match self.root.remove(path, is_directory) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => {
                    self.notices
                        .say(format!("'{}' stays: it holds files that the guest cannot see", shown(path)));
                    self.bring_back(path)?;
                }
                Err(error) if !is_gone(&error) => return Err(error),
                _ => self.leave_refuge(path),
            }
        }
        self.forget(id);
        Ok(())
    }

    /// Takes a node out of the tree, whatever the host has of it.
    pub(super) fn forget(&mut self, id: Id) {
        if let Some(node) = self.tree.get(id) {
            self.runs.forget(id, &node.chain);
        }
        self.tree.remove(id);
    }
}
