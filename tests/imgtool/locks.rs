//! Images that another process has open: refused in the same words, and read when forced.

use crate::harness::Lab;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// A process that holds an image; it ends with the value.
struct Holder(Child);

impl Holder {
    /// Waits until qemu-io answers, which it does when it has the image open. Nobody tries the image meanwhile: whoever
    /// did could be the one that has it when qemu-io opens it.
    fn new(lab: &Lab, format: &str, name: &str) -> Holder {
        let mut child = Command::new("qemu-io")
            .args(["-f", format, name])
            .current_dir(lab.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        assert!(answer.contains("MiB"), "{answer}");
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn images_in_use_are_refused_in_the_same_words_and_read_when_forced() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 held 1M").qemu_img("create -q -f qcow2 -b held -F qcow2 over");
    lab.write("free", &[1; 4096]);
    let _holder = Holder::new(&lab, "qcow2", "held");
    lab.same(&[
        "info held",
        "info -U held",
        "info over",
        "info --backing-chain over",
        "info --backing-chain -U over",
        "check held",
        "check -U held",
        "check over",
        "map held",
        "map over",
        "map -U --output=json over",
        "convert held out",
        "convert over out",
        "convert -n -O qcow2 -f raw free held",
        "convert -f raw -O qcow2 free held",
        "convert -f raw free held",
        "create -f qcow2 held 1M",
        "create held 1M",
    ]);
    lab.same(&["create -f qcow2 -b held -F qcow2 new", "info new", "convert -U over out"]);
}
