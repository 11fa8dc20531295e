//! The monitor on stdin: with the console, alone on a pipe, alone on a terminal.

use crate::machine::{Machine, PATIENCE, Place, cowvm, has_kvm};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::mpsc;

#[test]
fn the_escape_key_can_be_another_and_its_letters_work() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut machine = Machine::start(&place, &["-echr", "0x14", &place.raw("a.raw")]);
    machine.type_("\x14h");
    machine.expect("C-t s    save disk data back to file (if -snapshot)\n");
    machine.type_("\x14t");
    machine.key('a', "] .");
    machine.type_("\x14c");
    machine.expect("monitor - type 'help' for more information\n(qemu) ");
    machine.type_("info status\n");
    machine.expect("info status\nVM status: running\n(qemu) ");
    machine.type_("\x14cb");
    machine.expect(".");
    machine.type_("\x14x");
    assert!(machine.finish().0.success());
}

#[test]
fn a_script_on_a_pipe_drives_the_monitor_alone() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("a.raw");
    let mut child = cowvm(&place).args(["-monitor", "stdio", &image]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"info status\nstop\ninfo status\nquit\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, answers) = text.split_once("(qemu) ").unwrap();
    assert_eq!(answers, "VM status: running\n(qemu) (qemu) VM status: paused\n(qemu) (qemu) ");
    assert!(output.status.success());
}

#[test]
fn on_a_terminal_lines_are_edited_completed_and_remembered() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("a.raw");
    let (user, program) = pseudo_terminal();
    let ends = || Stdio::from(program.try_clone().unwrap());
    let mut command = cowvm(&place);
    command.env("TERM", "xterm").args(["-monitor", "stdio", &image]);
    let mut child = command.stdin(ends()).stdout(ends()).stderr(ends()).spawn().unwrap();
    let mut screen = Screen::of(user);
    screen.expect("(qemu) ");
    // Completed by Tab.
    screen.type_("info statu\t\r");
    screen.expect("VM status: running");
    screen.expect("(qemu) ");
    screen.type_("sxtop\x1b[D\x1b[D\x1b[D\x1b[D\x1b[3~\r");
    screen.expect("(qemu) ");
    // Two lines up.
    screen.type_("\x1b[A\x1b[A\r");
    screen.expect("VM status: ");
    screen.type_("quit\r");
    assert!(child.wait().unwrap().success());
}

/// A pseudo terminal: the user's end and the program's.
fn pseudo_terminal() -> (File, OwnedFd) {
    let (mut user, mut program) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: the two results are written; name, settings and size are left out.
    let result = unsafe { libc::openpty(&mut user, &mut program, null, null.cast(), null.cast()) };
    assert_eq!(result, 0);
    // SAFETY: both descriptors are new and nobody else's.
    unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(program)) }
}

/// What a user sees and types.
struct Screen {
    user: File,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Screen {
    fn of(user: File) -> Screen {
        let (sender, output) = mpsc::channel();
        let mut reader = user.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Screen { user, output, seen: String::new() }
    }

    fn type_(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).unwrap();
    }

    fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} ({error}) in {:?}", self.seen),
            }
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }
}
