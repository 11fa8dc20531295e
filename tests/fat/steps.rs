//! Single changes of a guest, between whose sectors there is a flush.

use crate::disk::said;
use crate::harness::{Bench, SECTOR, contents};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

/// Where an 8.3 name's entry is in the copy, in bytes.
fn entry(bench: &Bench, short: &[u8; 11]) -> u64 {
    let image = fs::read(bench.image()).unwrap();
    let found = image.chunks(32).position(|slot| slot.starts_with(short) && slot[11] & 8 == 0);
    (found.unwrap() * 32) as u64
}

fn patch(bench: &Bench, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(bench.image()).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// Where the data of the copy's only file with this content begins.
fn place(bench: &Bench, content: &[u8]) -> u64 {
    let image = fs::read(bench.image()).unwrap();
    let found =
        image.chunks(SECTOR).position(|sector| sector.starts_with(&content[..content.len().min(SECTOR)]));
    (found.unwrap() * SECTOR) as u64
}

fn flushed(bench: &Bench) {
    bench.write(&bench.changed());
    said(bench.disk.flush()).unwrap();
}

#[test]
fn a_file_between_two_steps_of_a_move_is_not_deleted_and_then_moved_as_it_is() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.TXT"), b"what it was").unwrap();
        fs::create_dir(host.join("SUB")).unwrap();
    });
    let inode = fs::metadata(bench.host().join("A.TXT")).unwrap().ino();
    bench.mtools("mmove", &["::A.TXT", "::SUB"]).unwrap();
    let changed = bench.changed();
    assert_eq!(changed.len(), 2, "the old entry and the new one");
    // The root comes first: the file is nowhere, but has its clusters.
    bench.write(&changed[..1]);
    said(bench.disk.flush()).unwrap();
    assert_eq!(fs::read(bench.host().join("A.TXT")).unwrap(), b"what it was");
    bench.write(&changed[1..]);
    said(bench.disk.flush()).unwrap();
    assert!(!bench.host().join("A.TXT").exists());
    assert_eq!(fs::metadata(bench.host().join("SUB/A.TXT")).unwrap().ino(), inode);
}

#[test]
fn a_file_grows_and_shrinks_by_its_entry_and_keeps_its_inode_where_little_changes() {
    let content: Vec<u8> = (0..700u32).map(|at| (at / 3) as u8).collect();
    let bench = Bench::new("floppy", true, |host| fs::write(host.join("A.BIN"), &content).unwrap());
    let file = bench.host().join("A.BIN");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    let (at, data) = (entry(&bench, b"A       BIN"), place(&bench, &content));
    // 300 bytes are appended, in the cluster's second sector.
    patch(&bench, data + 700, &[7; 300]);
    patch(&bench, at + 0x1c, &1000u32.to_le_bytes());
    flushed(&bench);
    let expected = [&content[..], &[7; 300]].concat();
    assert_eq!(fs::read(&file).unwrap(), expected);
    // Ten bytes stay.
    patch(&bench, at + 0x1c, &10u32.to_le_bytes());
    flushed(&bench);
    assert_eq!(fs::read(&file).unwrap(), &content[..10]);
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.ino(), metadata.mode() & 0o777), (inode, 0o640));
}

#[test]
fn a_file_that_is_written_anew_is_replaced_and_keeps_its_mode() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.BIN"), [1; 5000]).unwrap();
        fs::set_permissions(host.join("A.BIN"), fs::Permissions::from_mode(0o604)).unwrap();
    });
    let held = fs::File::open(bench.host().join("A.BIN")).unwrap();
    patch(&bench, place(&bench, &[1; 5000]), &[2; 5000]);
    flushed(&bench);
    assert_eq!(fs::read(bench.host().join("A.BIN")).unwrap(), [2; 5000]);
    let (mut old, metadata) = ([0; 5000], fs::metadata(bench.host().join("A.BIN")).unwrap());
    held.read_exact_at(&mut old, 0).unwrap();
    assert_eq!((old, metadata.mode() & 0o777), ([1; 5000], 0o604), "who had it open keeps what it was");
}

