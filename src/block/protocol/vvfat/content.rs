//! Writing the content of one file to the host.
//!
//! A file of which most changes is written anew beside the old one and renamed over it: whoever looks, and whoever is
//! killed, has the old content or the new. A file of which less than half changes is written in place, because a copy
//! would cost more than the change (a guest that appends to a log of a gigabyte); so is one that has other names on
//! the host, which a rename would part from it. The price is that a crash can leave such a file half changed, as it
//! would on the guest's own disk. Modes and owners are kept both ways.
//!
//! A file that the host changed since we last saw it is not written: its new content would be lost.

use super::entry::READ_ONLY;
use super::geometry::SECTOR;
use super::host::Seen;
use super::matching::segments;
use super::runs::Shows;
use super::state::Found;
use super::sync::Sync;
use super::tree::{Id, Node};
use super::view::From as Source;
use super::volume::Volume;
use std::ffi::OsString;
use std::fs::{File, FileTimes, Metadata, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::Path;

/// Sectors that are copied at once.
const COPY: u64 = 2048;

/// Makes a file that is new.
pub(super) fn create(sync: &mut Sync<'_>, number: usize, parent: Id, name: OsString) -> io::Result<()> {
    let found = &sync.state.found[number];
    let path = sync.volume.tree.path(parent).join(&name);
    let durable = sync.durable;
    let seen = replace(sync.volume, found, &path, None, durable)?;
    let id = sync.add(number, parent, name, seen);
    sync.volume.now_shows(id, found, seen);
    attributes(sync.volume, found, id, found.fields.attributes & READ_ONLY != 0, true)
}

/// Writes what changed of a file. Returns whether its directory changed.
pub(super) fn update(sync: &mut Sync<'_>, number: usize, id: Id) -> io::Result<bool> {
    let found = &sync.state.found[number];
    let Some(node) = sync.volume.tree.get(id).cloned() else { return Ok(false) };
    let changes = changes(sync.volume, found, &node);
    let size = u64::from(found.fields.size);
    let resized = found.fields.size != node.fields.size;
    let (mut seen, mut replaced) = (node.seen, false);
    if !changes.is_empty() || resized || node.stale {
        let path = sync.volume.tree.path(id);
        let old = unchanged(sync.volume, &path, &node)?;
        let bytes: u64 = changes.iter().map(|range| range.end - range.start).sum();
        let most = bytes * 2 >= size && !(bytes == 0 && size > 0);
        replaced = old.as_ref().is_none_or(|old| most && old.nlink() == 1);
        seen = match replaced {
            true => replace(sync.volume, found, &path, old.as_ref(), sync.durable)?,
            false => write_in_place(sync.volume, found, &path, &changes, sync.durable)?,
        };
    }
    let wrote = seen != node.seen;
    if wrote || node.chain != found.chain {
        sync.volume.now_shows(id, found, seen);
    }
    let toggled = (found.fields.attributes ^ node.fields.attributes) & READ_ONLY != 0;
    let timed = wrote || found.fields.modified != node.fields.modified;
    if toggled || timed {
        attributes(sync.volume, found, id, toggled, timed)?;
    }
    if let Some(node) = sync.volume.tree.get_mut(id) {
        node.fields = found.fields;
        (node.stale, node.warned) = (false, node.warned && !wrote);
    }
    Ok(replaced)
}

/// What the host has at `path`, if that is what we left there; `None` if it is gone.
fn unchanged(volume: &Volume, path: &Path, node: &Node) -> io::Result<Option<Metadata>> {
    match volume.root.file(path, false) {
        Ok((_, metadata)) if Seen::of(&metadata) == node.seen => Ok(Some(metadata)),
        Ok(_) => Err(io::Error::other("the host changed it too: move one of both away")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The ranges of a file, in bytes, that are not on the host yet.
fn changes(volume: &Volume, found: &Found, node: &Node) -> Vec<Range<u64>> {
    let (size, layout) = (u64::from(found.fields.size), &volume.layout);
    let mut changes: Vec<Range<u64>> = Vec::new();
    for segment in segments(&found.chain, &node.chain) {
        let start = u64::from(segment.index) * layout.cluster_bytes();
        let sectors = u64::from(segment.len) * layout.cluster_sectors;
        if node.stale || !segment.stayed() {
            changes.push(start..start + sectors * SECTOR);
            continue;
        }
        let first = layout.sector_of(segment.now);
        let mut at = 0;
        while let Some(overlay) = volume.overlay.as_ref().filter(|_| at < sectors) {
            let (fresh, count) = overlay.fresh().run(first + at..first + sectors);
            if fresh {
                changes.push(start + at * SECTOR..start + (at + count) * SECTOR);
            }
            at += count;
        }
    }
    if size > u64::from(node.fields.size) {
        changes.push(u64::from(node.fields.size)..size);
    }
    united(changes, size)
}

/// The ranges up to `size`, in order, without overlaps.
fn united(mut ranges: Vec<Range<u64>>, size: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut all: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let range = range.start..range.end.min(size);
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ if range.is_empty() => {}
            _ => all.push(range),
        }
    }
    all
}

/// Writes a whole file beside `path` and renames it there: over the old one, of which `old` tells, or to a name that
/// must be free.
fn replace(
    volume: &mut Volume,
    found: &Found,
    path: &Path,
    old: Option<&Metadata>,
    durable: bool,
) -> io::Result<Seen> {
    let temporary = path.with_file_name(volume.temporary_name());
    let file = volume.root.create(&temporary)?;
    let done = fill(volume, found, &file, old, durable)
        .and_then(|seen| volume.root.rename(&temporary, path, old.is_some()).map(|()| seen));
    if done.is_err() {
        // Nothing more can be done about it than to tell of the first error.
        let _ = volume.root.remove(&temporary, false);
    }
    done
}

fn fill(
    volume: &mut Volume,
    found: &Found,
    file: &File,
    old: Option<&Metadata>,
    durable: bool,
) -> io::Result<Seen> {
    let size = u64::from(found.fields.size);
    file.set_len(size)?;
    copy(volume, found, &(0..size), file, false)?;
    if let Some(old) = old {
        if (old.uid(), old.gid()) != file.metadata().map(|new| (new.uid(), new.gid()))? {
            // Only root can; anybody else's file becomes ours, as with any editor.
            let _ = fchown(file, Some(old.uid()), Some(old.gid()));
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    }
    finish(file, durable)
}

fn write_in_place(
    volume: &mut Volume,
    found: &Found,
    path: &Path,
    changes: &[Range<u64>],
    durable: bool,
) -> io::Result<Seen> {
    let (file, _) = volume.root.file(path, true)?;
    for range in changes {
        copy(volume, found, range, &file, true)?;
    }
    file.set_len(u64::from(found.fields.size))?;
    finish(&file, durable)
}

fn finish(file: &File, durable: bool) -> io::Result<Seen> {
    if durable {
        file.sync_data()?;
    }
    Ok(Seen::of(&file.metadata()?))
}

/// Copies a range of a file from the disk to the host; zeros only if they are to be written.
fn copy(volume: &mut Volume, found: &Found, range: &Range<u64>, to: &File, zeros: bool) -> io::Result<()> {
    let layout = volume.layout;
    let mut index = 0;
    for (start, len) in &found.chain {
        let from = index * layout.cluster_bytes();
        index += u64::from(*len);
        let run = range.start.max(from)..range.end.min(index * layout.cluster_bytes());
        let (mut at, first) = (run.start, layout.sector_of(*start));
        while at < run.end {
            let sector = first + (at - from) / SECTOR;
            let skip = (at - from) % SECTOR;
            let end = run.end.min(at - skip + COPY * SECTOR);
            let sectors = sector..sector + (skip + end - at).div_ceil(SECTOR);
            let all_zeros = volume.pieces(sectors.clone()).iter().all(|piece| piece.from == Source::Zeros);
            if zeros || !all_zeros {
                let bytes = volume.read(sectors)?;
                to.write_all_at(&bytes[skip as usize..(skip + end - at) as usize], at)?;
            }
            at = end;
        }
    }
    Ok(())
}

/// Sets what the entry says of a file besides its content.
fn attributes(volume: &mut Volume, found: &Found, id: Id, toggled: bool, timed: bool) -> io::Result<()> {
    let (file, metadata) = volume.root.file(&volume.tree.path(id), false)?;
    if let Some(time) = found.fields.modified.to_system().filter(|_| timed) {
        file.set_times(FileTimes::new().set_modified(time))?;
    }
    if toggled {
        let mode = metadata.mode() & 0o7777;
        let mode = if found.fields.attributes & READ_ONLY != 0 { mode & !0o222 } else { mode | 0o200 };
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    let seen = Seen::of(&file.metadata()?);
    if let Some(node) = volume.tree.get_mut(id) {
        node.seen = seen;
    }
    Ok(())
}

impl Volume {
    /// Notes that a host file has the content that the guest sees.
    fn now_shows(&mut self, id: Id, found: &Found, seen: Seen) {
        let Some(node) = self.tree.get_mut(id) else { return };
        let before = std::mem::replace(&mut node.chain, found.chain.clone());
        (node.fields, node.seen) = (found.fields, seen);
        self.runs.forget(id, &before);
        let mut index = 0;
        for (start, len) in &found.chain {
            self.runs.set(*start, *len, Shows::File { id, index });
            index += len;
        }
    }
}
