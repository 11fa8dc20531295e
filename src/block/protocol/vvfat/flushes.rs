//! Flushes one after the other, of a guest that changes files here and there: each reads what changed alone, and what is
//! known afterwards is what all of the disk says.

use super::changed::read_touched;
use super::entry::Fields;
use super::fitting::Wish;
use super::geometry::{ENTRY, FatType, SECTOR};
use super::guest::Guest;
use super::state::{Found, read_state};
use super::sync::sync;
use super::tree::{Chain, Id, ROOT};
use super::volume::Volume;
use crate::seed::seed_or;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs;

/// Directories, and files of each.
const DIRECTORIES: usize = 5;
const FILES: usize = 8;

/// What there is by path, from the root on.
type Tree = BTreeMap<Vec<String>, (Fields, Chain)>;

fn fixture() -> (tempfile::TempDir, Volume, Vec<[u8; 11]>) {
    let (host, mut names) = (tempfile::tempdir().unwrap(), Vec::new());
    for number in 0..DIRECTORIES * FILES {
        let directory = host.path().join(format!("S{}", number / FILES));
        fs::create_dir_all(&directory).unwrap();
        let bytes = vec![number as u8; number * 137 % 3000 + 1];
        fs::write(directory.join(format!("F{number:02}.BIN")), bytes).unwrap();
        names.push(short(number));
    }
    let wish = Wish { fat_type: Some(FatType::Fat16), floppy: true, writable: true };
    let volume = Volume::new(host.path(), wish, *b"FLUSHES    ").unwrap();
    (host, volume, names)
}

fn short(number: usize) -> [u8; 11] {
    let mut short = *b"F00     BIN";
    (short[1], short[2]) = (b'0' + (number / 10) as u8, b'0' + (number % 10) as u8);
    short
}

fn found_tree(found: &[Found]) -> Tree {
    let path = |mut at: usize| {
        let mut path = Vec::new();
        while at > 0 {
            path.insert(0, found[at].name.clone());
            at = found[at].parent;
        }
        path
    };
    found.iter().enumerate().skip(1).map(|(at, item)| (path(at), (item.fields, item.chain.clone()))).collect()
}

fn known_tree(volume: &Volume) -> Tree {
    let path = |mut at: Id| {
        let mut path = Vec::new();
        while let Some(node) = volume.tree.get(at).filter(|_| at != ROOT) {
            path.insert(0, node.name.clone());
            at = node.parent;
        }
        path
    };
    let nodes = volume.tree.iter().filter(|(id, _)| *id != ROOT);
    nodes.map(|(id, node)| (path(id), (node.fields, node.chain.clone()))).collect()
}

/// A change of one file; slots that became free are added to `free`, and taken from there.
fn change(
    guest: &mut Guest,
    names: &mut Vec<[u8; 11]>,
    free: &mut Vec<usize>,
    random: &mut StdRng,
    next: usize,
) {
    let at = random.random_range(0..names.len());
    match random.random_range(0..5) {
        0 => guest.overwrite(&names[at], random.random()),
        1 => {
            free.push(guest.entry(&names[at]));
            guest.delete(&names.swap_remove(at));
        }
        2 => {
            guest.rename(&names[at], &short(next));
            names[at] = short(next);
        }
        3 if !free.is_empty() => {
            // Moved: to a slot of any directory.
            let (from, to) = (guest.entry(&names[at]), free.swap_remove(random.random_range(0..free.len())));
            guest.image.copy_within(from..from + ENTRY, to);
            guest.image[from] = 0xe5;
            free.push(from);
        }
        _ if !free.is_empty() => {
            let slot = free.swap_remove(random.random_range(0..free.len()));
            guest.set(slot, &[0; ENTRY]);
            guest.create(slot, &short(next), random.random());
            names.push(short(next));
        }
        _ => {}
    }
}

#[test]
fn after_each_flush_what_is_known_is_what_all_of_the_disk_says() {
    let mut random = StdRng::seed_from_u64(seed_or(rand::random()));
    let (host, mut volume, mut names) = fixture();
    let mut free = Vec::new();
    for next in 40..100 {
        let mut guest = Guest::new(&mut volume);
        for _ in 0..random.random_range(1..4) {
            change(&mut guest, &mut names, &mut free, &mut random, next);
            if names.iter().any(|name| *name == short(next)) {
                break;
            }
        }
        guest.write(&mut volume);
        sync(&mut volume, false).unwrap();
        let all = read_state(&mut volume).unwrap();
        assert_eq!(known_tree(&volume), found_tree(&all.found), "flush {next}");
        let settled = volume.settled.as_ref().unwrap();
        assert_eq!((&settled.claimed, settled.held.len()), (&all.claimed, 0), "flush {next}");
        let files = walk(host.path());
        assert_eq!(files, names.len(), "flush {next}");
    }
}

/// How many files there are.
fn walk(host: &std::path::Path) -> usize {
    let directories = fs::read_dir(host).unwrap();
    directories.map(|entry| fs::read_dir(entry.unwrap().path()).unwrap().count()).sum()
}

/// What a flush would look at after `change`: files and directories.
fn looked_at(change: impl FnOnce(&mut Guest)) -> Option<usize> {
    let (_host, mut volume, _) = fixture();
    volume.tree.index();
    let mut guest = Guest::new(&mut volume);
    change(&mut guest);
    guest.write(&mut volume);
    let settled = volume.settled.take().unwrap();
    read_touched(&mut volume, settled).unwrap().map(|(state, _)| state.nodes.len())
}

#[test]
fn a_flush_looks_at_what_was_written_alone() {
    // The file, its directory, the root.
    assert_eq!(looked_at(|guest| guest.overwrite(b"F11     BIN", 7)), Some(3));
    // All files of the directory.
    let renamed = |guest: &mut Guest| guest.rename(b"F11     BIN", b"NEW     BIN");
    assert_eq!(looked_at(renamed), Some(FILES + 2));
    // Nothing, where the guest wrote to free clusters.
    let free = |guest: &mut Guest| {
        let end = guest.image.len();
        guest.set(end - SECTOR as usize, &[1; SECTOR as usize]);
    };
    assert_eq!(looked_at(free), Some(1));
    // All, where a directory was renamed.
    assert_eq!(looked_at(|guest| guest.rename(b"S1         ", b"T1         ")), None);
}