#[test]
fn a_file_with_another_name_outside_is_written_in_place() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.BIN"), [1; 5000]).unwrap();
        fs::hard_link(host.join("A.BIN"), host.parent().unwrap().join("other")).unwrap();
    });
    patch(&bench, place(&bench, &[1; 5000]), &[2; 5000]);
    flushed(&bench);
    assert_eq!(fs::read(bench.scratch("other")).unwrap(), [2; 5000]);
}

#[test]
fn attributes_and_times_of_the_guest_become_the_hosts() {
    let bench = Bench::new("floppy", true, |host| fs::write(host.join("A.BIN"), b"a").unwrap());
    let at = entry(&bench, b"A       BIN");
    // Read-only; the sixth of July 2009, 12:34:56.
    patch(&bench, at + 0x0b, &[0x21]);
    patch(&bench, at + 0x16, &(12u16 << 11 | 34 << 5 | 28).to_le_bytes());
    patch(&bench, at + 0x18, &(29u16 << 9 | 7 << 5 | 6).to_le_bytes());
    flushed(&bench);
    let metadata = fs::metadata(bench.host().join("A.BIN")).unwrap();
    assert_eq!(metadata.mode() & 0o222, 0);
    let date = std::process::Command::new("date")
        .args(["+%F %T", "-r", bench.host().join("A.BIN").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(date.stdout).unwrap().trim(), "2009-07-06 12:34:56");
}

#[test]
fn what_makes_no_sense_is_kept_until_it_does() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.BIN"), [1; 5000]).unwrap();
        fs::write(host.join("B.BIN"), [2; 5000]).unwrap();
    });
    let before = contents(&bench.host());
    let (a, b) = (entry(&bench, b"A       BIN"), entry(&bench, b"B       BIN"));
    let image = fs::read(bench.image()).unwrap();
    let cluster = |at: u64| image[at as usize + 0x1a..at as usize + 0x1c].to_vec();
    // Both begin at one cluster.
    patch(&bench, a + 0x1a, &cluster(b));
    flushed(&bench);
    assert_eq!(contents(&bench.host()), before);
    // They have changed places, which no step did by itself.
    patch(&bench, b + 0x1a, &cluster(a));
    flushed(&bench);
    let host = bench.host();
    assert_eq!(fs::read(host.join("A.BIN")).unwrap(), [2; 5000]);
    assert_eq!(fs::read(host.join("B.BIN")).unwrap(), [1; 5000]);
}

#[test]
fn what_never_makes_sense_is_reported_at_the_end() {
    let bench = Bench::new("floppy", true, |host| fs::write(host.join("A.BIN"), [1; 5000]).unwrap());
    patch(&bench, entry(&bench, b"A       BIN") + 0x1a, &0xfff0u16.to_le_bytes());
    flushed(&bench);
    let host = bench.host();
    let (scratch, disk) = bench.into_parts();
    let refused = disk.close().unwrap_err();
    assert!(refused.message().contains("did not reach the directory"), "{refused}");
    assert_eq!(fs::read(host.join("A.BIN")).unwrap(), [1; 5000]);
    drop(scratch);
}

#[test]
fn a_guest_that_makes_another_file_system_deletes_nothing() {
    let bench = Bench::new("floppy", true, |host| fs::write(host.join("A.BIN"), [1; 5000]).unwrap());
    bench.mtools("mformat", &["-f", "2880", "-N", "12345678", "::"]).unwrap();
    flushed(&bench);
    assert_eq!(fs::read(bench.host().join("A.BIN")).unwrap(), [1; 5000]);
}

#[test]
fn what_is_written_to_a_file_between_two_steps_of_its_move_reaches_the_host() {
    let content = [1; 5000];
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.BIN"), content).unwrap();
        fs::create_dir(host.join("SUB")).unwrap();
    });
    let data = place(&bench, &content);
    bench.mtools("mmove", &["::A.BIN", "::SUB"]).unwrap();
    let changed = bench.changed();
    patch(&bench, data, &[9; SECTOR]);
    bench.write(&[data]);
    bench.write(&changed[..1]);
    said(bench.disk.flush()).unwrap();
    bench.write(&changed[1..]);
    said(bench.disk.flush()).unwrap();
    let expected = [&[9; SECTOR][..], &content[SECTOR..]].concat();
    assert_eq!(fs::read(bench.host().join("SUB/A.BIN")).unwrap(), expected);
}

