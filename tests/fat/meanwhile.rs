//! What others do to the directory while it is shown.

use crate::disk::said;
use crate::harness::{Bench, SECTOR};
use std::fs;
use std::os::unix::fs::symlink;

const CONTENT: [u8; 3000] = [7; 3000];

fn bench(writable: bool) -> (Bench, u64) {
    let bench = Bench::new("floppy", writable, |host| fs::write(host.join("A.BIN"), CONTENT).unwrap());
    let image = fs::read(bench.image()).unwrap();
    let at = image.chunks(SECTOR).position(|sector| sector.iter().all(|byte| *byte == 7)).unwrap();
    (bench, (at * SECTOR) as u64)
}

#[test]
fn a_file_that_shrank_ends_in_zeros() {
    for cached in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("A.BIN"), CONTENT).unwrap();
        let disk = crate::disk::Disk::open("floppy", scratch.path(), false);
        let at = (0..disk.size()).step_by(SECTOR).find(|at| disk.read(*at, SECTOR) == [7; SECTOR]).unwrap();
        let disk = match cached {
            true => disk,
            false => crate::disk::Disk::open("floppy", scratch.path(), false),
        };
        fs::File::options().write(true).open(scratch.path().join("A.BIN")).unwrap().set_len(600).unwrap();
        let expected = [&[7; 600][..], &[0; 2400]].concat();
        assert_eq!(disk.read(at, 3072)[..3000], expected);
    }
}

#[test]
fn a_file_that_vanished_or_became_a_link_outside_is_an_error_and_the_rest_goes_on() {
    for becomes_link in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let host = scratch.path().join("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("A.BIN"), CONTENT).unwrap();
        fs::write(host.join("B.BIN"), CONTENT).unwrap();
        fs::write(scratch.path().join("secret"), [9; 3000]).unwrap();
        let disk = crate::disk::Disk::open("floppy", &host, false);
        fs::remove_file(host.join("A.BIN")).unwrap();
        if becomes_link {
            symlink("../secret", host.join("A.BIN")).unwrap();
        }
        let read = |at: u64| disk.try_read(at, SECTOR);
        let sectors: Vec<_> = (0..disk.size()).step_by(SECTOR).map(read).collect();
        assert_eq!(sectors.iter().filter(|read| read.is_err()).count(), 6);
        let found = |byte| sectors.iter().flatten().filter(|sector| **sector == [byte; SECTOR]).count();
        assert_eq!((found(7), found(9)), (5, 0));
    }
}

#[test]
fn a_file_that_the_host_changed_is_not_overwritten_and_the_flush_says_so() {
    let (bench, at) = bench(true);
    let file = bench.host().join("A.BIN");
    fs::write(&file, b"the host's own").unwrap();
    bench.disk.write(at, &[8; SECTOR]);
    let refused = said(bench.disk.flush()).unwrap_err();
    assert!(refused.contains("the host changed it too"), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), b"the host's own");
    assert!(bench.disk.flush().is_err(), "it is not forgotten");
}

#[test]
fn a_file_that_the_host_changed_is_not_deleted() {
    let (bench, _) = bench(true);
    fs::write(bench.host().join("A.BIN"), b"the host's own").unwrap();
    bench.mtools("mdel", &["::A.BIN"]).unwrap();
    bench.write(&bench.changed());
    said(bench.disk.flush()).unwrap();
    assert_eq!(fs::read(bench.host().join("A.BIN")).unwrap(), b"the host's own");
}

