//! The first thing that a newcomer sees, as the newcomer sees it: the binary, its words, its disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Only against hangs: a run takes about a second.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs cowvm with `arguments`, types `input`, and waits for its end.
fn cowvm(arguments: &[&str], temporary: &Path, input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cowvm"))
        .args(arguments)
        .env("TMPDIR", temporary)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    wait(&mut child);
    child.wait_with_output().unwrap()
}

/// What the guest shows here fits into a pipe, so nobody need read meanwhile.
fn wait(child: &mut Child) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("cowvm does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The lines of the guest that count its boots.
fn boots(output: &Output) -> Vec<String> {
    let shown = String::from_utf8(output.stdout.clone()).unwrap();
    shown.lines().filter(|line| line.starts_with("This is boot ")).map(str::to_owned).collect()
}

#[test]
fn run_without_an_image_boots_the_demo_from_a_qcow2_disk_that_counts_on_in_later_runs() {
    let temporary = tempfile::tempdir().unwrap();
    let first = cowvm(&["run"], temporary.path(), "poweroff\n");
    let said = String::from_utf8(first.stderr.clone()).unwrap();
    assert!(first.status.success(), "{said}");
    assert_eq!(boots(&first), ["This is boot 1 of this disk."]);

    let disk = said.split_once("cowvm run ").unwrap().1.lines().next().unwrap();
    assert!(Path::new(disk).starts_with(temporary.path()), "{said}");
    let again = cowvm(&["run", disk], temporary.path(), "write 20 kept\nreboot\npoweroff\n");
    assert!(again.status.success());
    assert_eq!(boots(&again), ["This is boot 2 of this disk.", "This is boot 3 of this disk."]);

    let third = cowvm(&["run", disk], temporary.path(), "read 20\npoweroff\n");
    assert!(String::from_utf8_lossy(&third.stdout).contains("0000 6b 65 70 74 00"), "{third:?}");
    let check = Command::new("qemu-img").args(["check", "-f", "qcow2", disk]).output().unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn the_demo_is_left_by_ctrl_a_x() {
    let temporary = tempfile::tempdir().unwrap();
    let output = cowvm(&["run"], temporary.path(), "\x01x");
    assert!(output.status.success(), "{output:?}");
}
