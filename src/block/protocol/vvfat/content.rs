//! Writing the content of one file to the host.
//!
//! A file of which most changes is written anew beside the old one and renamed over it: whoever looks, and whoever is
//! killed, has the old content or the new. A file of which less than half changes is written in place, because a copy
//! would cost more than the change (a guest that appends to a log of a gigabyte); so is one that has other names on
//! the host, which a rename would part from it. The price is that a crash can leave such a file half changed, as it
//! would on the guest's own disk. Modes and owners are kept both ways.
//!
//! A file that the host changed since we last saw it is not written: its new content would be lost.

use super::delete::is_gone;
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
    let seen = replace(sync.volume, found, &path, None, sync.durable)?;
    let id = sync.add(number, parent, name, seen);
    sync.volume.now_shows(id, found, seen);
    match found.fields.attributes & READ_ONLY != 0 {
        true => attributes(sync.volume, found, id, sync.durable),
        false => Ok(()),
    }
}

/// Writes what changed of a file. Returns whether its directory changed.
pub(super) fn update(sync: &mut Sync<'_>, number: usize, id: Id) -> io::Result<bool> {
    let found = &sync.state.found[number];
    let Some(node) = sync.volume.tree.get(id) else { return Ok(false) };
    let changes = changes(sync.volume, found, node);
    let resized = found.fields.size != node.fields.size;
    let wanted = !changes.is_empty() || resized || node.stale;
    let changed = found.fields.attributes ^ node.fields.attributes;
    let (toggled, timed) = (changed & READ_ONLY != 0, found.fields.modified != node.fields.modified);
    let becomes_writable = toggled && found.fields.attributes & READ_ONLY == 0;
    if becomes_writable {
        attributes(sync.volume, found, id, sync.durable)?;
    }
    let replaced = wanted && write(sync, found, id, &changes)?;
    if (toggled && !becomes_writable) || (timed && !wanted) {
        attributes(sync.volume, found, id, sync.durable)?;
    }
    let Some(node) = sync.volume.tree.get_mut(id) else { return Ok(replaced) };
    if node.chain != found.chain {
        let seen = node.seen;
        sync.volume.now_shows(id, found, seen);
    }
    if let Some(node) = sync.volume.tree.get_mut(id) {
        node.fields = found.fields;
        (node.stale, node.warned) = (false, node.warned && !wanted);
    }
    Ok(replaced)
}

/// Writes a file that is on the host, whole or in place. Returns whether it was replaced.
fn write(sync: &mut Sync<'_>, found: &Found, id: Id, changes: &[Range<u64>]) -> io::Result<bool> {
    let Some(node) = sync.volume.tree.get(id).cloned() else { return Ok(false) };
    let (path, size) = (sync.volume.tree.path(id), u64::from(found.fields.size));
    let old = unchanged(sync.volume, &path, &node)?;
    let bytes: u64 = changes.iter().map(|range| range.end - range.start).sum();
    let most = bytes * 2 >= size && !(bytes == 0 && size > 0);
    let replaced = old.as_ref().is_none_or(|old| most && old.nlink() == 1);
    let seen = match replaced {
        true => replace(sync.volume, found, &path, old.as_ref(), sync.durable)?,
        false => write_in_place(sync.volume, found, id, &path, changes, sync.durable)?,
    };
    sync.volume.now_shows(id, found, seen);
    if !replaced && old.is_some_and(|old| old.nlink() > 1) {
        sync.volume.seen_by_all(node.seen, seen);
    }
    Ok(replaced)
}

