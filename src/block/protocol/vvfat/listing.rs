//! Listing directories of the host: what of each can be shown, and under which names; several directories, or parts of a
//! large one, at a time.

use super::entry::{ARCHIVE, DIRECTORY, Fields, READ_ONLY, len};
use super::geometry::{ENTRY, MAX_DIRECTORY};
use super::host::{Root, Seen, listing};
use super::name::{Names, Short, TEMPORARY};
use super::scan::MAX_PATH;
use super::stamp::Stamp;
use super::tree::{Chain, Id, Node, ROOT};
use std::ffi::OsString;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{Builder, available_parallelism, scope};

/// Most threads that list.
const THREADS: usize = 8;
/// A thread is worth starting for so many directories, and for so many files of one.
const DIRECTORIES: usize = 8;
const FILES: usize = 256;

/// What is in a directory.
#[derive(Default)]
pub(super) struct Listing {
    /// In the order of their names, with their aliases.
    pub(super) shown: Vec<(Node, Short)>,
    /// Bytes of their entries, with `.` and `..` or the label.
    pub(super) len: u32,
    /// What cannot be shown, and why.
    pub(super) left_out: Vec<(OsString, &'static str)>,
    /// Some of that has a name of ours.
    pub(super) has_temporary: bool,
}

/// An entry of the host that is to be shown.
struct Item {
    host_name: OsString,
    seen: Seen,
    fields: Fields,
}

/// What becomes of an entry.
enum Found {
    Shown(Item),
    LeftOut(OsString, &'static str),
    Temporary(OsString),
    /// Gone since it was listed.
    Gone,
}

/// Lists some directories. With `links`, links to files are shown as the files.
pub(super) fn list_all(root: &Root, links: bool, all: &[(Id, PathBuf)]) -> Vec<io::Result<Listing>> {
    let few = all.len() < 2 * DIRECTORIES;
    in_parallel(all, DIRECTORIES, |(id, path)| list(root, links, *id, path, few))
}

/// Lists one directory; on several threads, if it is large and `alone`.
fn list(root: &Root, links: bool, id: Id, path: &Path, alone: bool) -> io::Result<Listing> {
    let directory = root.directory(path)?;
    let entries = fs::read_dir(listing(&directory))?.collect::<io::Result<Vec<DirEntry>>>()?;
    let few = if alone { FILES } else { usize::MAX };
    let (mut items, mut all) = (Vec::with_capacity(entries.len()), Listing::default());
    for found in in_parallel(&entries, few, |entry| look(root, links, path, entry)) {
        match found {
            Found::Shown(item) => items.push(item),
            Found::LeftOut(name, why) => all.left_out.push((name, why)),
            Found::Temporary(name) => {
                all.has_temporary = true;
                all.left_out.push((name, "it was left behind by a write that was killed"));
            }
            Found::Gone => {}
        }
    }
    items.sort_unstable_by(|a, b| a.host_name.cmp(&b.host_name));
    all.name(id, items);
    Ok(all)
}

impl Listing {
    /// Gives names to all of directory `id`: first to those whose alias is their own name.
    fn name(&mut self, id: Id, items: Vec<Item>) {
        let mut names = Names::with_room(items.len());
        let mut named = Vec::with_capacity(items.len());
        for item in items {
            match names.long(&item.host_name) {
                Some(name) => {
                    let short = names.own_alias(&name);
                    named.push((item, name, short));
                }
                None => self.left_out.push((item.host_name, "there is no name left for it")),
            }
        }
        let mut used = 2 * ENTRY;
        self.shown.reserve(named.len());
        for (item, name, short) in named {
            let Some(short) = short.or_else(|| names.alias(&name)) else {
                self.left_out.push((item.host_name, "there is no short name left for it"));
                continue;
            };
            let len = len(&name, &short);
            if (used + len) as u64 > MAX_DIRECTORY {
                self.left_out.push((item.host_name, "its directory has more entries than FAT allows"));
                continue;
            }
            used += len;
            self.shown.push((item.node(id, name), short));
        }
        self.len = used as u32;
    }
}

impl Item {
    fn new(host_name: OsString, metadata: &Metadata) -> Item {
        let stamp = Stamp::from_unix(metadata.mtime());
        let writable = metadata.mode() & 0o222 != 0;
        let fields = match metadata.is_dir() {
            true => Fields::new(DIRECTORY, stamp, 0),
            false => {
                let attributes = if writable { ARCHIVE } else { ARCHIVE | READ_ONLY };
                Fields::new(attributes, stamp, metadata.len() as u32)
            }
        };
        Item { host_name, seen: Seen::of(metadata), fields }
    }

