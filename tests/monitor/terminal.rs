//! The monitor on stdin: with the console, alone on a pipe, alone on a terminal.

use crate::machine::{Machine, Place, cowvm};
use crate::running::{Output, has_kvm, terminal};
use std::fs::File;
use std::io::Write;
use std::process::Stdio;

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
    let (user, program) = terminal();
    let ends = || Stdio::from(program.try_clone().unwrap());
    let mut command = cowvm(&place);
    command.env("TERM", "xterm").args(["-monitor", "stdio", &image]);
    let mut child = command.stdin(ends()).stdout(ends()).stderr(ends()).spawn().unwrap();
    let mut screen = Screen { output: Output::of(user.try_clone().unwrap()), user };
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

/// What a user sees and types.
struct Screen {
    user: File,
    output: Output,
}

impl Screen {
    fn type_(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).unwrap();
    }

    fn expect(&mut self, text: &str) {
        self.output.expect(text);
    }
}