#[test]
fn a_new_file_does_not_replace_one_that_the_host_made_meanwhile() {
    let (bench, _) = bench(true);
    fs::write(bench.host().join("NEW"), b"the host's own").unwrap();
    fs::write(bench.scratch("new"), b"the guest's").unwrap();
    bench.mtools("mcopy", &[bench.scratch("new").to_str().unwrap(), "::NEW"]).unwrap();
    bench.write(&bench.changed());
    assert!(bench.disk.flush().is_err());
    assert_eq!(fs::read(bench.host().join("NEW")).unwrap(), b"the host's own");
    // When the name is free again, what the guest wrote is still there.
    fs::remove_file(bench.host().join("NEW")).unwrap();
    let (at, sector) = (0, bench.disk.read(0, SECTOR));
    bench.disk.write(at, &sector);
    said(bench.disk.flush()).unwrap();
    assert_eq!(fs::read(bench.host().join("NEW")).unwrap(), b"the guest's");
    assert_eq!(fs::read_dir(bench.host()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn a_rename_that_was_not_possible_is_made_when_it_is() {
    let (bench, _) = bench(true);
    fs::write(bench.host().join("B.BIN"), b"the host's own").unwrap();
    bench.mtools("mren", &["::A.BIN", "::B.BIN"]).unwrap();
    bench.write(&bench.changed());
    for _ in 0..2 {
        assert!(bench.disk.flush().is_err());
        assert_eq!(fs::read(bench.host().join("A.BIN")).unwrap(), CONTENT);
        assert_eq!(fs::read(bench.host().join("B.BIN")).unwrap(), b"the host's own");
    }
    fs::remove_file(bench.host().join("B.BIN")).unwrap();
    said(bench.disk.flush()).unwrap();
    assert_eq!(fs::read(bench.host().join("B.BIN")).unwrap(), CONTENT);
    assert!(!bench.host().join("A.BIN").exists());
}

#[test]
fn a_file_that_the_host_changed_is_not_forgotten_by_a_touch() {
    let (bench, at) = bench(true);
    let file = bench.host().join("A.BIN");
    fs::write(&file, b"the host's own").unwrap();
    bench.mtools("mattrib", &["+r", "::A.BIN"]).unwrap();
    bench.write(&bench.changed());
    assert!(said(bench.disk.flush()).unwrap_err().contains("the host changed it too"));
    for sector in 0..6 {
        bench.disk.write(at + sector * SECTOR as u64, &[8; SECTOR]);
    }
    assert!(bench.disk.flush().is_err());
    assert_eq!(fs::read(&file).unwrap(), b"the host's own");
}

#[test]
fn a_file_that_the_host_changed_is_not_moved_away_by_one_renamed_over_it() {
    let (bench, _) = bench(true);
    fs::write(bench.scratch("new"), [5; 2000]).unwrap();
    bench.mtools("mcopy", &[bench.scratch("new").to_str().unwrap(), "::NEW"]).unwrap();
    bench.write(&bench.changed());
    said(bench.disk.flush()).unwrap();
    fs::write(bench.host().join("A.BIN"), b"the host's own").unwrap();
    bench.mtools("mdel", &["::A.BIN"]).unwrap();
    bench.mtools("mren", &["::NEW", "::A.BIN"]).unwrap();
    bench.write(&bench.changed());
    assert!(bench.disk.flush().is_err());
    assert_eq!(fs::read(bench.host().join("A.BIN")).unwrap(), b"the host's own");
    assert_eq!(fs::read(bench.host().join("NEW")).unwrap(), [5; 2000]);
}

#[test]
fn what_took_the_place_of_a_file_is_not_deleted_with_it() {
    for is_link in [true, false] {
        let (bench, _) = bench(true);
        let file = bench.host().join("A.BIN");
        bench.mtools("mdel", &["::A.BIN"]).unwrap();
        bench.write(&bench.changed());
        fs::remove_file(&file).unwrap();
        match is_link {
            true => symlink("elsewhere", &file).unwrap(),
            false => fs::create_dir(&file).unwrap(),
        }
        said(bench.disk.flush()).unwrap();
        assert!(file.symlink_metadata().is_ok());
    }
}

#[test]
fn a_file_that_vanished_does_not_keep_others_from_the_host() {
    let bench = Bench::new("12", true, |host| fs::write(host.join("A.BIN"), [7; 20_000]).unwrap());
    bench.mtools("mdel", &["::A.BIN"]).unwrap();
    fs::write(bench.scratch("new"), b"small").unwrap();
    bench.mtools("mcopy", &[bench.scratch("new").to_str().unwrap(), "::B.BIN"]).unwrap();
    // The rest of the cluster is not written.
    let changed: Vec<u64> = bench.changed();
    fs::remove_file(bench.host().join("A.BIN")).unwrap();
    bench.write(&changed);
    said(bench.disk.flush()).unwrap();
    assert_eq!(fs::read(bench.host().join("B.BIN")).unwrap(), b"small");
    bench.mtools("mcopy", &[bench.scratch("new").to_str().unwrap(), "::C.BIN"]).unwrap();
    bench.write(&bench.changed());
    said(bench.disk.flush()).unwrap();
    assert_eq!(fs::read(bench.host().join("C.BIN")).unwrap(), b"small");
}

#[test]
fn of_many_files_that_are_read_at_once_the_one_that_vanished_is_the_error() {
    let bench = Bench::new("", false, |host| {
        for number in 0..20 {
            fs::write(host.join(format!("F{number:02}.BIN")), vec![number + 1; 5000]).unwrap();
        }
    });
    let image = fs::read(bench.image()).unwrap();
    let start = image.chunks(SECTOR).position(|sector| *sector == [1; SECTOR]).unwrap() * SECTOR;
    let all = || bench.disk.try_read(start as u64, 20 * 8192);
    assert_eq!(all().unwrap(), &image[start..start + 20 * 8192]);
    let (path, aside) = (bench.host().join("F07.BIN"), bench.host().join("aside"));
    fs::rename(&path, &aside).unwrap();
    assert!(all().is_err());
    fs::rename(&aside, &path).unwrap();
    assert_eq!(all().unwrap(), &image[start..start + 20 * 8192]);
}
