//! Names that are no text, or no harmless one: bytes that are not UTF-8, control characters.

use crate::harness::Lab;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output};

/// Names of files, and as what they are shown to people.
const NAMES: &[(&[u8], &[u8])] = &[
    (b"\xff\xfe.raw", b"\xff\xfe.raw"),
    (b"caf\xc3\xa9 \xc3", b"caf\xc3\xa9 \xc3"),
    (b"n\nl\x1b[1m\x7f", b"n\\nl\\x1b[1m\\x7f"),
    (b"c1\xc2\x9b", b"c1\\x9b"),
];

/// Runs a program in a folder; `@` stands for the name.
fn run(program: &Path, folder: &Path, line: &str, name: &[u8]) -> Output {
    let words =
        line.split(' ').map(|word| if word == "@" { OsStr::from_bytes(name) } else { OsStr::new(word) });
    Command::new(program).args(words).current_dir(folder).env("LC_ALL", "C").output().unwrap()
}

#[test]
fn names_of_any_bytes_work_as_with_qemu_img() {
    for (name, _) in NAMES {
        let lab = Lab::new();
        std::fs::create_dir(lab.twin("")).unwrap();
        for line in [
            "create -q -f raw @ 1M",
            "info --output=json @",
            "create -q -f qcow2 -F raw over -b @",
            "info --output=json over",
            "map --output=json over",
            "convert over @",
            "convert -O qcow2 -F raw over flat -B @",
            "bitmap --add flat @",
            "info --output=json flat",
        ] {
            let ours = run(&lab.tool(), &lab.path(""), line, name);
            let real = run(Path::new("qemu-img"), &lab.twin(""), line, name);
            assert_eq!(ours.status, real.status, "{line} {name:?}: {ours:?}");
            assert_eq!(without_sizes(&ours.stdout), without_sizes(&real.stdout), "{line} {name:?}");
        }
        for file in [OsStr::from_bytes(name), OsStr::new("over"), OsStr::new("flat")] {
            assert!(lab.path("").join(file).exists(), "{file:?}");
        }
    }
}

/// Without what depends on how the file came to be.
fn without_sizes(output: &[u8]) -> Vec<String> {
    let varies = |line: &&str| !line.contains("actual-size") && !line.contains("virtual-size");
    String::from_utf8_lossy(output).lines().filter(varies).map(str::to_owned).collect()
}

#[test]
fn control_characters_in_names_never_reach_the_terminal() {
    let lab = Lab::new();
    for (name, shown) in NAMES {
        for line in ["create -f raw @ 1M", "info @", "map @", "create -f qcow2 over -F raw -b @", "info over"]
        {
            let said = run(&lab.tool(), &lab.path(""), line, name);
            assert!(said.status.success(), "{line}: {said:?}");
            check_shown(line, &said.stdout, shown);
        }
        let missing = [*name, b".gone"].concat();
        for line in ["info @", "map @", "check -f qcow2 @", "convert @ out"] {
            let said = run(&lab.tool(), &lab.path(""), line, &missing);
            assert!(!said.status.success(), "{line}");
            check_shown(line, &said.stderr, shown);
        }
    }
}

fn check_shown(line: &str, said: &[u8], shown: &[u8]) {
    assert!(said.windows(shown.len()).any(|part| part == shown), "{line}: {}", String::from_utf8_lossy(said));
    let text = String::from_utf8_lossy(said);
    assert!(text.chars().all(|char| char == '\n' || !char.is_control()), "{line}: {text:?}");
}
