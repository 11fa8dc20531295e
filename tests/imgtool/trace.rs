//! `-T`: what happens inside, on standard error or in a file.

use crate::harness::Lab;

fn said(lab: &Lab, line: &str) -> String {
    String::from_utf8(lab.ours(line).stderr).unwrap()
}

#[test]
fn chosen_events_are_told_and_no_others() {
    let lab = Lab::new();
    lab.qemu_img("create -q small 1M").qemu_io("raw", "small", &["write 0 64k"]);
    let told = said(&lab, "-T image_* convert -f raw -O qcow2 small out");
    assert!(told.contains("image_open file=\"small\" format=\"raw\" read_only=true\n"), "{told}");
    assert!(told.contains("image_create file=\"out\" format=\"qcow2\"\n"), "{told}");
    // It has its name when it is complete.
    assert!(told.contains("/.out.") && told.contains(".part\" format=\"qcow2\" read_only=false"), "{told}");
    assert!(told.lines().all(|line| line.starts_with("image_")), "{told}");
    assert_eq!(said(&lab, "-T bogus info small"), "qemu-img: warning: trace event 'bogus' does not exist\n");
    assert_eq!(said(&lab, "info small"), "");
}

#[test]
fn patterns_come_from_a_file_and_events_go_to_one() {
    let lab = Lab::new();
    lab.qemu_img("create -q small 1M");
    lab.write("events", b"# all but reads\nblock_*\n\n-block_read\nimage_close\n");
    assert_eq!(said(&lab, "-T events=events,file=log convert -f raw -O qcow2 small out"), "");
    let log = std::fs::read_to_string(lab.path("log")).unwrap();
    for name in ["block_write", "image_close"] {
        assert!(log.lines().any(|line| line.starts_with(name)), "{log}");
    }
    assert!(!log.contains("block_read"), "{log}");
}

#[test]
fn every_event_is_in_the_list() {
    let lab = Lab::new();
    lab.qemu_img("create -q small 1M").qemu_io("raw", "small", &["write 0 64k"]);
    let list = String::from_utf8(lab.ours("-T help").stdout).unwrap();
    let listed: Vec<&str> = list.lines().filter_map(|line| line.split(' ').next()).collect();
    for line in
        ["-T * convert -c -f raw -O qcow2 small out", "-T * bitmap --add out x", "-T * check -r all out"]
    {
        for told in said(&lab, line).lines() {
            let name = told.split(' ').next().unwrap();
            assert!(listed.contains(&name), "{told}");
        }
    }
}
