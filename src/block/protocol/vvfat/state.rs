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
use super::geometry::{ENTRY, FatType, MAX_DIRECTORY, SECTOR};
use super::name::is_fit_for_host;
use super::scan::{MAX_NODES, MAX_PATH};
use super::tree::Chain;
use super::volume::Volume;
use std::collections::{HashMap, HashSet};
use std::io;

/// Sectors of the FAT that are read at once; a multiple of three, so that no entry of 12 bits is cut.
const CHUNK: u64 = 24;
/// Most chunks that are kept.
const MAX_CHUNKS: usize = 256;

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
    path_len: usize,
}

/// What the guest sees.
#[derive(Debug)]
pub(super) struct State {
    pub(super) found: Vec<Found>,
    claimed: ClusterSet,
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
#[derive(Debug)]
struct ClusterSet(Vec<u64>);

impl ClusterSet {
    fn has(&self, cluster: u32) -> bool {
        self.0.get((cluster / 64) as usize).is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    /// Puts a cluster in; false if it is in already.
    fn insert(&mut self, cluster: u32) -> bool {
        let new = !self.has(cluster);
        if let Some(word) = self.0.get_mut((cluster / 64) as usize) {
            *word |= 1 << (cluster % 64);
        }
        new
    }
}

impl State {
    /// Whether a cluster belongs to something that the guest sees.
    pub(super) fn is_claimed(&self, cluster: u32) -> bool {
        self.claimed.has(cluster)
    }
}

/// Reads the state of the disk.
pub(super) fn read_state(volume: &mut Volume) -> Result<State, Refusal> {
    check_boot_sector(volume)?;
    let words = volume.layout.end_cluster() as usize / 64 + 1;
    let mut reader = Reader { fat: Fat::default(), claimed: ClusterSet(vec![0; words]), volume };
    let mut found = vec![reader.root()?];
    let mut next = 0;
    while next < found.len() {
        if found[next].fields.is_directory() {
            reader.directory(&mut found, next)?;
        }
        next += 1;
    }
    Ok(State { found, claimed: reader.claimed })
}

fn check_boot_sector(volume: &mut Volume) -> Result<(), Refusal> {
    let at = volume.layout.partition;
    let theirs = volume.read(at..at + 1)?;
    match is_same_volume(&volume.layout, &volume.reserved, &theirs) {
        true => Ok(()),
        false => inconsistent("the guest made another file system"),
    }
}

struct Reader<'a> {
    volume: &'a mut Volume,
    fat: Fat,
    claimed: ClusterSet,
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
        let bytes = self.directory_bytes(&found[number].chain)?;
        let is_root = number == 0;
        if !is_root {
            let parent = &found[found[number].parent];
            let up = if found[number].parent == 0 { 0 } else { parent.fields.cluster };
            check_dots(&bytes, found[number].fields.cluster, up, parent.fields.cluster)?;
        }
        let (mut names, mut free) = (HashSet::new(), MAX_NODES.saturating_sub(found.len()));
        for entry in entry::read(if is_root { &bytes } else { &bytes[2 * ENTRY..] }) {
            let item = self.item(entry, number, found[number].path_len)?;
            if !names.insert(item.name.clone()) {
                return inconsistent(format!("two entries are called '{}'", item.name));
            }
            if free == 0 {
                return inconsistent("there are too many files");
            }
            free -= 1;
            found.push(item);
        }
        Ok(())
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

