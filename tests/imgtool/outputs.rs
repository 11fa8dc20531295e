//! Where a new image is written: a name that can be given to another file gets one that is like the old; all others are
//! written in place. What fails leaves everything as it was.

use crate::harness::Lab;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Who is nobody.
const NOBODY: u32 = 65534;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 1M").qemu_io("raw", "raw", &["write -P 5 64k 300k"]);
    lab.write("old", &[7; 8192]);
    lab
}

/// A script in the folder; `$T` is the tool.
fn script(lab: &Lab, text: &str) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-ec", text]).current_dir(lab.path("")).env("T", lab.tool()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn must(output: &Output, line: &str) {
    assert!(output.status.success(), "{line}: {}", said(output));
}

/// All files of a folder and what is in them.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    let mut all: Vec<_> = files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

/// Whether this process may do what only root may.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn a_mount_point_is_written_in_place() {
    let lab = lab();
    lab.write("bound", b"");
    let mount = "mount --bind old bound 2>/dev/null || exit 77";
    let convert = "\"$T\" convert -f raw -O qcow2 raw bound; \"$T\" dd if=raw of=bound -O qcow2";
    let done = script(&lab, &format!("unshare -rm sh -ec '{mount}; {convert}' || exit $?"));
    match done.status.code() {
        Some(77) => println!("left out: nothing can be mounted here"),
        _ => {
            must(&done, convert);
            lab.qemu_img("compare -f raw -F qcow2 raw old");
        }
    }
}

#[test]
fn a_name_for_a_descriptor_means_the_file_that_is_open() {
    for line in [
        "convert -f raw -O qcow2 raw",
        "dd -O qcow2 if=raw of=",
        "convert -O qcow2 -o data_file=$PWD/data -f raw raw",
    ] {
        let lab = lab();
        let command = format!("\"$T\" {line} /dev/fd/3").replace("= /", "=/");
        must(&script(&lab, &format!("exec 3<>old; {command}; test $(stat -Lc %h /dev/fd/3) = 1")), line);
        lab.qemu_img("compare -f raw -F qcow2 raw old");
        let read = "cp /dev/fd/3 copy";
        must(&script(&lab, &format!("exec 3<>old; rm old; {command}; {read}")), line);
        lab.qemu_img("compare -f raw -F qcow2 raw copy");
    }
}

#[test]
fn file_in_front_makes_any_name_a_files() {
    let lab = lab();
    for (number, line) in
        ["convert -f raw -O qcow2 raw NAME", "dd -O qcow2 if=raw of=NAME", "create -f qcow2 NAME 1M"]
            .into_iter()
            .enumerate()
    {
        for name in [format!("file:json:{number}"), format!("file:nbd:{number}")] {
            // The second time it is there.
            for _ in 0..2 {
                must(&lab.ours(&line.replace("NAME", &name)), line);
                lab.qemu_img(&format!("check -f qcow2 {name}"));
            }
        }
    }
    must(&lab.ours(&format!("create {} 1M", "n".repeat(255))), "the longest name");
}

