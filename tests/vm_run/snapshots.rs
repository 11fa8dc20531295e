//! VM snapshots of a guest that counts in memory and on two disks.

use crate::guest::{count, cowvm, disk, drive, wait};
use crate::running::{Running, has_kvm};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Two qcow2 disks, the first of which boots the guest that counts.
fn counting_disks() -> (TempDir, [PathBuf; 2]) {
    let (folder, raw) = disk(count());
    let paths = ["hda", "hdb"].map(|name| folder.path().join(name).with_extension("qcow2"));
    for path in &paths {
        let convert = Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&raw, path]).status();
        assert!(convert.unwrap().success());
    }
    (folder, paths)
}

/// A guest with a monitor to type to.
fn counting(paths: &[PathBuf; 2], more: &[&str]) -> Running {
    let [hda, hdb] = paths;
    let mut command = cowvm();
    command.args(["-m", "4", "-hda"]).arg(hda).arg("-hdb").arg(hdb).args(more).stdin(Stdio::piped());
    Running::start(&mut command)
}

impl Running {
    /// Types a command to the monitor, and returns what it says.
    fn monitor(&mut self, command: &str) -> String {
        self.output.seen.clear();
        self.type_(&format!("\x01c{command}\ninfo status\n"));
        let said = self.expect("VM status: running");
        self.type_("\x01c");
        said
    }

    /// Types a key, which the guest counts: on the first disk, on the second, in memory.
    fn counts(&mut self, counted: &str) {
        self.output.seen.clear();
        self.type_("x");
        self.expect(counted);
        assert_eq!(self.output.seen, "");
    }
}

fn passes_check(paths: &[PathBuf]) {
    for path in paths {
        let check = Command::new("qemu-img").arg("check").arg(path).output().unwrap();
        assert!(check.status.success(), "{check:?}");
    }
}

#[test]
fn memory_and_disks_go_back_together_again_and_again_and_in_another_process() {
    if !has_kvm() {
        return;
    }
    let (_folder, paths) = counting_disks();
    let mut guest = counting(&paths, &[]);
    guest.counts("aaA");
    guest.counts("bbB");
    assert!(!guest.monitor("savevm two").contains("Error"));
    guest.counts("ccC");
    guest.counts("ddD");
    assert!(!guest.monitor("savevm four").contains("Error"));
    for _ in 0..25 {
        guest.counts("eeE");
        assert!(!guest.monitor("loadvm two").contains("Error"));
        guest.counts("ccC");
        assert!(!guest.monitor("loadvm four").contains("Error"));
    }
    guest.counts("eeE");
    assert!(!guest.monitor("savevm two").contains("Error"));
    let list = guest.monitor("info snapshots");
    assert!(list.contains("Snapshot devices: hda hdb\r\n") || list.contains("Snapshot devices: hda hdb\n"));
    assert!(list.contains("Snapshot list (from hda):") && !list.contains("partial"), "{list}");
    guest.type_("\x01x");
    assert!(guest.finish().0.success());
    passes_check(&paths);

    let mut again = counting(&paths, &["-loadvm", "two"]);
    again.counts("ffF");
    assert!(!again.monitor("loadvm four").contains("Error"));
    again.counts("eeE");
    assert!(!again.monitor("delvm two").contains("Error"));
    assert!(again.monitor("loadvm two").contains("Snapshot 'two' does not exist in one or more devices"));
    again.counts("ffF");
    again.type_("\x01x");
    assert!(again.finish().0.success());
    passes_check(&paths);
    // The disks' part is qemu-img's too.
    for arguments in ["snapshot -l", "snapshot -a four", "snapshot -d four"] {
        for path in &paths {
            let output = Command::new("qemu-img").args(arguments.split(' ')).arg(path).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(arguments != "snapshot -l" || String::from_utf8_lossy(&output.stdout).contains("four"));
        }
        passes_check(&paths);
    }
    let (status, _) = counting(&paths, &["-loadvm", "two"]).finish();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_writable_raw_disk_keeps_a_machine_from_vm_snapshots() {
    if !has_kvm() {
        return;
    }
    let (_folder, path) = disk(wait());
    let mut command = cowvm();
    let mut guest = Running::start(command.args(["-drive", &drive(&path)]).stdin(Stdio::piped()));
    guest.expect("!");
    let said = guest.monitor("savevm");
    assert!(said.contains("Error: Device 'virtio0' is writable but does not support snapshots"), "{said}");
}
