//! Reading back what the disk shows: the tree that the guest sees, if the FAT and the directories make sense.
//!
//! A guest writes its FAT and its directories in any order; between two of these writes the disk can be anything. So
//! nothing is believed before all of it holds:
//!
//! * the boot sector describes the volume that we made;
//! * every chain begins and stays inside the disk, ends in an end mark, and shares no cluster with another;
//! * a file's chain is long enough for its size; a directory begins with its `.` and `..`;
//! * names are names, and no two of a directory are the same.
//!
//! Only the first FAT counts: systems write the second one after it.

use super::boot::is_same_volume;
use super::entry::{self, DOT, DOT_DOT, Entry, Fields};
use super::fat::Fat;
use super::geometry::{ENTRY, Layout, MAX_DIRECTORY};
use super::name::is_fit_for_host;
use super::scan::{MAX_NODES, MAX_PATH};
use super::tree::{Chain, Id};
use super::volume::Volume;
use std::collections::HashSet;
use std::io;

/// A file or a directory that the guest sees.
#[derive(Debug)]
pub(super) struct Found {
    /// Its directory, by number; those come first. The root is number 0 and its own parent.
    pub(super) parent: usize,
    /// Its name on the disk.
    pub(super) name: String,
    /// The name that it is to have on the host, should it have none yet.
    pub(super) host_name: String,
    pub(super) fields: Fields,
    pub(super) chain: Chain,
    /// Bytes of its path on the host, at most.
    pub(super) path_len: usize,
}

/// What the guest sees, of all of the disk or of what changed.
#[derive(Debug)]
pub(super) struct State {
    pub(super) found: Vec<Found>,
    /// Clusters of all that the guest sees.
    pub(super) claimed: ClusterSet,
    /// The nodes of which this speaks: those that none of `found` is are gone.
    pub(super) nodes: Vec<Id>,
}

/// Why nothing can be made of the disk.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It makes no sense as it is now.
    Inconsistent(String),
    /// It could not be read.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Io(error)
    }
}

fn inconsistent<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Inconsistent(what.into()))
}

/// A set of clusters.
#[derive(Debug, PartialEq)]
pub(super) struct ClusterSet(Vec<u64>);

impl ClusterSet {
    /// Of the clusters of a disk, those before `end`.
    pub(super) fn before(end: u32, layout: &Layout) -> ClusterSet {
        let mut words = vec![u64::MAX; end as usize / 64];
        words.push((1 << (end % 64)) - 1);
        // The first two numbers are no clusters'.
        words[0] &= !3;
        words.resize(layout.end_cluster() as usize / 64 + 1, 0);
        ClusterSet(words)
    }

    pub(super) fn has(&self, cluster: u32) -> bool {
        self.0.get((cluster / 64) as usize).is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    /// Puts a cluster in; false if it is in already.
    pub(super) fn insert(&mut self, cluster: u32) -> bool {
        let new = !self.has(cluster);
        if let Some(word) = self.0.get_mut((cluster / 64) as usize) {
            *word |= 1 << (cluster % 64);
        }
        new
    }

    /// Takes the clusters of a chain out.
    pub(super) fn remove(&mut self, chain: &Chain) {
        for cluster in chain.iter().flat_map(|(start, len)| *start..start + len) {
            if let Some(word) = self.0.get_mut((cluster / 64) as usize) {
                *word &= !(1 << (cluster % 64));
            }
        }
    }
}

/// Reads the state of the disk.
pub(super) fn read_state(volume: &mut Volume) -> Result<State, Refusal> {
    check_boot_sector(volume)?;
    let nodes = volume.tree.iter().map(|(id, _)| id).collect();
    let claimed = ClusterSet::before(0, &volume.layout);
    let mut reader = Reader { fat: Fat::default(), claimed, volume };
    let mut found = vec![reader.root()?];
    let mut next = 0;
    while next < found.len() {
        if found[next].fields.is_directory() {
            reader.directory(&mut found, next)?;
        }
        next += 1;
    }
    Ok(State { found, claimed: reader.claimed, nodes })
}

pub(super) fn check_boot_sector(volume: &mut Volume) -> Result<(), Refusal> {
    let at = volume.layout.partition;
    let theirs = volume.read(at..at + 1)?;
    match is_same_volume(&volume.layout, &volume.reserved, &theirs) {
        true => Ok(()),
        false => inconsistent("the guest made another file system"),
    }
}

/// What reads the disk.
pub(super) struct Reader<'a> {
    pub(super) volume: &'a mut Volume,
    pub(super) fat: Fat,
    pub(super) claimed: ClusterSet,
}

