//! `cowvm run` as a process, with guests of a few bytes that every /dev/kvm can run: resets, power-off, serial
//! port, monitor, signals, terminal; and what it says when it cannot run.
//!
//! Where /dev/kvm cannot be opened, the tests that need it say so and pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// How long anything may take; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

// The boot sectors. Each starts at 0:7c00 with DL the drive.
core::arch::global_asm!(
    ".section .rodata.vm_run, \"a\"",
    ".code16",
    // Counts its boots in the clock's memory, prints the count as a letter, and resets the machine in another
    // way each time; the third boot switches it off by ACPI.
    ".global vm_run_resets",
    "vm_run_resets:",
    "xor ax, ax; mov ds, ax",
    "mov al, 0x40; out 0x70, al; in al, 0x71; inc al; mov bl, al",
    "out 0x71, al",
    "mov ah, 0x0e; add al, 0x40; mov bh, 0; int 0x10",
    "mov al, 0x40; out 0x70, al; in al, 0x71",
    "cmp al, 1; je 11f",
    "cmp al, 2; je 12f",
    "mov dx, 0x604; mov ax, 0x3400; out dx, ax",
    "10: hlt; jmp 10b",
    "11: mov al, 0xfe; out 0x64, al; jmp 10b",
    "12: mov dx, 0x60c; mov al, 1; out dx, al; jmp 10b",
    // Echoes what COM1 receives, plus one, by polling.
    ".global vm_run_echo",
    "vm_run_echo:",
    "20: mov dx, 0x3fd; in al, dx; test al, 1; jz 20b",
    "mov dx, 0x3f8; in al, dx; inc al; out dx, al; jmp 20b",
    // Says that it runs and waits.
    ".global vm_run_wait",
    "vm_run_wait:",
    "mov ax, 0x0e21; mov bh, 0; int 0x10",
    "30: sti; hlt; jmp 30b",
    // Counts keys in memory and in a sector of each of two disks, and prints all three as letters.
    ".global vm_run_count",
    "vm_run_count:",
    "xor ax, ax; mov ds, ax; mov es, ax; mov byte ptr [0x600], al",
    "40: mov ah, 0; int 0x16; inc byte ptr [0x600]; mov dl, 0x80",
    "41: mov ax, 0x0201; mov cx, 2; mov dh, 0; mov bx, 0x8000; push dx; int 0x13; pop dx",
    "inc byte ptr [0x8000]",
    "mov ax, 0x0301; mov cx, 2; mov dh, 0; mov bx, 0x8000; push dx; int 0x13; pop dx",
    "mov al, [0x8000]; add al, 0x60; mov ah, 0x0e; mov bh, 0; push dx; int 0x10; pop dx",
    "inc dl; cmp dl, 0x82; jne 41b",
    "mov al, [0x600]; add al, 0x40; mov ah, 0x0e; mov bh, 0; int 0x10; jmp 40b",
    ".global vm_run_end",
    "vm_run_end:",
    ".code64",
    ".text",
);

unsafe extern "C" {
    static vm_run_resets: u8;
    static vm_run_echo: u8;
    static vm_run_wait: u8;
    static vm_run_count: u8;
    static vm_run_end: u8;
}

/// The bytes from one label to another.
fn code(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both labels are in the block of constants above, in this order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

fn resets() -> &'static [u8] {
    code(&raw const vm_run_resets, &raw const vm_run_echo)
}

fn echo() -> &'static [u8] {
    code(&raw const vm_run_echo, &raw const vm_run_wait)
}

fn wait() -> &'static [u8] {
    code(&raw const vm_run_wait, &raw const vm_run_count)
}

fn count() -> &'static [u8] {
    code(&raw const vm_run_count, &raw const vm_run_end)
}

/// A folder with a raw disk that boots `code`.
fn disk(code: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let mut bytes = code.to_vec();
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xaa]);
    bytes.resize(64 << 10, 0);
    let path = folder.path().join("disk.raw");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn drive(path: &Path) -> String {
    format!("file={},format=raw", path.display())
}

fn cowvm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowvm"));
    command.arg("run").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn has_kvm() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        eprintln!("skipped: /dev/kvm cannot be opened");
    }
    usable
}

