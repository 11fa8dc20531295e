//! A real qemu-io that has an image open and locked.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// It ends with the value.
pub(crate) struct Holder(Child);

impl Holder {
    /// Waits until qemu-io answers, which it does when it has the image open. Nobody tries the image meanwhile: whoever
    /// did could be the one that has it when qemu-io opens it.
    pub(crate) fn new(options: &[&str], image: &Path) -> Holder {
        let mut child = Command::new("qemu-io")
            .args(options)
            .arg(image)
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
