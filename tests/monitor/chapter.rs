//! The chapter on disk images of QEMU's manual, its sections on snapshot mode and on VM snapshots: what it names and
//! shows is typed at the console as it stands there, and what it promises is looked at.

use crate::machine::{Machine, Place, tool};
use crate::running::has_kvm;
use std::fs;

/// The head of the list, as it is printed there.
const HEAD: &str = "Snapshot devices: hda
Snapshot list (from hda):
ID        TAG                 VM SIZE                DATE       VM CLOCK
";

/// Types a command into the monitor, from the console and back; the answer.
fn monitor(machine: &mut Machine, line: &str) -> String {
    machine.type_("\x01c");
    machine.expect("(qemu) ");
    machine.type_(&format!("{line}\n"));
    let text = machine.expect("(qemu) ");
    machine.type_("\x01c");
    let answer = text.strip_prefix(&format!("{line}\n")).unwrap_or_else(|| panic!("{text:?}"));
    answer.strip_suffix("(qemu) ").unwrap().to_owned()
}

/// The lines of `info snapshots` under its head: ID, tag, size, date, clock.
fn list(machine: &mut Machine, head: &str) -> Vec<[String; 5]> {
    let text = monitor(machine, "info snapshots");
    let lines = text.strip_prefix(head).unwrap_or_else(|| panic!("{text}"));
    let columns = [0..10, 10..30, 30..37, 37..57, 57..72];
    let cut = |line: &str| columns.clone().map(|range| line[range].trim().to_owned());
    lines.lines().map(cut).collect()
}

fn tags(list: &[[String; 5]]) -> Vec<&str> {
    list.iter().map(|[_, tag, ..]| tag.as_str()).collect()
}

#[test]
fn snapshot_mode_is_forced_to_write_back_by_commit_and_by_a_key() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("hda.img");
    let sector = || fs::read(&image).unwrap()[512];
    let mut machine = Machine::start(&place, &["-snapshot", &image]);
    machine.key('a', ".");
    assert_eq!(sector(), 0);
    assert_eq!(monitor(&mut machine, "commit all"), "");
    assert_eq!(sector(), b'a');
    machine.key('b', ".");
    assert_eq!(sector(), b'a');
    machine.type_("\x01s");
    machine.expect("Disk data is saved.");
    assert_eq!(sector(), b'b');
    machine.quit();
}

#[test]
fn vm_snapshots_are_named_numbered_listed_restored_replaced_and_removed() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("hda.qcow2");
    let mut machine = Machine::start(&place, &["-hda", &image]);
    for (key, line) in [('a', "savevm start"), ('b', "savevm"), ('c', "savevm msys")] {
        machine.key(key, ".");
        assert_eq!(monitor(&mut machine, line), "");
    }
    let snapshots = list(&mut machine, HEAD);
    let found = tags(&snapshots);
    assert!(found[0] == "start" && found[1].starts_with("vm-2") && found[2] == "msys", "{found:?}");
    for (number, [id, _, size, date, clock]) in (1..).zip(&snapshots) {
        assert_eq!(*id, number.to_string());
        assert!(size.ends_with(['K', 'M']), "{size}");
        assert_eq!((date.len(), clock.len()), ("2006-08-06 12:38:02".len(), "00:00:14.954".len()));
    }
    assert!(snapshots.is_sorted_by(|one, other| one[4] <= other[4]), "{snapshots:?}");

    for (line, key) in [("loadvm start", "a"), ("loadvm 2", "b"), ("loadvm msys", "c")] {
        assert_eq!(monitor(&mut machine, line), "");
        machine.key('0', key);
    }
    assert_eq!(monitor(&mut machine, "savevm start"), "");
    assert_eq!(monitor(&mut machine, "delvm 2"), "");
    let snapshots = list(&mut machine, HEAD);
    let mut found = tags(&snapshots);
    found.sort_unstable();
    assert_eq!(found, ["msys", "start"]);
    machine.key('d', ".");
    assert_eq!(monitor(&mut machine, "loadvm start"), "");
    machine.key('0', "c");
    machine.quit();
    tool("qemu-img", &["check", &image]);
}

#[test]
fn the_first_writable_qcow2_disk_has_the_state_and_every_one_a_snapshot() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (system, first, second) = (place.raw("hda.img"), place.qcow2("hdb.qcow2"), place.qcow2("hdc.qcow2"));
    let system = format!("file={system},format=raw,readonly=on,id=hda");
    let mut machine = Machine::start(&place, &["-drive", &system]);
    let said = monitor(&mut machine, "savevm start");
    assert!(said.starts_with("Error: ") && said.contains("no block device can store vmstate"), "{said}");
    machine.quit();
    let disks = [&first, &second].map(|image| format!("file={image},format=qcow2"));
    let disks = ["id=hdb", "id=hdc"].iter().zip(disks).map(|(id, disk)| format!("{disk},{id}"));
    let disks: Vec<String> = disks.collect();
    let arguments = ["-drive", &system, "-drive", &disks[0], "-drive", &disks[1]];
    let mut machine = Machine::start(&place, &arguments);
    assert_eq!(monitor(&mut machine, "savevm start"), "");
    let head = HEAD.replace("devices: hda", "devices: hdb hdc").replace("from hda", "from hdb");
    assert_eq!(tags(&list(&mut machine, &head)), ["start"]);
    machine.quit();
    let info = |image: &str| tool("qemu-img", &["info", "--output=json", image]);
    let snapshot = |image: &str| {
        let info: serde_json::Value = serde_json::from_str(&info(image)).unwrap();
        let snapshot = &info["snapshots"][0];
        (snapshot["name"].as_str().unwrap().to_owned(), snapshot["vm-state-size"].as_u64().unwrap() > 0)
    };
    assert_eq!((snapshot(&first), snapshot(&second)), (("start".into(), true), ("start".into(), false)));
}
