//! A machine with a guest that writes what is typed: a letter fills sector 1 of a disk with itself.
//!
//! ```text
//!   '>'          the guest is there
//!   a … z        write to the first disk;  A … Z  to the second; answer '.', or '!' for an error
//!   0, 1         read the first, the second disk's sector; answer its first byte
//! ```

use crate::clients::{Hmp, Qmp};
use crate::running::Running;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use tempfile::TempDir;

/// Bytes of a disk.
pub(crate) const DISK: u64 = 1 << 20;

core::arch::global_asm!(
    ".section .rodata.monitor_guest, \"a\"",
    ".code16",
    ".global monitor_guest_start",
    "monitor_guest_start:",
    "xor ax, ax; mov ds, ax; mov es, ax; cld",
    "mov al, 0x3e; call 90f",
    "10: mov ah, 0; int 0x16",
    "mov dl, 0x80",
    "cmp al, 0x31; ja 20f",
    // Read: drive 80h or 81h.
    "sub al, 0x30; add dl, al",
    "mov ax, 0x0201; mov bx, 0x8000; mov cx, 2; mov dh, 0; int 0x13",
    "mov al, 0x21; jc 30f",
    "mov al, [0x8000]; jmp 30f",
    // Write: small letters to drive 80h, capital ones to 81h.
    "20: test al, 0x20; jnz 21f; inc dl",
    "21: mov di, 0x8000; mov cx, 512; rep stosb",
    "mov ax, 0x0301; mov bx, 0x8000; mov cx, 2; mov dh, 0; int 0x13",
    "mov al, 0x21; jc 30f",
    "mov al, 0x2e",
    "30: call 90f; jmp 10b",
    "90: mov ah, 0x0e; mov bh, 0; int 0x10; ret",
    ".global monitor_guest_end",
    "monitor_guest_end:",
    ".code64",
    ".text",
);

fn guest() -> &'static [u8] {
    unsafe extern "C" {
        static monitor_guest_start: u8;
        static monitor_guest_end: u8;
    }
    let (start, end) = (&raw const monitor_guest_start, &raw const monitor_guest_end);
    // SAFETY: both labels are in the block of constants above, in this order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// A folder for one test.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        let place = Place(TempDir::new().unwrap());
        fs::create_dir(place.path("tmp")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A raw disk with the guest on it.
    pub(crate) fn raw(&self, name: &str) -> String {
        self.boot_disk(name, guest())
    }

    /// A raw disk whose boot sector is `code`.
    pub(crate) fn boot_disk(&self, name: &str, code: &[u8]) -> String {
        let mut bytes = code.to_vec();
        bytes.resize(510, 0);
        bytes.extend([0x55, 0xaa]);
        bytes.resize(DISK as usize, 0);
        fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    /// The same as a qcow2 image.
    pub(crate) fn qcow2(&self, name: &str) -> String {
        let raw = self.raw(&format!("{name}.raw"));
        tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &self.text(name)]);
        self.text(name)
    }
}

/// Runs a tool that must succeed; its output.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The first byte of sector 1 of an image that nobody uses, and that all of the sector is like it.
pub(crate) fn sector_1(image: &str, format: &str) -> u8 {
    let raw = format!("{image}.look");
    tool("qemu-img", &["convert", "-f", format, "-O", "raw", image, &raw]);
    let bytes = fs::read(&raw).unwrap()[512..1024].to_vec();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

/// A running cowvm, killed when the test forgets it.
pub(crate) struct Machine {
    running: Running,
    hmp: PathBuf,
    qmp: PathBuf,
}

impl Machine {
    /// Starts with a monitor and QMP on sockets, and waits for the guest.
    pub(crate) fn start(place: &Place, arguments: &[&str]) -> Machine {
        let mut machine = Machine::spawn(place, "", arguments);
        machine.expect(">");
        machine
    }

    /// The same under a name of its own.
    pub(crate) fn start_named(place: &Place, name: &str, arguments: &[&str]) -> Machine {
        let mut machine = Machine::spawn(place, name, arguments);
        machine.expect(">");
        machine
    }

    fn spawn(place: &Place, name: &str, arguments: &[&str]) -> Machine {
        let (hmp, qmp) = (place.path(&format!("hmp{name}")), place.path(&format!("qmp{name}")));
        let mut command = cowvm(place);
        command.args(["-monitor", &format!("unix:{},server,nowait", hmp.display())]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())]);
        Machine { running: Running::start(command.args(arguments)), hmp, qmp }
    }

    pub(crate) fn hmp(&self) -> Hmp {
        Hmp::connect(&self.hmp)
    }

    pub(crate) fn hmp_path(&self) -> &Path {
        &self.hmp
    }

    pub(crate) fn qmp_path(&self) -> &Path {
        &self.qmp
    }

    pub(crate) fn qmp(&self) -> Qmp {
        Qmp::connect(&self.qmp)
    }

    pub(crate) fn id(&self) -> u32 {
        self.running.child.id()
    }

    pub(crate) fn type_(&mut self, text: &str) {
        self.running.type_(text);
    }

    /// Waits until `text` has been printed, and forgets all up to there; returns it.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        self.running.expect(text)
    }

    /// Types a key and waits for the guest's answer.
    pub(crate) fn key(&mut self, key: char, answer: &str) {
        self.type_(&key.to_string());
        self.expect(answer);
    }

    /// Waits for the end; what it says of errors.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        drop(self.running.child.stdin.take());
        let mut stderr = self.running.child.stderr.take().unwrap();
        let (status, _) = self.running.finish();
        let mut errors = String::new();
        stderr.read_to_string(&mut errors).unwrap();
        (status, errors)
    }

    /// Ends it by Ctrl-A X.
    pub(crate) fn quit(mut self) -> String {
        self.type_("\x01x");
        let (status, errors) = self.finish();
        assert!(status.success(), "{errors}");
        errors
    }
}

pub(crate) fn cowvm(place: &Place) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowvm"));
    command.args(["run", "-m", "4"]).env("TMPDIR", place.path("tmp"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
