//! -snapshot and snapshot=on: the images stay as they are until somebody commits, and nothing is left behind.

use crate::machine::{Machine, Place, cowvm, sector_1, tool};
use crate::running::has_kvm;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// The temporary files that a process has open: mode and number of names of each.
fn temporary_files(machine: &Machine, place: &Place) -> Vec<(u32, u64)> {
    let folder = place.path("tmp");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", machine.id())).unwrap();
    let paths = descriptors.map(|entry| entry.unwrap().path());
    let inside = paths.filter(|path| fs::read_link(path).is_ok_and(|target| target.starts_with(&folder)));
    inside
        .map(|path| fs::metadata(path).unwrap())
        .map(|found| (found.permissions().mode() & 0o777, found.nlink()))
        .collect()
}

fn is_empty(place: &Place) -> bool {
    fs::read_dir(place.path("tmp")).unwrap().next().is_none()
}

#[test]
fn the_image_stays_byte_equal_and_the_overlay_has_no_name() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (image, format) in [(place.raw("a.raw"), "raw"), (place.qcow2("a.qcow2"), "qcow2")] {
        let before = fs::read(&image).unwrap();
        let drive = format!("file={image},format={format}");
        for kill in [false, true] {
            let mut machine = Machine::start(&place, &["-snapshot", "-drive", &drive]);
            machine.key('a', ".");
            machine.key('0', "a");
            assert_eq!(temporary_files(&machine, &place), [(0o600, 0)]);
            assert!(is_empty(&place));
            match kill {
                false => drop(machine.quit()),
                true => drop(machine),
            }
            assert!(is_empty(&place));
            assert_eq!(fs::read(&image).unwrap(), before, "{image}");
        }
    }
}

#[test]
fn commit_writes_back_and_the_guest_goes_on_above_it() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (image, format) in [(place.raw("a.raw"), "raw"), (place.qcow2("a.qcow2"), "qcow2")] {
        for (round, key) in ["commit all", "commit virtio0", "\x01s"].into_iter().zip("acd".chars()) {
            let drive = format!("file={image},format={format}");
            let mut machine = Machine::start(&place, &["-snapshot", "-drive", &drive]);
            machine.key(key, ".");
            match round {
                "\x01s" => {
                    machine.type_(round);
                    machine.expect("Disk data is saved.");
                }
                line => assert_eq!(machine.hmp().ask(line), ""),
            }
            machine.key('0', &key.to_string());
            machine.key('z', ".");
            machine.key('0', "z");
            machine.quit();
            assert_eq!(sector_1(&image, format), key as u8, "{image}");
        }
        if format == "qcow2" {
            tool("qemu-img", &["check", &image]);
        }
    }
}

#[test]
fn one_drive_alone_can_be_in_snapshot_mode() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (first, second) = (place.raw("a.raw"), place.raw("b.raw"));
    let mut machine = Machine::start(
        &place,
        &[
            "-drive",
            &format!("file={first},format=raw,snapshot=on,id=first"),
            "-drive",
            &format!("file={second},format=raw,id=second"),
        ],
    );
    machine.key('a', ".");
    machine.key('B', ".");
    let mut hmp = machine.hmp();
    assert_eq!(hmp.ask("commit second"), "'commit' error for 'second': Operation not supported\n");
    assert_eq!(hmp.ask("commit third"), "Device 'third' not found\n");
    let shown = hmp.ask("info block first");
    assert!(
        shown.contains("(qcow2)\n") && shown.contains(&format!("Backing file:     {first} (chain depth: 1)")),
        "{shown}"
    );
    machine.quit();
    assert_eq!((sector_1(&first, "raw"), sector_1(&second, "raw")), (0, b'B'));
}