impl Reader<'_> {
    fn root(&mut self) -> Result<Found, Refusal> {
        let node = self.volume.tree.get(super::tree::ROOT);
        let fields = node.map(|node| node.fields).unwrap_or_default();
        let chain = match fields.cluster {
            0 => Chain::new(),
            cluster => self.chain(cluster)?,
        };
        Ok(Found { parent: 0, name: String::new(), host_name: String::new(), fields, chain, path_len: 0 })
    }

    /// Adds all that is in a directory.
    fn directory(&mut self, found: &mut Vec<Found>, number: usize) -> Result<(), Refusal> {
        let parent = found[number].parent;
        let dots = Dots::new(found[number].fields.cluster, found[parent].fields.cluster, parent == 0);
        let entries = self.entries(&found[number].chain, (number > 0).then_some(dots))?;
        if entries.len() > MAX_NODES.saturating_sub(found.len()) {
            return inconsistent("there are too many files");
        }
        for entry in entries {
            let item = self.item(entry, number, found[number].path_len)?;
            found.push(item);
        }
        Ok(())
    }

    /// The entries of a directory, which begins with `dots` if it is not the root.
    pub(super) fn entries(&mut self, chain: &Chain, dots: Option<Dots>) -> Result<Vec<Entry>, Refusal> {
        let bytes = self.directory_bytes(chain)?;
        dots.map_or(Ok(()), |dots| dots.check(&bytes))?;
        let entries = entry::read(if dots.is_some() { &bytes[2 * ENTRY..] } else { &bytes });
        let mut names = HashSet::new();
        for entry in &entries {
            match entry.name() {
                Some(name) if !names.insert(name) => {
                    return inconsistent(format!("two entries are called '{name}'"));
                }
                Some(_) => {}
                None => {
                    let short = entry.short.escape_ascii();
                    return inconsistent(format!("a directory entry has no name, {short}"));
                }
            }
        }
        Ok(entries)
    }

    fn directory_bytes(&mut self, chain: &Chain) -> Result<Vec<u8>, Refusal> {
        let layout = self.volume.layout;
        if chain.is_empty() {
            return Ok(self.volume.read(layout.root_start()..layout.data_start())?);
        }
        let clusters: u64 = chain.iter().map(|(_, len)| u64::from(*len)).sum();
        if clusters * layout.cluster_bytes() > MAX_DIRECTORY.max(layout.cluster_bytes()) {
            return inconsistent("a directory is larger than FAT allows");
        }
        let mut bytes = Vec::new();
        for (start, len) in chain {
            let sector = layout.sector_of(*start);
            bytes.extend(self.volume.read(sector..sector + u64::from(*len) * layout.cluster_sectors)?);
        }
        Ok(bytes)
    }

    /// What an entry of directory `parent` stands for, whose path is `above` bytes long.
    fn item(&mut self, entry: Entry, parent: usize, above: usize) -> Result<Found, Refusal> {
        let chain = match entry.fields.cluster {
            0 if entry.fields.is_directory() => {
                return inconsistent(format!("'{}' has no cluster", entry.name().unwrap_or_default()));
            }
            0 => Chain::new(),
            cluster => self.chain(cluster)?,
        };
        self.item_with(entry, parent, above, chain)
    }

    /// As [`Reader::item`], with the chain of the entry.
    pub(super) fn item_with(
        &self,
        entry: Entry,
        parent: usize,
        above: usize,
        chain: Chain,
    ) -> Result<Found, Refusal> {
        // What the host cannot hold goes by its alias, which it can.
        let names: Vec<String> = [entry.long_name, entry.short_name].into_iter().flatten().collect();
        let name = names.first().cloned().unwrap_or_default();
        let Some(host_name) = names.into_iter().find(|name| is_fit_for_host(name)) else {
            return inconsistent(format!("no file can be called '{}'", name.escape_default()));
        };
        let path_len = above + 1 + host_name.len();
        if path_len > MAX_PATH {
            return inconsistent("a path is too long for the host");
        }
        self.check_len(&name, &entry.fields, &chain)?;
        Ok(Found { parent, name, host_name, fields: entry.fields, chain, path_len })
    }

    /// A file's chain must be as long as the file.
    pub(super) fn check_len(&self, name: &str, fields: &Fields, chain: &Chain) -> Result<(), Refusal> {
        let have: u64 = chain.iter().map(|(_, len)| u64::from(*len)).sum();
        match fields.is_directory() || have * self.volume.layout.cluster_bytes() >= u64::from(fields.size) {
            true => Ok(()),
            false => inconsistent(format!("the chain of '{name}' is shorter than the file")),
        }
    }

    /// Follows a chain to its end and claims its clusters.
    pub(super) fn chain(&mut self, first: u32) -> Result<Chain, Refusal> {
        let layout = self.volume.layout;
        let (mut chain, mut at) = (Chain::new(), first);
        loop {
            if !(2..layout.end_cluster()).contains(&at) {
                return inconsistent(format!("a chain leaves the disk at cluster {at}"));
            }
            let (end, next) = self.fat.run(self.volume, at)?;
            for cluster in at..end {
                if !self.claimed.insert(cluster) {
                    return inconsistent(format!("cluster {cluster} is in two places"));
                }
            }
            match chain.last_mut() {
                Some((start, len)) if *start + *len == at => *len += end - at,
                _ => chain.push((at, end - at)),
            }
            match next {
                0 | 1 => return inconsistent(format!("a chain ends in a free cluster, {}", end - 1)),
                next if next >= layout.fat_type.end_mark() & !7 => return Ok(chain),
                next => at = next,
            }
        }
    }
}

/// What a directory begins with: itself and its parent, by their first clusters.
#[derive(Clone, Copy)]
pub(super) struct Dots {
    own: u32,
    /// 0 for the root.
    parent: u32,
    /// The root's number too.
    by_number: u32,
}

impl Dots {
    /// Of a directory at cluster `own` in one at cluster `parent`.
    pub(super) fn new(own: u32, parent: u32, parent_is_root: bool) -> Dots {
        Dots { own, parent: if parent_is_root { 0 } else { parent }, by_number: parent }
    }

    fn check(self, bytes: &[u8]) -> Result<(), Refusal> {
        let dots = entry::read_two(bytes);
        let is = |at: usize, short, clusters: [u32; 2]| {
            dots.get(at).is_some_and(|entry: &Entry| {
                entry.short == short
                    && entry.fields.is_directory()
                    && clusters.contains(&entry.fields.cluster)
            })
        };
        match is(0, DOT, [self.own; 2]) && is(1, DOT_DOT, [self.parent, self.by_number]) {
            true => Ok(()),
            false => inconsistent("a directory does not begin with itself and its parent"),
        }
    }
}
