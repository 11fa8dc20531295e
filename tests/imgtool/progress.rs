//! `--progress=json:FD`, the bar on a terminal, and SIGUSR1; what `-p` says without a terminal is compared with
//! qemu-img's in the tests of the commands.

use crate::harness::Lab;
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Runs ours by a shell, with `redirect` behind it.
fn shell(lab: &Lab, line: &str, redirect: &str) -> Output {
    let script = format!("exec {} {line} {redirect}", lab.tool().display());
    Command::new("bash").args(["-c", &script]).current_dir(lab.path("")).output().unwrap()
}

/// The lines that a command writes to descriptor 7.
fn lines(lab: &Lab, line: &str) -> (Output, Vec<Value>) {
    let output = shell(lab, line, "7>lines");
    let text = std::fs::read_to_string(lab.path("lines")).unwrap();
    (output, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A base with data, and an overlay with more.
fn images() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 base 8M").qemu_io("qcow2", "base", &["write -P 1 0 4M"]);
    lab.qemu_img("create -q -f qcow2 -b base -F qcow2 top").qemu_io("qcow2", "top", &["write -P 2 2M 4M"]);
    lab
}

#[test]
fn every_long_command_writes_lines_that_end_with_all() {
    let lab = images();
    for (line, total) in [
        ("amend --progress=json:7 -o refcount_bits=32 base", true),
        ("check --progress=json:7 base", true),
        ("checksum --progress=json:7 top", true),
        ("commit --progress=json:7 -d top", true),
        ("compare --progress=json:7 top top", true),
        ("convert --progress=json:7 -O qcow2 top out", true),
        ("dd --progress=json:7 if=top of=out", true),
        ("rebase --progress=json:7 -b '' top", true),
        ("resize --progress=json:7 --preallocation=full -f raw out 16M", true),
        ("snapshot --progress=json:7 -c one base", false),
    ] {
        let (output, told) = lines(&lab, line);
        assert!(output.status.success(), "{line}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("100%"), "{line}: {output:?}");
        assert!(told.len() >= 2, "{line}: {told:?}");
        let (last, before) = told.split_last().unwrap();
        assert!(before.iter().all(|told| told["done"] == false), "{line}: {told:?}");
        assert_eq!(last["done"], true, "{line}: {told:?}");
        assert_eq!(last["total"].is_u64(), total, "{line}: {told:?}");
        assert!(!total || last["bytes"] == last["total"], "{line}: {told:?}");
        for told in &told {
            assert!(told["bytes"].as_u64().unwrap() <= told["total"].as_u64().unwrap_or(0), "{line}: {told}");
            assert!(told["rate"].is_u64() || told["rate"].is_null(), "{line}: {told}");
            assert!(told["eta"].is_f64() || told["eta"].is_null(), "{line}: {told}");
        }
    }
}

#[test]
fn a_command_that_fails_is_not_done() {
    let (output, told) = lines(&images(), "convert --progress=json:7 nofile out");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(told.last().unwrap()["done"], false);
}

#[test]
fn lines_go_on_while_nothing_moves_on() {
    let lab = images();
    // Four MiB at two MiB a second take a second at least.
    let (output, told) = lines(&lab, "commit --progress=json:7 -r 2M top");
    assert!(output.status.success(), "{output:?}");
    assert!(told.len() >= 4, "{told:?}");
    assert!(told.iter().any(|told| told["eta"].is_f64()), "{told:?}");
}

#[test]
fn words_and_lines_go_together() {
    let lab = images();
    let (output, told) = lines(&lab, "compare -p --progress=json:7 top top");
    let real = lab.real("compare -p top top");
    assert_eq!(String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&real.stdout));
    assert_eq!(told.last().unwrap()["done"], true);
}

#[test]
fn descriptors_that_are_not_open_for_writing_are_refused() {
    let lab = images();
    for (redirect, descriptor) in [("", 7), ("7</dev/null", 7), ("", 1000), ("", 3)] {
        let output = shell(&lab, &format!("check --progress=json:{descriptor} base"), redirect);
        let expect = format!(
            "qemu-img: Cannot write progress to descriptor {descriptor}: it is not open for writing\n"
        );
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expect);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]));
    }
    let output = shell(&lab, "check --progress=7 base", "7>lines");
    let expect =
        "qemu-img: --progress expects 'json:FD' not '7'\nTry 'qemu-img check --help' for more info\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expect);
}

#[test]
fn nobody_needs_to_read_the_lines() {
    let lab = images();
    for redirect in ["7> >(exec 0<&-; sleep 0)", "7> >(sleep 1)"] {
        let output = shell(&lab, "checksum --progress=json:7 top", redirect);
        assert!(output.status.success(), "{redirect}: {output:?}");
    }
}

#[test]
fn a_terminal_shows_a_bar_and_a_file_the_words() {
    let lab = images();
    let on_terminal = |line: &str| {
        let line = format!("{} {line}", lab.tool().display());
        let output =
            Command::new("script").args(["-qec", &line, "/dev/null"]).current_dir(lab.path("")).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let shown = on_terminal("checksum -p top");
    assert!(shown.contains("MiB") && shown.contains("left"), "{shown:?}");
    assert!(!shown.contains("/100%)"), "{shown:?}");
    // Words go to a file, also of someone who looks at a terminal.
    on_terminal("compare -p top top > words");
    let words = std::fs::read_to_string(lab.path("words")).unwrap();
    assert_eq!(words, String::from_utf8(lab.real("compare -p top top").stdout).unwrap());
}

/// Waits until a process has blocked SIGUSR1, which a thread of it takes then.
fn wait_until_listening(pid: u32) {
    let mask = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap()
    };
    while mask() & 1 << (libc::SIGUSR1 - 1) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_is_answered_with_the_words_and_does_not_interrupt() {
    let lab = images();
    for (options, engine) in [("", ""), ("-p", ""), ("", "threads")] {
        lab.qemu_io("qcow2", "top", &["write -P 3 0 2M"]);
        let child = Command::new(lab.tool())
            .args(["commit", "-d", "-r", "2M", "top"])
            .args(options.split(' ').filter(|word| !word.is_empty()))
            .envs((!engine.is_empty()).then_some(("COWVM_AIO", engine)))
            .current_dir(lab.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until_listening(child.id());
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-USR1", &pid]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("    (") && said.ends_with("/100%)\n"), "{options}{engine}: {said:?}");
        assert_eq!(said.lines().count(), 1, "{said:?}");
    }
}
