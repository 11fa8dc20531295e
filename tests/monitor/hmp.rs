//! The human monitor over a socket, as scripts for QEMU's use it.

use crate::clients::connect;
use crate::machine::{Machine, Place, sector_1, tool};
use crate::running::has_kvm;
use std::io::{Read, Write};
use std::net::Shutdown;

#[test]
fn greeting_prompt_echo_and_line_ends_are_qemus() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let machine = Machine::start(&place, &[&place.raw("a.raw")]);
    let mut hmp = machine.hmp();
    assert!(hmp.greeting.ends_with(" monitor - type 'help' for more information\r\n(qemu) "));
    hmp.stream.write_all(b"info statuz\x7fs\r\n").unwrap();
    let expected = b"info statuz\x08 \x08s\r\nVM status: running\r\n(qemu) ";
    let mut bytes = vec![0; expected.len()];
    hmp.stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
    // A script that sends all it has and closes its side still gets its answers.
    let mut script = connect(machine.hmp_path());
    script.write_all(b"info version\ninfo kvm\n").unwrap();
    script.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    script.read_to_string(&mut all).unwrap();
    assert!(all.ends_with("kvm support: enabled\r\n(qemu) "), "{all}");
    machine.quit();
    assert!(!place.path("hmp").exists() && !place.path("qmp").exists());
}

#[test]
fn commands_do_what_they_say_and_mistakes_are_named_in_qemus_words() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("a.qcow2");
    let machine = Machine::start(&place, &["-smp", "2", "-hda", &image]);
    let mut hmp = machine.hmp();
    for (line, answer) in [
        ("info status", "VM status: running\n"),
        ("stop", ""),
        ("info status", "VM status: paused\n"),
        ("c", ""),
        ("  info   status ", "VM status: running\n"),
        ("", ""),
        ("foo", "unknown command: 'foo'\n"),
        ("info foo", "unknown command: 'info foo'\n"),
        (
            "stop x",
            "stop|s: extraneous characters at the end of line\nTry \"help stop\" for more information\n",
        ),
        ("block_resize foo 10M", "Error: Cannot find device='foo' nor node-name=''\n"),
        ("block_resize hda zz", "invalid size\n"),
        ("block_resize hda 2", ""),
        ("eject hda", "Error: Device 'hda' is not removable\n"),
        ("change hda x", "Error: Device 'hda' is not removable\n"),
        ("commit hda", "'commit' error for 'hda': Operation not supported\n"),
        ("commit all", ""),
        ("help stop", "stop|s  -- stop the guest\n"),
        ("system_powerdown", ""),
    ] {
        assert_eq!(hmp.ask(line), answer, "{line}");
    }
    let shows = [
        ("info block", format!("hda (#hda): {image} (qcow2)\n    Cache mode:       writeback\n")),
        ("info block -v", "virtual size: 2 MiB (2097152 bytes)".to_owned()),
        ("info blockstats", "hda: rd_bytes=512 wr_bytes=0 rd_operations=1 wr_operations=0".to_owned()),
        ("info pci", "SCSI controller: PCI device 1af4:1042".to_owned()),
        ("info mtree", "(prio 0, ram): ram\n".to_owned()),
        ("info registers", "\nCPU#1\n".to_owned()),
        ("help", "info block [-v] [device] -- ".to_owned()),
        ("info", "info version  -- ".to_owned()),
    ];
    for (line, part) in shows {
        let shown = hmp.ask(line);
        assert!(shown.contains(&part), "{line}: {shown}");
    }
    hmp.stream.write_all(b"quit\n").unwrap();
    assert!(machine.finish().0.success());
    assert!(tool("qemu-img", &["info", &image]).contains("2097152"));
}

