//! VM snapshots of the built-in demo guest, which every /dev/kvm can run.

use crate::machine::{Machine, Place, tool};
use crate::running::has_kvm;
use std::fs;

/// Types a line, and waits for an answer with `answer` in it and the next prompt.
fn line(machine: &mut Machine, line: &str, answer: &str) {
    machine.type_(&format!("{line}\n"));
    machine.expect(answer);
    machine.expect("cow> ");
}

/// Half of a command in the guest's memory, and what it shows on the disk: both are of one moment each time.
#[test]
fn memory_and_disk_go_back_and_forth_fifty_times() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut machine = Machine::start(&place, &[]);
    let mut hmp = machine.hmp();
    for (text, half, tag) in [("old", "read 2", "a"), ("new", "read 0x1", "b")] {
        line(&mut machine, &format!("write 20 {text}"), "Written.");
        machine.type_(half);
        machine.expect(half);
        assert_eq!(hmp.ask(&format!("savevm {tag}")), "");
        line(&mut machine, "9", "0000 00");
    }
    for _ in 0..50 {
        for (tag, rest, shown) in [("a", "0", "0000 6f 6c 64 00"), ("b", "4", "0000 6e 65 77 00")] {
            assert_eq!(hmp.ask(&format!("loadvm {tag}")), "");
            line(&mut machine, rest, shown);
        }
    }
    machine.quit();
    let folders: Vec<_> =
        fs::read_dir(place.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [folder] = &folders[..] else { panic!("{folders:?}") };
    for disk in fs::read_dir(folder).unwrap() {
        tool("qemu-img", &["check", disk.unwrap().path().to_str().unwrap()]);
    }
}
