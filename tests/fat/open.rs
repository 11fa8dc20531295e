//! How FAT disks are asked for, and what they refuse.

use crate::disk::Disk;
use crate::harness::SECTOR;
use cowvm::block::describe;
use cowvm::block::options::OpenOptions;
use std::fs;
use std::process::Command;

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("A.TXT"), b"hello").unwrap();
    directory
}

fn writable() -> OpenOptions {
    OpenOptions { read_only: false, ..OpenOptions::default() }
}

#[test]
fn disks_are_as_large_as_qemus() {
    let directory = directory();
    for words in ["", "12:", "16:", "floppy:", "floppy:12:", "12:floppy:", "floppy:16:"] {
        let name = format!("fat:{words}{}", directory.path().display());
        let info = Command::new("qemu-img").args(["info", &name]).output().unwrap();
        let size = Disk::named(&name, &OpenOptions::default()).unwrap().size();
        let info = String::from_utf8(info.stdout).unwrap();
        assert!(info.contains(&format!("({size} bytes)")), "{name}: {size}\n{info}");
    }
}

#[test]
fn names_options_and_json_open_the_same_disk() {
    let directory = directory();
    let path = directory.path().display();
    let named = Disk::named(&format!("fat:12:{path}"), &OpenOptions::default()).unwrap();
    let (name, options) = describe::from_options(
        &format!("driver=raw,file.driver=vvfat,file.dir={path},file.fat-type=12"),
        &OpenOptions::default(),
    )
    .unwrap();
    let described = Disk::named(&name, &options).unwrap();
    let json = format!(r#"json:{{"driver":"vvfat","dir":"{path}","fat-type":12,"label":"here"}}"#);
    let labelled = Disk::named(&json, &OpenOptions::default()).unwrap();
    let head = |disk: &Disk| disk.read(0, 200 * SECTOR);
    assert_eq!(head(&named), head(&described));
    assert!(head(&labelled).windows(11).any(|bytes| bytes == b"HERE       "));
    assert!(head(&named).windows(11).any(|bytes| bytes == b"QEMU VVFAT "));
}

#[test]
fn a_disk_without_rw_and_one_opened_to_read_refuse_writes() {
    let directory = directory();
    let path = directory.path().display();
    for (name, options) in
        [(format!("fat:{path}"), writable()), (format!("fat:rw:{path}"), OpenOptions::default())]
    {
        let disk = Disk::named(&name, &options).unwrap();
        assert!(disk.try_write(0, &[0; SECTOR]).is_err(), "{name}");
        disk.close().unwrap();
    }
    let disk = Disk::named(&format!("fat:rw:{path}"), &writable()).unwrap();
    assert!(disk.try_write(SECTOR as u64, &[0; SECTOR]).is_ok());
}

#[test]
fn what_cannot_be_opened_is_refused_in_qemus_words() {
    let directory = directory();
    let path = directory.path().display().to_string();
    for (name, format, message) in [
        ("fat:/no/such".to_owned(), None, "Could not read directory /no/such".to_owned()),
        ("fat:".to_owned(), None, "Could not read directory ".to_owned()),
        (format!("fat:{path}/A.TXT"), None, format!("Could not read directory {path}/A.TXT")),
        (format!("fat:{path}"), Some("qcow2"), "Image is not in qcow2 format".to_owned()),
    ] {
        let options = OpenOptions { format: format.map(str::to_owned), ..OpenOptions::default() };
        let refused = Disk::named(&name, &options).err().unwrap();
        assert_eq!(refused.message(), message);
    }
    fs::File::create(directory.path().join("BIG")).unwrap().set_len(3 << 20).unwrap();
    let refused = Disk::named(&format!("fat:floppy:{path}"), &OpenOptions::default()).err().unwrap();
    assert_eq!(refused.message(), "Directory does not fit in FAT12 (capacity 2.95 MB)");
}

#[test]
fn an_image_cannot_name_a_directory() {
    let directory = directory();
    let (path, image) = (directory.path().display(), directory.path().join("overlay.qcow2"));
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &format!("fat:{path}")])
        .arg(&image)
        .status()
        .unwrap();
    assert!(made.success());
    let refused = Disk::named(image.to_str().unwrap(), &OpenOptions::default()).err().unwrap();
    assert!(refused.message().contains("Unknown protocol 'fat'"), "{refused}");
}

#[test]
fn free_space_is_known_to_be_zeros() {
    let directory = directory();
    let disk = Disk::open("", directory.path(), false);
    let (mut at, mut zeros) = (0, 0);
    while at < disk.size() {
        let (len, zero) = disk.zeros(at, disk.size() - at);
        zeros += if zero { len } else { 0 };
        at += len;
    }
    assert!(disk.size() - zeros < 1 << 20, "{zeros} of {}", disk.size());
}

#[test]
fn files_one_behind_the_other_are_one_run_of_data() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..300 {
        fs::write(directory.path().join(format!("F{number}.BIN")), vec![7; number * 20]).unwrap();
    }
    let disk = Disk::open("", directory.path(), false);
    let (mut at, mut runs) = (0, 0);
    while at < disk.size() {
        at += disk.zeros(at, disk.size() - at).0;
        runs += 1;
    }
    // Boot sectors, both FATs, the root directory and the files, each but for the last with zeros behind it; free space.
    assert!(runs < 20, "{runs}");
}