    /// As a node called `name` in directory `parent`.
    fn node(self, parent: Id, name: String) -> Node {
        Node {
            parent,
            host_name: self.host_name,
            name,
            fields: self.fields,
            chain: Chain::new(),
            seen: self.seen,
            warned: false,
            stale: false,
        }
    }
}

/// The directory that is shown itself, which is in itself and has no name.
pub(super) fn root_node(metadata: &Metadata) -> Node {
    Item::new(OsString::new(), metadata).node(ROOT, String::new())
}

fn look(root: &Root, links: bool, directory: &Path, entry: &DirEntry) -> Found {
    let host_name = entry.file_name();
    if host_name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
        return Found::Temporary(host_name);
    }
    if directory.as_os_str().len() + 1 + host_name.len() > MAX_PATH {
        return Found::LeftOut(host_name, "its path is too long");
    }
    let metadata = match entry.metadata() {
        Ok(metadata) if metadata.is_symlink() => match target(root, links, &directory.join(&host_name)) {
            Ok(metadata) => metadata,
            Err(why) => return Found::LeftOut(host_name, why),
        },
        Ok(metadata) => metadata,
        Err(_) => return Found::Gone,
    };
    let kind = metadata.file_type();
    let why = match () {
        () if kind.is_file() && metadata.len() > u64::from(u32::MAX) => "it is larger than 4 GiB - 1",
        () if kind.is_file() || kind.is_dir() => return Found::Shown(Item::new(host_name, &metadata)),
        () if kind.is_fifo() => "it is a FIFO",
        () if kind.is_socket() => "it is a socket",
        () => "it is a device",
    };
    Found::LeftOut(host_name, why)
}

/// What a link shows: a file of this directory.
fn target(root: &Root, links: bool, path: &Path) -> Result<Metadata, &'static str> {
    if !links {
        return Err("it is a symbolic link, and the disk is writable");
    }
    match root.metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err("it is a symbolic link to a directory"),
        Ok(metadata) => Ok(metadata),
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
            Err("it is a symbolic link that leaves the directory")
        }
        Err(_) => Err("it is a symbolic link to nothing that can be reached"),
    }
}

/// Does `work` for all, on several threads if there are `few` for each. The results are in order.
fn in_parallel<T: Sync, R: Send>(all: &[T], few: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let processors = available_parallelism().map_or(1, |processors| processors.get());
    let threads = processors.min(THREADS).min(all.len() / few);
    if threads < 2 {
        return all.iter().map(work).collect();
    }
    let run = |part: &[T]| part.iter().map(&work).collect::<Vec<R>>();
    let (first, rest) = all.split_at(all.len() / threads);
    scope(|scope| {
        let parts = rest.chunks(rest.len().div_ceil(threads - 1));
        // Where no thread can be had, this one does it.
        let started: Vec<_> = parts
            .map(|part| Builder::new().spawn_scoped(scope, || run(part)).map_err(|_| run(part)))
            .collect();
        let mut results = run(first);
        for part in started {
            results.extend(match part {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(done) => done,
            });
        }
        results
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_however_many_threads_there_are() {
        for len in [0, 1, 7, 8, 100, 1001] {
            let all: Vec<usize> = (0..len).collect();
            for few in [1, 3, 1000] {
                let expected: Vec<usize> = all.iter().map(|at| at * 2).collect();
                assert_eq!(in_parallel(&all, few, |at| at * 2), expected);
            }
        }
    }
}