#[test]
fn two_machines_may_share_an_image_and_neither_can_commit_under_the_other() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("a.raw");
    let drive = format!("file={image},format=raw");
    let mut first = Machine::start_named(&place, "1", &["-snapshot", "-drive", &drive]);
    let mut second = Machine::start_named(&place, "2", &["-snapshot", "-drive", &drive]);
    first.key('a', ".");
    second.key('b', ".");
    let said = first.hmp().ask("commit all");
    assert!(said.contains("'commit' error for 'virtio0'") && said.contains("in use"), "{said}");
    first.key('0', "a");
    second.key('0', "b");
    // The lock is held again.
    assert!(second.hmp().ask("commit all").contains("in use"));
    first.quit();
    assert_eq!(second.hmp().ask("commit all"), "");
    second.quit();
    assert_eq!(sector_1(&image, "raw"), b'b');
}

#[test]
fn a_folder_that_takes_no_overlay_is_named() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("a.raw");
    let missing = place.text("missing");
    let output = cowvm(&place).env("TMPDIR", &missing).args(["-snapshot", &image]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&missing) && said.contains("TMPDIR"), "{said}");
}

#[test]
fn a_vm_snapshot_of_disks_in_and_out_of_snapshot_mode_is_refused() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (first, second) = (place.qcow2("a.qcow2"), place.qcow2("b.qcow2"));
    let drive = format!("file={second},format=qcow2,snapshot=on,id=hdb");
    let machine = Machine::start(&place, &["-hda", &first, "-drive", &drive]);
    let said = machine.hmp().ask("savevm s");
    assert!(said.contains("'hda' and 'hdb' only one is in snapshot mode"), "{said}");
    machine.quit();
    assert_eq!(tool("qemu-img", &["snapshot", "-l", &first]), "");
}

#[test]
fn vm_snapshots_can_be_taken_and_vanish_with_the_overlay() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("a.qcow2");
    let before = fs::read(&image).unwrap();
    let mut machine = Machine::start(&place, &["-snapshot", "-hda", &image]);
    let mut hmp = machine.hmp();
    machine.key('a', ".");
    assert_eq!(hmp.ask("savevm s"), "");
    machine.key('b', ".");
    machine.key('0', "b");
    assert_eq!(hmp.ask("loadvm s"), "");
    machine.key('0', "a");
    let list = hmp.ask("info snapshots");
    assert!(list.starts_with("Snapshot devices: hda\nSnapshot list (from hda):\nID "), "{list}");
    let said = hmp.ask("commit all");
    assert!(said.starts_with("'commit' error for 'hda'") && said.contains("delvm"), "{said}");
    machine.quit();
    assert_eq!(fs::read(&image).unwrap(), before);
    let mut machine = Machine::start(&place, &["-snapshot", "-hda", &image]);
    let mut hmp = machine.hmp();
    machine.key('c', ".");
    for line in ["savevm s", "delvm s", "commit all"] {
        assert_eq!(hmp.ask(line), "", "{line}");
    }
    machine.quit();
    assert_eq!(sector_1(&image, "qcow2"), b'c');
    assert_eq!(tool("qemu-img", &["snapshot", "-l", &image]), "");
}

#[test]
fn a_directory_as_a_disk_keeps_its_files_in_snapshot_mode_and_has_no_snapshots() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("a.qcow2");
    fs::create_dir(place.path("shared")).unwrap();
    fs::write(place.path("shared/A.TXT"), b"the host's").unwrap();
    let fat = format!("fat:rw:{}", place.text("shared"));
    let mut machine = Machine::start(&place, &["-snapshot", "-hda", &image, "-hdb", &fat]);
    machine.key('A', ".");
    machine.key('1', "A");
    let refused = machine.hmp().ask("commit hdb");
    assert!(refused.contains("cannot take over"), "{refused}");
    machine.key('1', "A");
    machine.quit();
    let mut machine = Machine::start(&place, &["-hda", &image, "-hdb", &fat]);
    let refused = machine.hmp().ask("savevm one");
    assert!(refused.contains("'hdb' is writable but does not support snapshots"), "{refused}");
    machine.key('a', ".");
    machine.quit();
    assert_eq!(fs::read(place.path("shared/A.TXT")).unwrap(), b"the host's");
    assert_eq!(fs::read_dir(place.path("shared")).unwrap().count(), 1);
}