#[test]
fn a_disk_in_use_goes_on_in_a_new_overlay() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("a.qcow2");
    let (over, nowhere) = (place.text("over.qcow2"), place.text("nowhere/o.qcow2"));
    let mut machine = Machine::start(&place, &["-hda", &image]);
    machine.key('a', ".");
    let mut hmp = machine.hmp();
    assert!(hmp.ask(&format!("snapshot_blkdev hda {nowhere}")).contains("No such file"));
    assert!(hmp.ask(&format!("snapshot_blkdev hda {image}")).contains("already"));
    assert!(hmp.ask("snapshot_blkdev hda x raw").contains("Invalid snapshot format 'raw'"));
    machine.key('b', ".");
    assert_eq!(hmp.ask(&format!("snapshot_blkdev hda {over}")), "");
    machine.key('0', "b");
    machine.key('c', ".");
    machine.key('0', "c");
    // Nobody writes the base any more, so others may read it.
    assert_eq!(sector_1(&image, "qcow2"), b'b');
    let shown = hmp.ask("info block");
    assert!(shown.contains(&format!("{over} (qcow2)")) && shown.contains("chain depth: 1"), "{shown}");
    assert_eq!(hmp.ask("commit hda"), "");
    machine.key('0', "c");
    machine.key('d', ".");
    machine.quit();
    assert_eq!((sector_1(&image, "qcow2"), sector_1(&over, "qcow2")), (b'c', b'd'));
    let info = tool("qemu-img", &["info", &over]);
    assert!(info.contains("backing file: a.qcow2 ") && info.contains("backing file format: qcow2"), "{info}");
    tool("qemu-img", &["check", &image]);
    tool("qemu-img", &["check", &over]);
}

#[test]
fn a_second_overlay_stands_upon_the_first_as_what_it_is() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("a.raw");
    let (one, two) = (place.text("one.qcow2"), place.text("two.qcow2"));
    let mut machine = Machine::start(&place, &["-drive", &format!("file={image},format=raw,id=hda")]);
    let mut hmp = machine.hmp();
    for (key, over) in [('a', &one), ('b', &two)] {
        machine.key(key, ".");
        assert_eq!(hmp.ask(&format!("snapshot_blkdev hda {over}")), "");
        machine.key('0', &key.to_string());
    }
    machine.key('c', ".");
    assert_eq!(hmp.ask("commit hda"), "");
    machine.key('0', "c");
    machine.key('d', ".");
    machine.quit();
    let sectors =
        [(&image, "raw"), (&one, "qcow2"), (&two, "qcow2")].map(|(name, format)| sector_1(name, format));
    assert_eq!(sectors, [b'a', b'c', b'd']);
    tool("qemu-img", &["check", &one]);
}

#[test]
fn no_overlay_is_put_upon_a_directory() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (image, over) = (place.raw("a.raw"), place.text("over.qcow2"));
    std::fs::create_dir(place.path("shared")).unwrap();
    let fat = format!("fat:rw:{}", place.text("shared"));
    let machine = Machine::start(&place, &["-hda", &image, "-hdb", &fat]);
    let refused = machine.hmp().ask(&format!("snapshot_blkdev hdb {over}"));
    assert!(refused.contains("an image can only stand upon files"), "{refused}");
    assert!(!place.path("over.qcow2").exists());
    machine.quit();
}

#[test]
fn a_client_that_never_reads_stops_nobody() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut machine = Machine::start(&place, &[&place.raw("a.raw")]);
    let mut good = machine.hmp();
    let mut dead = connect(machine.hmp_path());
    dead.set_nonblocking(true).unwrap();
    // As much as the kernel takes, many times the answers of which it could hold.
    let flood = "help\n".repeat(20_000);
    let mut sent = 0;
    while let Ok(count) = dead.write(&flood.as_bytes()[sent..]) {
        sent += count;
        if sent == flood.len() {
            break;
        }
    }
    for _ in 0..50 {
        assert_eq!(good.ask("info status"), "VM status: running\n");
    }
    machine.key('a', ".");
    machine.key('0', "a");
    // More clients than there is room for are turned away; those that go make room.
    let crowd: Vec<_> = (0..40).map(|_| connect(machine.hmp_path())).collect();
    assert_eq!(good.ask("info status"), "VM status: running\n");
    drop((crowd, dead));
    assert_eq!(machine.hmp().ask("info status"), "VM status: running\n");
    machine.quit();
}

#[test]
fn a_browser_is_cut_off_and_its_page_does_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let machine = Machine::start(&place, &[&place.raw("a.raw")]);
    let quits = ["quit\n", "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}"];
    for (path, quit) in [machine.hmp_path(), machine.qmp_path()].into_iter().zip(quits) {
        let mut stream = connect(path);
        stream.write_all(format!("POST / HTTP/1.1\r\nHost: x\r\n\r\n{quit}").as_bytes()).unwrap();
        // Whether it ends in an error depends on what was left to be read.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(machine.hmp().ask("info status"), "VM status: running\n");
    machine.quit();
}
