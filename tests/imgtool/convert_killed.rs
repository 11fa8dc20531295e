//! What is under the output's name of `convert` and `dd` is whole at every instant, old or new, and nothing else is left
//! by those that fail or are told to stop.

use crate::harness::Lab;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

/// A source that takes longer than any test at a low rate.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 64M").qemu_io("raw", "raw", &["write -P 5 0 64M"]);
    lab.write("old", &[7; 8192]);
    lab
}

/// Files that the folder has beyond those of [`lab`].
fn others(lab: &Lab) -> Vec<String> {
    let names = std::fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| !["raw", "old"].contains(&name.as_str())).collect()
}

/// Starts ours, and waits until it says that some of the data is copied.
fn start(lab: &Lab, line: &str) -> Child {
    let mut command = Command::new(lab.tool());
    command.args(line.split(' ')).current_dir(lab.path("")).stdout(Stdio::piped());
    // Whoever runs the tests in the background may have them ignore some, and ours would go on doing so.
    // SAFETY: plain system calls, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        })
    };
    let mut child = command.spawn().unwrap();
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&said).contains("(6.25/100%)") {
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    child
}

const SLOW: [&str; 3] = [
    "convert -p -r 1M -f raw raw NAME",
    "convert -p -r 1M -f raw -O qcow2 raw NAME",
    "convert -p -r 4M -c -f raw -O qcow2 raw NAME",
];

#[test]
fn a_killed_conversion_leaves_the_old_file_or_none() {
    for line in SLOW {
        for name in ["old", "new"] {
            let lab = lab();
            let mut child = start(&lab, &line.replace("NAME", name));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(std::fs::read(lab.path("old")).unwrap(), [7; 8192], "{line}");
            let left = others(&lab);
            assert_eq!(left.len(), 1, "{left:?}");
            assert!(left[0].starts_with(&format!(".{name}.")) && left[0].ends_with(".part"), "{left:?}");
        }
    }
}

#[test]
fn a_conversion_that_is_told_to_stop_cleans_up_and_dies_of_the_signal() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let lab = lab();
        let mut child = start(&lab, &SLOW[1].replace("NAME", "old"));
        // SAFETY: a plain system call; the child is ours and was not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert_eq!(std::fs::read(lab.path("old")).unwrap(), [7; 8192]);
        assert_eq!(others(&lab), [""; 0]);
    }
}

#[test]
fn a_conversion_that_fails_leaves_what_was_there() {
    let lab = lab();
    for name in ["old", "new"] {
        for line in ["convert -f raw raw NAME", "convert -f raw -O qcow2 raw NAME", "dd if=raw of=NAME"] {
            let done = lab.ours_with_limit(16 << 10, &line.replace("NAME", name));
            assert_eq!(done.status.code(), Some(1), "{line}");
            assert_eq!(std::fs::read(lab.path("old")).unwrap(), [7; 8192], "{line}");
            assert_eq!(others(&lab), [""; 0], "{line}");
        }
    }
}

#[test]
fn the_new_file_has_the_mode_of_the_old_one_and_stands_where_a_link_leads_to() {
    let lab = lab();
    std::fs::set_permissions(lab.path("old"), PermissionsExt::from_mode(0o640)).unwrap();
    symlink("old", lab.path("link")).unwrap();
    symlink("fresh", lab.path("loose")).unwrap();
    for (line, file) in [
        ("convert -f raw raw link", "old"),
        ("convert -O qcow2 -f raw raw loose", "fresh"),
        ("dd if=raw of=old", "old"),
    ] {
        assert!(lab.ours(line).status.success(), "{line}");
        assert!(lab.path("link").is_symlink() && lab.path("loose").is_symlink());
        lab.qemu_img(&format!("compare raw {file}"));
    }
    assert_eq!(std::fs::metadata(lab.path("old")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(std::fs::metadata(lab.path("fresh")).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn a_file_with_two_names_keeps_both() {
    let lab = lab();
    std::fs::hard_link(lab.path("old"), lab.path("twin")).unwrap();
    assert!(lab.ours("convert -f raw raw old").status.success());
    lab.qemu_img("compare -f raw -F raw raw twin");
}