    fn item(&mut self, entry: Entry, parent: usize, above: usize) -> Result<Found, Refusal> {
        // What the host cannot hold goes by its alias, which it can.
        let names: Vec<String> = [entry.long_name, entry.short_name].into_iter().flatten().collect();
        let Some(name) = names.first().cloned() else {
            return inconsistent(format!("a directory entry has no name, {}", entry.short.escape_ascii()));
        };
        let Some(host_name) = names.into_iter().find(|name| is_fit_for_host(name)) else {
            return inconsistent(format!("no file can be called '{}'", name.escape_default()));
        };
        let path_len = above + 1 + host_name.len();
        if path_len > MAX_PATH {
            return inconsistent("a path is too long for the host");
        }
        let chain = match entry.fields.cluster {
            0 if entry.fields.is_directory() => return inconsistent(format!("'{name}' has no cluster")),
            0 => Chain::new(),
            cluster => self.chain(cluster)?,
        };
        let have: u64 = chain.iter().map(|(_, len)| u64::from(*len)).sum();
        if !entry.fields.is_directory()
            && have * self.volume.layout.cluster_bytes() < u64::from(entry.fields.size)
        {
            return inconsistent(format!("the chain of '{name}' is shorter than the file"));
        }
        Ok(Found { parent, name, host_name, fields: entry.fields, chain, path_len })
    }

    /// Follows a chain to its end and claims its clusters.
    fn chain(&mut self, first: u32) -> Result<Chain, Refusal> {
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

/// A directory begins with itself and its parent; a parent that is the root may be named by number too.
fn check_dots(bytes: &[u8], own: u32, parent: u32, parent_by_number: u32) -> Result<(), Refusal> {
    let dots = entry::read_two(bytes);
    let sound = |at: usize, short, clusters: [u32; 2]| {
        dots.get(at).is_some_and(|entry: &Entry| {
            entry.short == short && entry.fields.is_directory() && clusters.contains(&entry.fields.cluster)
        })
    };
    match sound(0, DOT, [own, own]) && sound(1, DOT_DOT, [parent, parent_by_number]) {
        true => Ok(()),
        false => inconsistent("a directory does not begin with itself and its parent"),
    }
}

/// The first FAT, read as it is needed.
#[derive(Default)]
pub(super) struct Fat {
    chunks: HashMap<u64, Vec<u8>>,
}

impl Fat {
    /// From a cluster to the end of a run of clusters that follow each other, and what the last one's entry says.
    fn run(&mut self, volume: &mut Volume, cluster: u32) -> io::Result<(u32, u32)> {
        // As it was made, where the guest has not written.
        if let Some(end) = volume.made_chain(cluster) {
            let sectors = sector_of(volume, cluster)..sector_of(volume, end - 1) + 2;
            if !volume.overlay.as_ref().is_some_and(|overlay| overlay.present().has_any(sectors)) {
                return Ok((end, volume.layout.fat_type.end_mark()));
            }
        }
        Ok((cluster + 1, self.entry(volume, cluster)?))
    }

    /// The entry of a cluster.
    pub(super) fn entry(&mut self, volume: &mut Volume, cluster: u32) -> io::Result<u32> {
        let bits = volume.layout.fat_type.bits();
        let offset = u64::from(cluster) * bits / 8;
        let number = offset / (CHUNK * SECTOR);
        if !self.chunks.contains_key(&number) {
            if self.chunks.len() == MAX_CHUNKS {
                self.chunks.clear();
            }
            let start = volume.layout.fat_start() + number * CHUNK;
            let end = (start + CHUNK).min(volume.layout.fat_start() + volume.layout.fat_sectors);
            self.chunks.insert(number, volume.read(start..end)?);
        }
        let chunk = self.chunks.get(&number).map_or(&[][..], Vec::as_slice);
        let at = (offset % (CHUNK * SECTOR)) as usize;
        let byte = |index: usize| u32::from(chunk.get(at + index).copied().unwrap_or(0));
        let pair = byte(0) | byte(1) << 8;
        Ok(match volume.layout.fat_type {
            FatType::Fat12 if cluster.is_multiple_of(2) => pair & 0xfff,
            FatType::Fat12 => pair >> 4,
            FatType::Fat16 => pair,
            FatType::Fat32 => (pair | byte(2) << 16 | byte(3) << 24) & 0x0fff_ffff,
        })
    }
}

/// The sector of the first FAT in which the entry of a cluster begins.
fn sector_of(volume: &Volume, cluster: u32) -> u64 {
    volume.layout.fat_start() + u64::from(cluster) * volume.layout.fat_type.bits() / 8 / SECTOR
}