/// What the host has at `path`, if that is what we left there; `None` if it is gone.
pub(super) fn unchanged(volume: &Volume, path: &Path, node: &Node) -> io::Result<Option<Metadata>> {
    match volume.root.look(path) {
        Ok(metadata) => check_unchanged(&metadata, node.seen).map(|()| Some(metadata)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_unchanged(metadata: &Metadata, seen: Seen) -> io::Result<()> {
    match metadata.is_file() && Seen::of(metadata) == seen {
        true => Ok(()),
        false => Err(io::Error::other("the host changed it too: move one of both away")),
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
/// must be free. Nobody else can read it before it has the mode of the old one.
fn replace(
    volume: &mut Volume,
    found: &Found,
    path: &Path,
    old: Option<&Metadata>,
    durable: bool,
) -> io::Result<Seen> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let mode = if old.is_some() { 0o600 } else { 0o666 };
    let (temporary, file) = volume.make_temporary(directory, mode)?;
    let done = fill(volume, found, &file, old, durable).and_then(|seen| {
        if let Some(old) = old {
            check_unchanged(&volume.root.look(path)?, Seen::of(old))?;
        }
        volume.root.rename(&temporary, path, old.is_some()).map(|()| seen)
    });
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
        // Not to run as another user: that goes with every write.
        file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
    }
    finish(found, file, durable)
}

fn write_in_place(
    volume: &mut Volume,
    found: &Found,
    id: Id,
    path: &Path,
    changes: &[Range<u64>],
    durable: bool,
) -> io::Result<Seen> {
    let (file, metadata) = volume.root.file(path, true)?;
    let seen = volume.tree.get(id).map(|node| node.seen).unwrap_or_default();
    check_unchanged(&metadata, seen)?;
    let written = changes.iter().try_for_each(|range| copy(volume, found, range, &file, true));
    let done = written
        .and_then(|()| file.set_len(u64::from(found.fields.size)))
        .and_then(|()| finish(found, &file, durable));
    if let (Err(_), Ok(metadata), Some(node)) = (&done, file.metadata(), volume.tree.get_mut(id)) {
        // It was we who changed it.
        node.seen = Seen::of(&metadata);
    }
    done
}

/// Sets the time of what was written, and sees to it that it stays.
fn finish(found: &Found, file: &File, durable: bool) -> io::Result<Seen> {
    set_time(found, file)?;
    if durable {
        file.sync_all()?;
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
                volume.root.step()?;
                to.write_all_at(&bytes[skip as usize..(skip + end - at) as usize], at)?;
            }
            at = end;
        }
    }
    Ok(())
}

/// Sets the time and the read-only attribute of a file that the host did not change.
fn attributes(volume: &mut Volume, found: &Found, id: Id, durable: bool) -> io::Result<()> {
    let (file, metadata) = volume.root.file(&volume.tree.path(id), false)?;
    let seen = volume.tree.get(id).map(|node| node.seen).unwrap_or_default();
    check_unchanged(&metadata, seen)?;
    volume.root.step()?;
    set_time(found, &file)?;
    let old = metadata.mode() & 0o7777;
    let mode = if found.fields.attributes & READ_ONLY != 0 { old & !0o222 } else { old };
    let mode =
        if mode & 0o222 == 0 && found.fields.attributes & READ_ONLY == 0 { mode | 0o200 } else { mode };
    if mode != old {
        allowed(file.set_permissions(Permissions::from_mode(mode)))?;
    }
    if durable {
        file.sync_all()?;
    }
    let seen = Seen::of(&file.metadata()?);
    if let Some(node) = volume.tree.get_mut(id) {
        node.seen = seen;
    }
    Ok(())
}

fn set_time(found: &Found, file: &File) -> io::Result<()> {
    match found.fields.modified.to_system() {
        Some(time) => allowed(file.set_times(FileTimes::new().set_modified(time))),
        None => Ok(()),
    }
}

/// Times and modes of another user's file cannot be set by everyone who may write it: they are as they are then.
fn allowed(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.raw_os_error() == Some(libc::EPERM) { Ok(()) } else { Err(error) })
}

impl Volume {
    /// Notes that we changed a host file that has several names.
    fn seen_by_all(&mut self, before: Seen, now: Seen) {
        self.tree.iter_mut().filter(|node| node.seen == before).for_each(|node| node.seen = now);
    }

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