#[test]
fn two_that_change_names_keep_their_inodes_and_one_renamed_over_another_replaces_it() {
    let bench = Bench::new("floppy", true, |host| {
        for name in ["A", "B", "C"] {
            fs::write(host.join(format!("{name}.BIN")), name.repeat(3000)).unwrap();
        }
    });
    let inode = |name: &str| fs::metadata(bench.host().join(name)).unwrap().ino();
    let before = ["A.BIN", "B.BIN", "C.BIN"].map(inode);
    let (a, b) = (entry(&bench, b"A       BIN"), entry(&bench, b"B       BIN"));
    patch(&bench, a, b"B");
    patch(&bench, b, b"A");
    flushed(&bench);
    assert_eq!(["A.BIN", "B.BIN"].map(inode), [before[1], before[0]]);
    // C is deleted, and A takes its name.
    bench.mtools("mdel", &["::C.BIN"]).unwrap();
    bench.mtools("mren", &["::A.BIN", "::C.BIN"]).unwrap();
    flushed(&bench);
    assert_eq!(inode("C.BIN"), before[1]);
    assert_eq!(fs::read_dir(bench.host()).unwrap().count(), 2);
}

#[test]
fn a_file_written_anew_is_nobodys_else_before_and_runs_as_nobody_else() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.BIN"), [1; 5000]).unwrap();
        fs::set_permissions(host.join("A.BIN"), fs::Permissions::from_mode(0o4700)).unwrap();
    });
    patch(&bench, place(&bench, &[1; 5000]), &[2; 5000]);
    flushed(&bench);
    assert_eq!(fs::metadata(bench.host().join("A.BIN")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_name_that_a_file_has_on_the_host_under_another_one_gets_a_number() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.TXT"), b"upper").unwrap();
        fs::write(host.join("a.txt"), b"lower").unwrap();
    });
    bench.mtools("mdel", &["::A.TXT"]).unwrap();
    fs::write(bench.scratch("new"), b"new").unwrap();
    bench.mtools("mcopy", &[bench.scratch("new").to_str().unwrap(), "::a.txt"]).unwrap();
    flushed(&bench);
    let mut found: Vec<Vec<u8>> = contents(&bench.host()).into_values().flatten().collect();
    found.sort();
    assert_eq!(found, [b"lower".to_vec(), b"new".to_vec()]);
}

#[test]
fn an_empty_file_that_is_renamed_or_moved_is_still_the_same() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.TXT"), b"").unwrap();
        fs::create_dir(host.join("SUB")).unwrap();
    });
    let inode = fs::metadata(bench.host().join("A.TXT")).unwrap().ino();
    bench.mtools("mren", &["::A.TXT", "::B.TXT"]).unwrap();
    flushed(&bench);
    assert_eq!(fs::metadata(bench.host().join("B.TXT")).unwrap().ino(), inode);
    bench.mtools("mmove", &["::B.TXT", "::SUB"]).unwrap();
    flushed(&bench);
    assert_eq!(fs::metadata(bench.host().join("SUB/B.TXT")).unwrap().ino(), inode);
    assert!(!bench.host().join("B.TXT").exists());
}

#[test]
fn a_new_file_with_the_name_of_something_left_out_gets_a_number_on_the_host() {
    let bench = Bench::new("floppy", true, |host| {
        fs::write(host.join("A.TXT"), b"what the link shows").unwrap();
        std::os::unix::fs::symlink("A.TXT", host.join("LINK.TXT")).unwrap();
    });
    let new = bench.scratch("new");
    for content in ["new", "and newer"] {
        fs::write(&new, content).unwrap();
        bench.mtools("mcopy", &["-o", new.to_str().unwrap(), "::LINK.TXT"]).unwrap();
        flushed(&bench);
        assert_eq!(fs::read(bench.host().join("LINK~1.TXT")).unwrap(), content.as_bytes());
        assert_eq!(fs::read(bench.host().join("LINK.TXT")).unwrap(), b"what the link shows");
    }
    bench.mtools("mdel", &["::LINK.TXT"]).unwrap();
    flushed(&bench);
    assert!(!bench.host().join("LINK~1.TXT").exists() && bench.host().join("LINK.TXT").is_symlink());
}
