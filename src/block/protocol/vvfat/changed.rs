//! Reading back what the guest touched since the last flush, so that a flush costs what changed and not the whole tree.
//!
//! ```text
//!   fresh sectors ─▶ Touched: directories, chains (by sectors of the FAT), contents
//!                       └─▶ only these are read anew ─▶ a State that speaks of them alone
//! ```
//!
//! It stands on a flush that left nothing open ([`Settled`]): from then on the tree is what the guest sees, and every
//! sector that it did not write says what it said. Where a directory comes, goes, moves or grows, and where something makes
//! no sense, all is read (module `state`): that alone says what is wrong.

use super::entry::{Entry, Fields};
use super::fat::Fat;
use super::scan::MAX_NODES;
use super::state::{ClusterSet, Dots, Found, Reader, Refusal, State, check_boot_sector};
use super::tree::{Chain, Id, Node, ROOT, Tree};
use super::volume::Volume;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::Range;

/// What holds since a flush that left nothing open.
pub(super) struct Settled {
    /// Clusters of all that the guest sees.
    pub(super) claimed: ClusterSet,
    pub(super) directories: Directories,
    /// Files that the guest does not see and still has hold of.
    pub(super) held: HashSet<Id>,
}

/// Clusters of directories: the first ones, how many, and whose.
pub(super) struct Directories(BTreeMap<u32, (u32, Id)>);

impl Directories {
    pub(super) fn of(tree: &Tree) -> Directories {
        let all = tree.iter().filter(|(_, node)| node.fields.is_directory());
        let runs = all.flat_map(|(id, node)| node.chain.iter().map(move |(start, len)| (*start, (*len, id))));
        Directories(runs.collect())
    }

    /// Those that have any of some clusters.
    fn among(&self, clusters: Range<u32>) -> impl Iterator<Item = Id> {
        let before = self.0.range(..clusters.start).next_back();
        let before = before.filter(|(start, (len, _))| *start + len > clusters.start);
        before.into_iter().chain(self.0.range(clusters)).map(|(_, (_, id))| *id)
    }
}

/// What the guest wrote to.
#[derive(Default)]
struct Touched {
    directories: BTreeSet<Id>,
    /// Files and directories with an entry in a sector of the FAT.
    chains: BTreeSet<Id>,
    contents: BTreeSet<Id>,
}

impl Touched {
    fn of(volume: &Volume, directories: &Directories) -> Touched {
        let (mut touched, layout) = (Touched::default(), &volume.layout);
        let fat = layout.fat_start()..layout.fat_start() + layout.fat_sectors;
        let data = layout.data_start()..layout.sector_of(layout.end_cluster());
        for range in volume.overlay.iter().flat_map(|overlay| overlay.fresh().ranges()) {
            if let Some(sectors) = within(&range, &fat) {
                let clusters = layout.clusters_of_fat(sectors);
                touched
                    .chains
                    .extend(volume.runs.files_in(clusters.clone()).chain(directories.among(clusters)));
            }
            if within(&range, &(layout.root_start()..layout.data_start())).is_some() {
                touched.directories.insert(ROOT);
            }
            if let Some(sectors) = within(&range, &data) {
                let clusters = layout.clusters_of_data(sectors);
                touched.contents.extend(volume.runs.files_in(clusters.clone()));
                touched.directories.extend(directories.among(clusters));
            }
        }
        touched
    }
}

/// What of a range is in an area, counted from the area's start.
fn within(range: &Range<u64>, area: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) = (range.start.max(area.start), range.end.min(area.end));
    (start < end).then(|| start - area.start..end - area.start)
}

/// Reads what the guest touched; `None` where all must be read.
pub(super) fn read_touched(
    volume: &mut Volume,
    settled: Settled,
) -> io::Result<Option<(State, Directories)>> {
    let touched = Touched::of(volume, &settled.directories);
    let reader = Reader { volume, fat: Fat::default(), claimed: settled.claimed };
    let part = Part {
        reader,
        touched,
        held: settled.held,
        listings: Vec::new(),
        updated: HashMap::new(),
        numbers: HashMap::new(),
        found: Vec::new(),
    };
    match part.read() {
        Ok(state) => Ok(Some((state, settled.directories))),
        Err(Refusal::Inconsistent(_)) => Ok(None),
        Err(Refusal::Io(error)) => Err(error),
    }
}

