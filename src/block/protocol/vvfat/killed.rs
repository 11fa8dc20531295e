//! A flush that is killed before any of its changes of the host, and the start after it.

use super::fitting::Wish;
use super::geometry::FatType;
use super::guest::Guest;
use super::sync::sync;
use super::volume::Volume;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What there is at the beginning: each file has a content of its own.
const FILES: &[(&str, u8, usize)] = &[
    ("A.TXT", b'a', 700),
    ("B.TXT", b'b', 900),
    ("C.TXT", b'c', 1500),
    ("D/E.TXT", b'e', 600),
    ("D/F.TXT", b'f', 1024),
    ("D/STAYS", b's', 100),
    ("H.TXT", b'h', 300),
    ("STAYS", b't', 800),
];
/// What the guest makes of it.
const AFTER: &[(&str, u8, usize)] = &[
    ("A.TXT", b'c', 1500),
    ("B.TXT", b'a', 700),
    ("C.TXT", b'b', 900),
    ("D", b'h', 300),
    ("H.TXT/F.TXT", b'g', 1024),
    ("H.TXT/M.TXT", b'F', 1024),
    ("H.TXT/STAYS", b's', 100),
    ("STAYS", b't', 800),
];

/// Files by path: the byte that they are filled with, and how often; `None` if they are not all one byte.
type Contents = BTreeMap<String, Option<(u8, usize)>>;

fn contents_of(files: &[(&str, u8, usize)]) -> Contents {
    files.iter().map(|(name, byte, len)| ((*name).to_owned(), Some((*byte, *len)))).collect()
}

fn fixture() -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("D")).unwrap();
    for (name, byte, len) in FILES {
        fs::write(host.path().join(name), vec![*byte; *len]).unwrap();
    }
    host
}

fn open(host: &Path) -> Volume {
    let wish = Wish { fat_type: Some(FatType::Fat16), floppy: true, writable: true };
    Volume::new(host, wish, *b"KILLED     ").unwrap()
}

/// All files below a directory.
fn contents(directory: &Path, prefix: &str) -> Contents {
    let mut all = Contents::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(contents(&entry.path(), &format!("{name}/"))),
            false => {
                let bytes = fs::read(entry.path()).unwrap();
                let first = bytes.first().copied();
                let same = first.filter(|first| bytes.iter().all(|byte| byte == first));
                all.insert(name, same.map(|byte| (byte, bytes.len())));
            }
        }
    }
    all
}

/// All kinds of changes at once: renames that go round, a directory and a file that change places, one that is deleted,
/// one that is written anew under another name, and one that is new and takes its name before it is gone there.
fn change(volume: &mut Volume) {
    let mut guest = Guest::new(volume);
    guest.rotate(&[b"A       TXT", b"B       TXT", b"C       TXT"]);
    guest.rotate(&[b"D          ", b"H       TXT"]);
    let free = guest.entry(b"E       TXT");
    guest.delete(b"E       TXT");
    guest.overwrite(b"F       TXT", b'F');
    guest.rename(b"F       TXT", b"M       TXT");
    guest.create(free, b"F       TXT", b'g');
    guest.write(volume);
}

/// What must hold of the directory wherever the flush was killed.
fn check(found: &Contents, stop: u64) {
    let has = |byte: u8, len: usize| found.values().filter(|content| **content == Some((byte, len))).count();
    for (name, byte, len) in FILES.iter().filter(|(name, ..)| !["D/E.TXT", "D/F.TXT"].contains(name)) {
        assert_eq!(has(*byte, *len), 1, "stopped at {stop}: {name} is not there once: {:?}", found.keys());
    }
    assert_eq!(
        has(b'f', 1024) + has(b'F', 1024),
        1,
        "stopped at {stop}: F.TXT is its old self or its new one"
    );
    assert_eq!(found["STAYS"], Some((b't', 800)), "stopped at {stop}");
    let known = [(b'e', 600), (b'f', 1024), (b'F', 1024), (b'g', 1024)];
    for (name, content) in found {
        let is = |byte: u8, len: usize| *content == Some((byte, len));
        let known = known.iter().any(|(byte, len)| is(*byte, *len));
        assert!(known || FILES.iter().any(|(_, byte, len)| is(*byte, *len)), "stopped at {stop}: {name}");
        assert!(!name.contains(".cowvm-fat-"), "stopped at {stop}: {name} is left");
    }
}

#[test]
fn wherever_a_flush_is_killed_the_next_start_finds_all_that_the_guest_did_not_delete() {
    let (mut stops, mut back) = (0.., 0);
    loop {
        let stop = stops.next().unwrap();
        let host = fixture();
        let mut volume = open(host.path());
        change(&mut volume);
        volume.root.changes_left.store(stop, Relaxed);
        let done = sync(&mut volume, false);
        drop(volume);
        let said = open(host.path()).notices.take();
        back += said.iter().filter(|notice| notice.contains("is back")).count();
        let found = contents(host.path(), "");
        check(&found, stop);
        if done.is_ok() {
            assert_eq!(found, contents_of(AFTER));
            break;
        }
    }
    assert!(stops.start > 10 && back > 0, "{} places, {back} that came back", stops.start);
}

#[test]
fn a_flush_that_could_not_finish_is_finished_by_the_next_one() {
    for stop in (0..).step_by(3) {
        let host = fixture();
        let mut volume = open(host.path());
        change(&mut volume);
        volume.root.changes_left.store(stop, Relaxed);
        let done = sync(&mut volume, false);
        volume.root.changes_left.store(u64::MAX, Relaxed);
        sync(&mut volume, false).unwrap();
        let mut found = contents(host.path(), "");
        // What could not be removed goes at the next start.
        found.retain(|name, _| !name.contains(".cowvm-fat-"));
        assert_eq!(found, contents_of(AFTER), "stopped at {stop}");
        if done.is_ok() {
            break;
        }
    }
}

#[test]
fn a_file_system_that_cannot_rename_without_replacing_gets_the_same_changes() {
    let host = fixture();
    let mut volume = open(host.path());
    Arc::get_mut(&mut volume.root).unwrap().is_plain = true;
    change(&mut volume);
    sync(&mut volume, false).unwrap();
    assert_eq!(contents(host.path(), ""), contents_of(AFTER));
    fs::write(host.path().join("N.TXT"), b"the host's own").unwrap();
    let mut guest = Guest::new(&mut volume);
    guest.rename(b"A       TXT", b"N       TXT");
    guest.write(&mut volume);
    assert!(sync(&mut volume, false).is_err());
    assert_eq!(fs::read(host.path().join("N.TXT")).unwrap(), b"the host's own");
}

#[test]
fn what_a_living_process_writes_is_left_alone() {
    let host = fixture();
    let path = host.path().join(".cowvm-fat-1-1");
    let file = File::create(&path).unwrap();
    file.try_lock().unwrap();
    let said = open(host.path()).notices.take();
    assert!(path.exists() && said.len() == 1 && said[0].contains("left out"), "{said:?}");
    drop(file);
    let said = open(host.path()).notices.take();
    assert!(!path.exists() && said.len() == 1 && said[0].contains("is removed"), "{said:?}");
}

#[test]
fn files_of_others_that_only_look_like_ours_stay() {
    let host = fixture();
    for name in [".cowvm-fat-notes", ".cowvm-fat-1-x"] {
        fs::write(host.path().join(name), b"mine").unwrap();
        drop(open(host.path()));
        assert_eq!(fs::read(host.path().join(name)).unwrap(), b"mine");
    }
}
