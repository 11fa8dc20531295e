//! Hostile directories and hostile guests.

use crate::harness::{Bench, Contents, SECTOR, contents};
use crate::random::seed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// All that a disk cannot show, or not as it is.
fn fill(host: &Path) {
    fs::write(host.parent().unwrap().join("secret"), b"secret").unwrap();
    symlink("../secret", host.join("out")).unwrap();
    symlink("/etc/passwd", host.join("absolute")).unwrap();
    symlink("..", host.join("above")).unwrap();
    symlink(".", host.join("loop")).unwrap();
    symlink("hop", host.join("hop")).unwrap();
    symlink("plain", host.join("inside")).unwrap();
    symlink("/proc/self/fd/0", host.join("magic")).unwrap();
    fs::write(host.join("plain"), b"plain").unwrap();
    let fifo = CString::new(host.join("fifo").as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    drop(UnixListener::bind(host.join("socket")).unwrap());
    fs::File::create(host.join("huge")).unwrap().set_len(1 << 32).unwrap();
    for name in [&b"back\\slash"[..], b"co:lon", b"bell\x07", b"\xff\xfe", b"dots...", b"...", b"Plain"] {
        fs::write(host.join(OsStr::from_bytes(name)), name).unwrap();
    }
}

#[test]
fn what_cannot_be_shown_is_left_out_and_nothing_outside_is_reached() {
    for words in ["floppy", "", "32"] {
        let bench = Bench::new(words, false, fill);
        assert_eq!(bench.fsck(), None);
        let expected: Contents = [
            ("...", &b"..."[..]),
            ("Plain", b"Plain"),
            ("__", b"\xff\xfe"),
            ("back_slash", b"back\\slash"),
            ("bell_", b"bell\x07"),
            ("co_lon", b"co:lon"),
            ("dots.._", b"dots..."),
            ("inside", b"plain"),
            ("plain~1", b"plain"),
        ]
        .map(|(name, content)| (name.replace("...", ".._"), Some(content.to_vec())))
        .into();
        let seen = bench.seen();
        assert_eq!(seen.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert_eq!(seen, expected);
    }
}

#[test]
fn a_link_is_not_shown_where_the_guest_may_write() {
    let bench = Bench::new("floppy", true, fill);
    assert!(!bench.seen().contains_key("inside"));
}

#[test]
fn sixty_five_thousand_files_are_shown_in_one_tree() {
    let bench = Bench::new("", false, |host| {
        for part in 0..4 {
            fs::create_dir(host.join(format!("DIR{part}"))).unwrap();
            for file in 0..16_384 {
                fs::File::create(host.join(format!("DIR{part}/{file:05}.X"))).unwrap();
            }
        }
    });
    assert_eq!(bench.fsck(), None);
    let listed = bench.mtools("mdir", &["-b", "::DIR3"]).unwrap();
    assert_eq!(listed.lines().count(), 16_384);
}

#[test]
fn a_file_of_four_gigabytes_less_one_is_shown() {
    let bench = Bench::new("", false, |host| {
        let file = fs::File::create(host.join("BIG")).unwrap();
        file.set_len((1 << 32) - 1).unwrap();
        file.write_all_at(b"end", (1 << 32) - 4).unwrap();
    });
    // fsck.fat 4.2 takes a chain of 4 GiB for an empty one.
    assert!(bench.mtools("mdir", &["::BIG"]).unwrap().contains("4294967295"));
    let mut back = (0..bench.disk.size().div_ceil(1 << 20)).rev().map(|mib| {
        let at = mib << 20;
        let len = (bench.disk.size() - at).min(1 << 20) as usize;
        bench.disk.read(at, len)
    });
    let last = back.find(|bytes| bytes.iter().any(|byte| *byte != 0)).unwrap();
    assert!(last.windows(5).any(|bytes| bytes == b"\0end\0"));
}

/// Changes something in what describes the volume: the first sectors, or a sector of a directory.
fn damage(bench: &Bench, random: &mut StdRng) {
    let file = fs::OpenOptions::new().read(true).write(true).open(bench.image()).unwrap();
    // FATs, root directory and the first clusters, where the directories are.
    let sector = random.random_range(0..60);
    let mut bytes = [0; SECTOR];
    file.read_exact_at(&mut bytes, sector * SECTOR as u64).unwrap();
    for _ in 0..random.random_range(1..6) {
        let slot = random.random_range(0..SECTOR / 32) * 32;
        match random.random_range(0..7) {
            0 => bytes[random.random_range(0..SECTOR)] = random.random(),
            1 => bytes[slot + random.random_range(0..11)] = b"/.\0\\ A"[random.random_range(0..6)],
            2 => bytes[slot..slot + 11].copy_from_slice(b"..         "),
            3 => bytes[slot + 0x1a] = random.random_range(0..40),
            4 => bytes[slot + 0x0b] ^= 1 << random.random_range(0..6),
            5 => {
                let other = random.random_range(0..SECTOR / 32) * 32;
                bytes.copy_within(other..other + 32, slot);
            }
            _ => bytes[slot + 0x1c] = random.random(),
        }
    }
    file.write_all_at(&bytes, sector * SECTOR as u64).unwrap();
}

/// A small tree whose files are told from each other by what they hold.
fn small_tree(host: &Path, random: &mut StdRng) {
    for directory in ["", "sub/", "sub/deep/", "other/"] {
        fs::create_dir_all(host.join(directory)).unwrap();
        for number in 0..3 {
            let mut content = vec![0; random.random_range(1..4000)];
            random.fill(&mut content[..]);
            fs::write(host.join(format!("{directory}file {number}.bin")), content).unwrap();
        }
    }
}

#[test]
fn a_hostile_disk_changes_no_file_but_as_mtools_reads_it_and_nothing_outside() {
    let seed = seed();
    for round in 0..25 {
        let mut random = StdRng::seed_from_u64(seed ^ round);
        let bench = Bench::new("floppy", true, |host| {
            small_tree(host, &mut random);
            fs::write(host.parent().unwrap().join("outside"), b"outside").unwrap();
        });
        for step in 0..6 {
            let before = contents(&bench.host());
            damage(&bench, &mut random);
            bench.write(&bench.changed());
            let _ = bench.disk.flush();
            let after = contents(&bench.host());
            let what = format!("round {round}, step {step}");
            assert_eq!(fs::read(bench.scratch("outside")).unwrap(), b"outside", "{what}");
            let names: BTreeSet<_> = fs::read_dir(bench.scratch("."))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            let known = ["host", "image", "outside", "seen", "volume"].map(str::to_owned);
            assert!(names.is_subset(&BTreeSet::from(known)), "{what}: {names:?}");
            if after != before {
                explain(&after, &before, &bench.seen(), &what);
            }
        }
    }
}

/// Every file has the content that some file had, or that mtools reads now, to the length it has.
fn explain(after: &Contents, before: &Contents, seen: &Contents, what: &str) {
    let known: Vec<&Vec<u8>> = before.values().chain(seen.values()).flatten().collect();
    for (name, content) in after {
        let Some(content) = content else { continue };
        assert!(known.contains(&content), "{what}: {name:?} has {} bytes of nobody", content.len());
    }
}