/// A process that is killed when the test forgets it, and what it has printed.
struct Running {
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.spawn().unwrap();
        let output = forward(child.stdout.take().unwrap());
        Running { child, output, seen: String::new() }
    }

    /// Waits until `text` has been printed.
    fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} ({error}) in {:?}", self.seen),
            }
        }
    }

    fn type_(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a plain system call on a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits for the end. The output ends when the process does.
    fn finish(mut self) -> (ExitStatus, String) {
        loop {
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("it does not end ({error}): {:?}", self.seen),
            }
        }
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(mut output: ChildStdout) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

#[test]
fn keyboard_controller_and_acpi_reset_and_acpi_switches_off() {
    if !has_kvm() {
        return;
    }
    let (_folder, path) = disk(resets());
    let (status, output) = Running::start(cowvm().args(["-m", "4", "-drive", &drive(&path)])).finish();
    assert!(status.success());
    assert_eq!(output.replace(['\r', '\n'], ""), "ABC");
}

#[test]
fn no_reboot_ends_at_the_first_reset() {
    if !has_kvm() {
        return;
    }
    let (_folder, path) = disk(resets());
    let mut command = cowvm();
    let (status, output) = Running::start(command.args(["-no-reboot", "-drive", &drive(&path)])).finish();
    assert!(status.success());
    assert_eq!(output.trim(), "A");
}

/// More than all buffers between hold.
#[test]
fn a_long_script_reaches_the_serial_port_complete() {
    if !has_kvm() {
        return;
    }
    let (folder, path) = disk(echo());
    let script: Vec<u8> = (0..20_000u32).map(|index| b'a' + (index % 25) as u8).collect();
    let expected: String = script.iter().map(|byte| char::from(byte + 1)).collect();
    let file = folder.path().join("script");
    fs::write(&file, &script).unwrap();
    let from_file = Stdio::from(File::open(&file).unwrap());
    let (read, write) = std::io::pipe().unwrap();
    let writer = std::thread::spawn(move || (&write).write_all(&script).map(|()| write));
    for stdin in [from_file, Stdio::from(read)] {
        let mut running = Running::start(cowvm().args(["-drive", &drive(&path)]).stdin(stdin));
        running.expect(&expected);
        running.signal(libc::SIGTERM);
        assert!(running.finish().0.success());
    }
    writer.join().unwrap().unwrap();
}

#[test]
fn the_monitor_stops_continues_resets_and_quits() {
    if !has_kvm() {
        return;
    }
    let (_folder, path) = disk(wait());
    let drive = format!("{},id=system,readonly=on,cache=none", drive(&path));
    let mut running = Running::start(cowvm().args(["-smp", "2", "-drive", &drive]).stdin(Stdio::piped()));
    running.expect("!");
    running.type_("\x01c");
    for (command, answer) in [
        ("info status", "VM status: running\n"),
        ("stop", ""),
        ("info status", "VM status: paused\n"),
        ("system_reset", ""),
        ("info status", "VM status: paused\n"),
        ("cont", "!"),
        ("info status", "VM status: running\n"),
        ("frobnicate", "unknown command: 'frobnicate'"),
        (
            "info block",
            &format!(
                "system (#system): {} (raw, read-only)\n    Cache mode:       writeback, direct\n",
                path.display()
            ),
        ),
    ] {
        running.seen.clear();
        running.type_(&format!("{command}\n"));
        // What the guest prints may come between a line and its end.
        running.expect(command);
        running.expect(answer);
    }
    running.type_("quit\n");
    assert!(running.finish().0.success());
}

#[test]
fn the_escape_key_helps_and_leaves() {
    if !has_kvm() {
        return;
    }
    let (_folder, path) = disk(wait());
    let mut running = Running::start(cowvm().args(["-drive", &drive(&path)]).stdin(Stdio::piped()));
    running.type_("\x01h");
    running.expect("C-a x");
    running.type_("\x01x");
    assert!(running.finish().0.success());
}

#[test]
fn signals_end_it_in_order() {
    if !has_kvm() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let (_folder, path) = disk(wait());
        let mut running = Running::start(cowvm().args(["-drive", &drive(&path)]));
        running.expect("!");
        running.signal(signal);
        assert!(running.finish().0.success());
    }
}

