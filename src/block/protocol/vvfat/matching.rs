//! Which file of the host is which of those that the guest sees, and what is to become of the others.
//!
//! * Something that begins at the same cluster, and was made at the same time, is the same: renamed, moved, or as it
//!   was. Systems keep both when they rename.
//! * Else something in the same place is the same, with another content.
//! * Else an empty file, which has no cluster, is one that has its times.
//! * What is left of the host's files was deleted, if its first cluster is free or another's. If that cluster is
//!   neither, the guest still has hold of the file: it is between two steps of a rename, or the file is open there.

use super::entry::Fields;
use super::fat::Fat;
use super::leftovers::refuge_of;
use super::name::numbered;
use super::state::State;
use super::tree::{Chain, Id, Node, ROOT};
use super::volume::Volume;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::Hash;
use std::io;
use std::path::Path;

/// How many names are tried for one file.
const NAMES: u32 = 100;

/// What belongs to what.
pub(super) struct Plan {
    /// For each that the guest sees, the node that it is.
    pub(super) ids: Vec<Option<Id>>,
    /// The name that each is to have on the host; `None` where another one has it.
    pub(super) names: Vec<Option<OsString>>,
    /// Nodes that the guest does not see any more.
    pub(super) gone: HashSet<Id>,
    /// Those of them that it still has hold of.
    pub(super) held: HashSet<Id>,
}

/// Finds out what belongs to what.
///
/// # Errors
/// When the FAT cannot be read.
pub(super) fn plan(volume: &mut Volume, state: &State) -> io::Result<Plan> {
    let mut ids = vec![None; state.found.len()];
    ids[0] = Some(ROOT);
    let mut taken = by_cluster(volume, state, &mut ids);
    by_place(volume, state, &mut ids, &mut taken);
    by_birth(volume, state, &mut ids, &mut taken);
    let names = names(volume, state, &ids);
    let gone: HashSet<Id> = state.nodes.iter().copied().filter(|id| !taken.contains(id)).collect();
    let mut held = HashSet::new();
    let mut fat = Fat::default();
    for id in &gone {
        if is_held(volume, state, &mut fat, &gone, *id)? {
            held.insert(*id);
        }
    }
    Ok(Plan { ids, names, gone, held })
}

/// The nodes of which a state speaks.
fn nodes_of<'a>(volume: &'a Volume, state: &'a State) -> impl Iterator<Item = (Id, &'a Node)> {
    state.nodes.iter().filter_map(|id| Some((*id, volume.tree.get(*id)?)))
}

fn by_cluster(volume: &Volume, state: &State, ids: &mut [Option<Id>]) -> HashSet<Id> {
    let nodes = nodes_of(volume, state).filter(|(_, node)| node.fields.cluster != 0);
    let begins: HashMap<u32, Id> = nodes.map(|(id, node)| (node.fields.cluster, id)).collect();
    let mut taken = HashSet::from([ROOT]);
    for (found, slot) in state.found.iter().zip(ids.iter_mut()).skip(1) {
        let same = begins.get(&found.fields.cluster).copied().filter(|id| {
            volume.tree.get(*id).is_some_and(|node| {
                node.fields.is_directory() == found.fields.is_directory()
                    && node.fields.created == found.fields.created
            })
        });
        *slot = same.filter(|id| taken.insert(*id));
    }
    taken
}

fn by_place(volume: &Volume, state: &State, ids: &mut [Option<Id>], taken: &mut HashSet<Id>) {
    let places: HashMap<(Id, &str), Id> =
        nodes_of(volume, state).map(|(id, node)| ((node.parent, node.name.as_str()), id)).collect();
    for (number, found) in state.found.iter().enumerate().skip(1) {
        let (None, Some(parent)) = (ids[number], ids[found.parent]) else { continue };
        let same = places.get(&(parent, found.name.as_str())).copied().filter(|id| {
            let node = volume.tree.get(*id);
            node.is_some_and(|node| node.fields.is_directory() == found.fields.is_directory())
        });
        ids[number] = same.filter(|id| taken.insert(*id));
    }
}

/// What has no cluster, and was renamed or moved, is known by its times, if they are those of one alone.
fn by_birth(volume: &Volume, state: &State, ids: &mut [Option<Id>], taken: &mut HashSet<Id>) {
    let times = |fields: &Fields| (fields.created, fields.modified);
    let is_empty = |fields: &Fields| fields.cluster == 0 && !fields.is_directory();
    let gone = nodes_of(volume, state).filter(|(id, node)| is_empty(&node.fields) && !taken.contains(id));
    let gone = only_ones(gone.map(|(id, node)| (times(&node.fields), id)));
    let new = state.found.iter().enumerate();
    let new = new.filter(|(number, found)| ids[*number].is_none() && is_empty(&found.fields));
    for (times, number) in only_ones(new.map(|(number, found)| (times(&found.fields), number))) {
        ids[number] = gone.get(&times).copied().filter(|id| taken.insert(*id));
    }
}