#[test]
fn a_file_whose_name_is_not_ours_to_give_is_written_in_place() {
    if !is_root() {
        return println!("left out: only root can play nobody");
    }
    let lab = lab();
    fs::set_permissions(lab.path("").parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    let folder = lab.path("shared");
    fs::create_dir(&folder).unwrap();
    // With the sticky bit the name is another's; without it, owner and group cannot be given to a new file.
    for mode in [0o1777, 0o777] {
        fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
        lab.write("shared/out", &[7; 8192]);
        fs::set_permissions(folder.join("out"), Permissions::from_mode(0o666)).unwrap();
        chown(folder.join("out"), Some(1), Some(2)).unwrap();
        let line = "\"$T\" convert -f raw -O qcow2 raw shared/out";
        let become_nobody = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups");
        must(&script(&lab, &format!("{become_nobody} {line}")), line);
        let facts = fs::metadata(folder.join("out")).unwrap();
        assert_eq!((facts.uid(), facts.gid(), facts.mode() & 0o7777), (1, 2, 0o666));
        lab.qemu_img("compare -f raw -F qcow2 raw shared/out");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}

#[test]
fn the_new_file_has_owner_group_and_attributes_of_the_old_one() {
    let lab = lab();
    if is_root() {
        chown(lab.path("old"), Some(1), Some(2)).unwrap();
    }
    fs::set_permissions(lab.path("old"), Permissions::from_mode(0o640)).unwrap();
    let (path, flags) = (lab.path("old"), rustix::fs::XattrFlags::empty());
    let has_attributes = rustix::fs::setxattr(&path, "user.note", b"kept", flags).is_ok();
    let before = fs::metadata(&path).unwrap();
    must(&lab.ours("convert -f raw -O qcow2 raw old"), "convert");
    let after = fs::metadata(&path).unwrap();
    assert_ne!(before.ino(), after.ino());
    let facts = |of: &fs::Metadata| (of.uid(), of.gid(), of.mode());
    assert_eq!(facts(&before), facts(&after));
    if has_attributes {
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(&path, "user.note", &mut value).unwrap();
        assert_eq!(&value[..len], b"kept");
    }
}

#[test]
fn a_refused_create_leaves_image_and_data_file_as_they_were() {
    let lab = lab();
    lab.write("data", &[8; 4096]);
    fs::hard_link(lab.path("old"), lab.path("twin")).unwrap();
    symlink("data", lab.path("link")).unwrap();
    let before = content(&lab.path(""));
    let data = ["nodir/x", "old", "./old", "twin", "nbd:x", "json:{}", ".", "/dev/null"];
    for name in ["old", "new", "link", "data"] {
        for data in data.into_iter().chain([name]) {
            let line = format!("create -f qcow2 -o data_file={data},preallocation=full {name} 1M");
            // A file of two names is written in place, whatever comes of it later.
            if !["new", "link", "data"].contains(&name) || !["old", "./old", "twin"].contains(&data) {
                assert_eq!(lab.ours(&line).status.code(), Some(1), "{line}");
                assert!(content(&lab.path("")) == before, "{line}");
            }
        }
    }
}

#[test]
fn a_new_image_that_there_is_no_room_for_leaves_nothing() {
    let lab = lab();
    symlink("nothing", lab.path("loose")).unwrap();
    let before = content(&lab.path(""));
    for format in ["raw", "qcow2", "qcow2 -o data_file=old", "qcow2 -o data_file=more"] {
        for mode in ["full", "falloc"] {
            for name in ["new", "raw", "loose"] {
                let options = format!("{format} -o preallocation={mode}");
                let done = lab.ours_with_limit(2 << 10, &format!("create -f {options} {name} 8M"));
                assert_eq!(done.status.code(), Some(1), "{options}");
                assert!(content(&lab.path("")) == before, "{options} {name}");
            }
        }
    }
}

#[test]
fn an_older_file_goes_away_when_the_new_one_is_on_the_disk_and_not_before() {
    let lab = lab();
    let calls = "trace=fdatasync,fsync,rename,renameat,renameat2";
    for (name, syncs) in [("old", 1), ("new", 0)] {
        let line = format!("strace -f -o log -e {calls} \"$T\" convert -f raw raw {name}");
        match script(&lab, &line).status.code() {
            Some(126 | 127) => return println!("left out: there is no strace"),
            status => assert_eq!(status, Some(0)),
        }
        let log = fs::read_to_string(lab.path("log")).unwrap();
        let (before, after) = log.split_once("rename").unwrap();
        assert_eq!(before.matches("sync(").count(), syncs, "{log}");
        assert_eq!(after.matches("sync(").count(), 0, "{log}");
    }
}

#[test]
fn an_image_that_is_replaced_with_its_data_file_holds_what_was_copied() {
    let lab = lab();
    lab.write("data", &[9; 2 << 20]);
    for line in [
        "convert -O qcow2 -o data_file=data -f raw raw old",
        "convert -O qcow2 -o data_file=data,data_file_raw=on -f raw raw old",
        "convert -O qcow2 -o data_file=fresh,data_file_raw=on -f raw raw new",
    ] {
        must(&lab.ours(line), line);
        let name = line.rsplit(' ').next().unwrap();
        lab.qemu_img(&format!("compare -f raw -F qcow2 raw {name}"));
        lab.qemu_img(&format!("check -f qcow2 {name}"));
    }
    assert!(content(&lab.path("")).iter().all(|(name, _)| !name.ends_with(".part")));
}

#[test]
fn a_link_is_followed_and_backing_files_are_where_the_link_is() {
    let lab = lab();
    fs::create_dir(lab.path("far")).unwrap();
    for target in ["far/there", "far/new"] {
        lab.write("far/there", b"old");
        symlink(target, lab.path("link")).unwrap();
        for line in [
            "create -f qcow2 -b raw -F raw link",
            "convert -f raw -O qcow2 -B raw -F raw raw link",
            "convert -f raw -O qcow2 -o data_file=data raw link",
        ] {
            must(&lab.ours(line), line);
            assert!(lab.path("link").is_symlink());
            lab.qemu_img("compare -f raw -F qcow2 raw link");
            let names: Vec<_> = content(&lab.path("far")).into_iter().map(|(name, _)| name).collect();
            assert!(names.iter().all(|name| ["there", "new"].contains(&name.as_str())), "{names:?}");
        }
        fs::remove_file(lab.path("link")).unwrap();
    }
}

#[test]
fn failures_name_the_output_and_not_its_part() {
    let lab = lab();
    for line in [
        "convert -f raw raw NAME",
        "convert -f raw -O qcow2 raw NAME",
        "convert -o preallocation=full -f raw raw NAME",
        "dd if=raw of=NAME",
        "create -o preallocation=full NAME 8M",
    ] {
        for name in ["old", "new"] {
            let said = said(&lab.ours_with_limit(256, &line.replace("NAME", name)));
            assert!(!said.is_empty() && !said.contains(".part"), "{line}: {said}");
        }
    }
}

#[test]
fn a_complete_image_that_cannot_have_its_name_is_kept() {
    let lab = lab();
    let mut tool = Command::new(lab.tool());
    tool.args(["convert", "-f", "raw", "-", "out"]).current_dir(lab.path(""));
    let mut child = tool.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let part = || content(&lab.path("")).into_iter().find(|(name, _)| name.ends_with(".part"));
    child.stdin.as_mut().unwrap().write_all(&[5; 1 << 20]).unwrap();
    while part().is_none() {
        assert!(child.try_wait().unwrap().is_none());
    }
    fs::create_dir(lab.path("out")).unwrap();
    drop(child.stdin.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(said(&done).contains("Could not create 'out'"), "{}", said(&done));
    assert!(part().is_some_and(|(_, bytes)| bytes == [5; 1 << 20]));
}
