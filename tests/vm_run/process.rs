//! Resets, power-off, serial port, monitor, signals, terminal; and what is said when nothing can run.

use crate::guest::{cowvm, disk, drive, echo, resets, wait};
use crate::running::{Running, has_kvm, terminal};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;

impl Running {
    fn signal(&self, signal: i32) {
        // SAFETY: a plain system call on a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
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
        running.output.seen.clear();
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