#[test]
fn the_terminal_is_raw_while_it_runs_and_restored_after() {
    if !has_kvm() {
        return;
    }
    let (_folder, path) = disk(wait());
    let (mut user, guest) = terminal();
    let before = local_modes(&guest);
    assert_ne!(before & libc::ICANON, 0);
    let stdin = Stdio::from(guest.try_clone().unwrap());
    let mut running = Running::start(cowvm().args(["-drive", &drive(&path)]).stdin(stdin));
    running.expect("!");
    assert_eq!(local_modes(&guest) & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
    user.write_all(b"\x01x").unwrap();
    assert!(running.finish().0.success());
    assert_eq!(local_modes(&guest), before);
}

/// A pseudo terminal: the user's end and the program's.
fn terminal() -> (File, OwnedFd) {
    let (mut user, mut program) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: the two results are written; name, settings and size are left out.
    let result = unsafe { libc::openpty(&mut user, &mut program, null, null.cast(), null.cast()) };
    assert_eq!(result, 0);
    // SAFETY: both descriptors are new and nobody else's.
    unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(program)) }
}

fn local_modes(terminal: &OwnedFd) -> libc::tcflag_t {
    // SAFETY: all zeros is a valid value, and the call fills it.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &mut settings), 0);
        settings.c_lflag
    }
}

#[test]
fn a_disk_in_use_is_refused_and_may_be_shared_for_reading() {
    if !has_kvm() {
        return;
    }
    let (_folder, path) = disk(wait());
    let before = fs::read(&path).unwrap();
    let mut first = Running::start(cowvm().args(["-drive", &drive(&path)]));
    first.expect("!");
    let refused = cowvm().args(["-drive", &drive(&path)]).output().unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(message.contains("disk.raw is in use by another program; "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    let mut reader = Running::start(cowvm().args(["-U", "-drive", &drive(&path)]).stdin(Stdio::piped()));
    reader.expect("!");
    reader.type_("\x01x");
    assert!(reader.finish().0.success());
    first.signal(libc::SIGTERM);
    assert!(first.finish().0.success());
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn what_cannot_be_run_is_refused_in_one_sentence() {
    if !has_kvm() {
        return;
    }
    let (folder, path) = disk(wait());
    let image = path.to_str().unwrap();
    let elf = folder.path().join("elf");
    fs::write(&elf, b"\x7fELF\x01\x01\x01").unwrap();
    let missing = folder.path().join("missing").display().to_string();
    for (arguments, words) in [
        (vec![missing.as_str()], [missing.as_str(), "No such file"]),
        (vec!["-kernel", &missing], [&missing, "No such file"]),
        (vec!["-kernel", image], [image, "not a kernel"]),
        (vec!["-kernel", elf.to_str().unwrap()], ["not for x86-64", "vmlinuz"]),
        (vec!["-smp", "0"], ["vCPUs", "not 0"]),
        (vec!["-m", "1", image], ["2 MiB", "-m"]),
        (vec!["-m", "16000000G", image], ["address bits", "-m"]),
        (vec!["-drive", &format!("file={image},format=qcow2")], [image, "qcow2"]),
        (vec!["-drive", "format=raw"], ["format=raw", "file="]),
    ] {
        let output = cowvm().args(&arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.starts_with("cowvm: ") && message.lines().count() == 1, "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{arguments:?}: {message}");
    }
}

#[test]
fn a_wrong_option_is_named_as_it_was_written() {
    let output = cowvm().arg("-frobnicate").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--frobnicate"));
}

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
        self.seen.clear();
        self.type_(&format!("\x01c{command}\ninfo status\n"));
        self.expect("VM status: running");
        self.type_("\x01c");
        std::mem::take(&mut self.seen)
    }

    /// Types a key, which the guest counts: on the first disk, on the second, in memory.
    fn counts(&mut self, counted: &str) {
        self.seen.clear();
        self.type_("x");
        self.expect(counted);
        assert!(self.seen.trim_start().ends_with(counted), "{:?}", self.seen);
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