/// Those whose key no other has.
fn only_ones<K: Eq + Hash, V>(all: impl Iterator<Item = (K, V)>) -> HashMap<K, V> {
    let mut found: HashMap<K, Option<V>> = HashMap::new();
    for (key, value) in all {
        found.entry(key).and_modify(|other| *other = None).or_insert(Some(value));
    }
    found.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// What stays where it is keeps its name on the host; then the others get theirs, with a number where one that stays has
/// it (it is shown under another name, which the guest may give to something else), or something that was left out.
fn names(volume: &Volume, state: &State, ids: &[Option<Id>]) -> Vec<Option<OsString>> {
    let mut names: Vec<Option<OsString>> = vec![None; state.found.len()];
    let mut used: HashSet<(usize, OsString)> = HashSet::new();
    for (number, found) in state.found.iter().enumerate() {
        let node = ids[number].and_then(|id| volume.tree.get(id));
        let stays = node.filter(|node| Some(node.parent) == ids[found.parent] && node.name == found.name);
        // What an earlier flush could not bring from its refuge to its place is not in its place.
        let stays = stays.filter(|node| refuge_of(Path::new(&node.host_name)).is_none());
        if let Some(node) = stays {
            used.insert((found.parent, node.host_name.clone()));
            names[number] = Some(node.host_name.clone());
        }
    }
    for (number, found) in state.found.iter().enumerate().filter(|(number, _)| *number > 0) {
        if names[number].is_none() {
            let plain = std::iter::once(found.host_name.clone());
            let mut all = plain.chain((1..NAMES).map(|count| numbered(&found.host_name, count)));
            let parent = ids[found.parent];
            let is_hidden = |name: &str| parent.is_some_and(|id| volume.tree.hides(id, OsStr::new(name)));
            names[number] = all
                .find(|name| !is_hidden(name) && used.insert((found.parent, OsString::from(name))))
                .map(OsString::from);
        }
    }
    names
}

/// Whether the guest can still reach a node that it does not see, or a directory above it.
fn is_held(
    volume: &mut Volume,
    state: &State,
    fat: &mut Fat,
    unseen: &HashSet<Id>,
    id: Id,
) -> io::Result<bool> {
    let mut at = id;
    while unseen.contains(&at) {
        let Some((cluster, parent)) = volume.tree.get(at).map(|node| (node.fields.cluster, node.parent))
        else {
            break;
        };
        if cluster != 0 && !state.claimed.has(cluster) && fat.entry(volume, cluster)? != 0 {
            return Ok(true);
        }
        at = parent;
    }
    Ok(false)
}

/// Some clusters of a file that follow each other, and where they were before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The first one's place in the file.
    pub(super) index: u32,
    pub(super) len: u32,
    pub(super) now: u32,
    pub(super) before: Option<u32>,
}

impl Segment {
    /// Whether the clusters are those that the file had there before.
    pub(super) fn stayed(&self) -> bool {
        self.before == Some(self.now)
    }
}

/// The clusters of `now`, cut where they or those of `before` do not follow each other.
pub(super) fn segments(now: &Chain, before: &Chain) -> Vec<Segment> {
    let (mut segments, mut index) = (Vec::new(), 0);
    let mut old = before.iter().copied().peekable();
    for (mut start, mut left) in now.iter().copied() {
        while left > 0 {
            let (at, len) = match old.peek_mut() {
                Some((at, count)) => {
                    let (from, len) = (*at, left.min(*count));
                    (*at, *count) = (from + len, *count - len);
                    (Some(from), len)
                }
                None => (None, left),
            };
            old.next_if(|(_, count)| *count == 0);
            segments.push(Segment { index, len, now: start, before: at });
            (index, start, left) = (index + len, start + len, left - len);
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn segments_tell_where_each_cluster_was() {
        let found = segments(&smallvec![(5, 4), (20, 3)], &smallvec![(5, 2), (30, 4)]);
        let flat: Vec<_> = found
            .iter()
            .flat_map(|s| (0..s.len).map(move |at| (s.index + at, s.now + at, s.before.map(|b| b + at))))
            .collect();
        let expected = [
            (0, 5, Some(5)),
            (1, 6, Some(6)),
            (2, 7, Some(30)),
            (3, 8, Some(31)),
            (4, 20, Some(32)),
            (5, 21, Some(33)),
            (6, 22, None),
        ];
        assert_eq!(flat, expected);
        assert!(found[0].stayed() && !found[1].stayed());
    }
}