/// Says that all must be read.
fn unusual<T>() -> Result<T, Refusal> {
    Err(Refusal::Inconsistent("directories changed".to_owned()))
}

/// An entry of a directory, and the file that it was and is, if its chain was not touched.
type Listed = (Entry, Option<Id>);

/// The part of the disk that was touched.
struct Part<'a> {
    reader: Reader<'a>,
    touched: Touched,
    held: HashSet<Id>,
    /// The directories that were touched, with their entries.
    listings: Vec<(Id, Vec<Listed>)>,
    /// What the entries of directories say now.
    updated: HashMap<Id, Fields>,
    /// The place in `found` of each directory that is there.
    numbers: HashMap<Id, usize>,
    found: Vec<Found>,
}

impl Part<'_> {
    fn read(mut self) -> Result<State, Refusal> {
        check_boot_sector(self.reader.volume)?;
        for id in self.touched.chains.clone() {
            self.check_directory_chain(id)?;
        }
        for id in self.touched.directories.clone() {
            let listed = self.list(id)?;
            self.listings.push((id, listed));
        }
        let entries: usize = self.listings.iter().map(|(_, listed)| listed.len()).sum();
        if self.reader.volume.tree.len() + entries > MAX_NODES {
            return unusual();
        }
        let files = self.files();
        self.release(&files);
        self.number(ROOT);
        for (id, listed) in std::mem::take(&mut self.listings) {
            self.add_listed(id, listed)?;
        }
        for id in &files {
            if !self.is_listed(*id) {
                self.add_file(*id)?;
            }
        }
        let nodes = self.numbers.keys().chain(&files).chain(&self.held).copied().collect();
        Ok(State { found: self.found, claimed: self.reader.claimed, nodes })
    }

    fn node(&self, id: Id) -> Result<&Node, Refusal> {
        self.reader.volume.tree.get(id).map_or_else(unusual, Ok)
    }

    /// A directory's chain must be as it was.
    fn check_directory_chain(&mut self, id: Id) -> Result<(), Refusal> {
        let node = self.node(id)?;
        if !node.fields.is_directory() || node.fields.cluster == 0 {
            return Ok(());
        }
        let (cluster, chain) = (node.fields.cluster, node.chain.clone());
        self.reader.claimed.remove(&chain);
        if self.reader.chain(cluster)? == chain { Ok(()) } else { unusual() }
    }

    /// The entries of a directory, in which the same directories must be as before.
    fn list(&mut self, id: Id) -> Result<Vec<Listed>, Refusal> {
        let node = self.node(id)?;
        let (chain, parent) = (node.chain.clone(), self.node(node.parent)?);
        let dots = Dots::new(node.fields.cluster, parent.fields.cluster, node.parent == ROOT);
        let entries = self.reader.entries(&chain, (id != ROOT).then_some(dots))?;
        let tree = &self.reader.volume.tree;
        let members = tree.members(id).filter(|id| !self.held.contains(id));
        let members = members.filter_map(|id| Some((id, tree.get(id)?)));
        let mut directories = 0;
        let mut by_cluster: HashMap<u32, Id> = HashMap::new();
        for (member, node) in members {
            directories += usize::from(node.fields.is_directory());
            by_cluster.insert(node.fields.cluster, member);
        }
        by_cluster.remove(&0);
        let mut listed = Vec::with_capacity(entries.len());
        for entry in entries {
            let was = by_cluster.remove(&entry.fields.cluster).and_then(|id| Some((id, tree.get(id)?)));
            let same = was.filter(|(_, node)| node.fields.is_directory() == entry.fields.is_directory());
            match same {
                Some((id, node)) if entry.fields.is_directory() && entry.name() == Some(&*node.name) => {
                    self.updated.insert(id, entry.fields);
                    directories -= 1;
                    listed.push((entry, Some(id)));
                }
                _ if entry.fields.is_directory() => return unusual(),
                same => {
                    let same = same.map(|(id, _)| id).filter(|id| !self.touched.chains.contains(id));
                    listed.push((entry, same));
                }
            }
        }
        if directories == 0 { Ok(listed) } else { unusual() }
    }

    fn is_listed(&self, id: Id) -> bool {
        let parent = self.reader.volume.tree.get(id).map(|node| node.parent);
        parent.is_some_and(|parent| self.touched.directories.contains(&parent))
    }

    /// The files that the guest saw of which something was touched.
    fn files(&self) -> BTreeSet<Id> {
        let tree = &self.reader.volume.tree;
        let members = self.touched.directories.iter().flat_map(|id| tree.members(*id));
        let touched = self.touched.chains.iter().chain(&self.touched.contents).copied();
        let is_file = |id: &Id| tree.get(*id).is_some_and(|node| !node.fields.is_directory());
        members.chain(touched).filter(|id| is_file(id) && !self.held.contains(id)).collect()
    }

    /// Lets go of the clusters of all files whose chains are read anew.
    fn release(&mut self, files: &BTreeSet<Id>) {
        let kept: HashSet<Id> =
            self.listings.iter().flat_map(|(_, listed)| listed.iter().filter_map(|(_, id)| *id)).collect();
        for id in files.iter().filter(|id| !kept.contains(id)) {
            if !self.is_listed(*id) && !self.touched.chains.contains(id) {
                continue;
            }
            if let Some(node) = self.reader.volume.tree.get(*id) {
                self.reader.claimed.remove(&node.chain);
            }
        }
    }

    /// The place of a directory in `found`, to which it is added behind those above it.
    fn number(&mut self, id: Id) -> usize {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let Some(node) = self.reader.volume.tree.get(id) else { return 0 };
        let mut found = self.as_it_was(id, node);
        if id != ROOT {
            found.parent = self.number(self.parent_of(id));
            found.path_len += self.found[found.parent].path_len + 1;
        }
        self.found.push(found);
        self.numbers.insert(id, self.found.len() - 1);
        self.found.len() - 1
    }

    fn parent_of(&self, id: Id) -> Id {
        self.reader.volume.tree.get(id).map_or(ROOT, |node| node.parent)
    }

    /// What the guest saw of a node, in the root.
    fn as_it_was(&self, id: Id, node: &Node) -> Found {
        Found {
            parent: 0,
            name: node.name.clone(),
            host_name: node.name.clone(),
            fields: self.updated.get(&id).copied().unwrap_or(node.fields),
            chain: node.chain.clone(),
            path_len: node.name.len(),
        }
    }

    /// Adds all that is in a directory.
    fn add_listed(&mut self, directory: Id, listed: Vec<Listed>) -> Result<(), Refusal> {
        let number = self.number(directory);
        for (entry, same) in listed {
            if let Some(id) = same.filter(|_| entry.fields.is_directory()) {
                self.number(id);
                continue;
            }
            let chain = match same {
                Some(id) => self.node(id)?.chain.clone(),
                None if entry.fields.cluster == 0 => Chain::new(),
                None => self.reader.chain(entry.fields.cluster)?,
            };
            let above = self.found[number].path_len;
            let found = self.reader.item_with(entry, number, above, chain)?;
            self.found.push(found);
        }
        Ok(())
    }

    /// Adds a file whose entry was not touched.
    fn add_file(&mut self, id: Id) -> Result<(), Refusal> {
        let node = self.node(id)?;
        let (mut found, cluster) = (self.as_it_was(id, node), node.fields.cluster);
        found.parent = self.number(self.parent_of(id));
        if self.touched.chains.contains(&id) && cluster != 0 {
            found.chain = self.reader.chain(cluster)?;
        }
        self.reader.check_len(&found.name, &found.fields, &found.chain)?;
        self.found.push(found);
        Ok(())
    }
}
