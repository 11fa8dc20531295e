//! Block devices as images, with loop devices in the place of disks.

use crate::harness::Lab;
use crate::loop_device::LoopDevice;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const SIZE: u64 = 4 << 20;

/// A folder with a source that is data, zeros and data again, and a device full of something else.
fn lab() -> Option<(Lab, LoopDevice)> {
    let lab = Lab::new();
    let mut source = vec![0; SIZE as usize];
    source[..1 << 20].fill(0xa5);
    source[3 << 20..][..4096].fill(0x5a);
    fs::write(lab.path("src.raw"), source).unwrap();
    fs::write(lab.path("disk"), vec![0xff; SIZE as usize]).unwrap();
    let device = LoopDevice::of(&lab.path("disk"), &[])?;
    Some((lab, device))
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn commands_do_to_a_device_what_qemu_img_does() {
    let Some((lab, device)) = lab() else { return };
    let Some(read_only) = LoopDevice::of(&lab.path("disk"), &["--read-only"]) else { return };
    let lines = [
        "info DEV",
        "info --output=json DEV",
        "info READONLY",
        "info host_device:DEV",
        "info -f host_device DEV",
        "info --image-opts driver=host_device,filename=DEV",
        "info --image-opts driver=host_cdrom,filename=DEV",
        "info --image-opts driver=raw,file.driver=host_device,file.filename=DEV",
        "info --image-opts driver=raw,file.driver=file,file.filename=DEV",
        "info file:DEV",
        "map --output=json -f raw DEV",
        "measure -O qcow2 -f raw DEV",
        "snapshot -l DEV",
        "convert -n -f raw -O raw src.raw READONLY",
        "resize -f raw READONLY 1M",
        "resize -f raw DEV 8M",
        "resize -f raw --shrink DEV 2M",
        "resize -f raw DEV 2M",
        "resize -f qcow2 DEV 8M",
        "create -f raw DEV 2M",
        "create -f raw DEV 8M",
        "create -f raw -o preallocation=full DEV 4M",
        "create -f raw -o preallocation=falloc DEV 4M",
        "create -f qcow2 DEV 8M",
        "info DEV",
        "check DEV",
        "resize DEV 9M",
        "info --output=json DEV",
        "convert -f raw -O qcow2 src.raw DEV",
        "compare -F raw DEV src.raw",
        "dd if=src.raw of=DEV bs=1M",
        "compare -f raw -F raw DEV src.raw",
    ];
    let lines = lines.map(|line| line.replace("DEV", device.path()).replace("READONLY", read_only.path()));
    lab.same(&lines.each_ref().map(String::as_str));
}

#[test]
fn what_is_copied_to_a_device_leaves_nothing_of_what_was_there() {
    for line in ["convert -f raw -O raw", "convert -n -f raw -O raw", "convert -f raw -O raw -S 0", "dd"] {
        let Some((lab, device)) = lab() else { return };
        let line = match line {
            "dd" => format!("dd if=src.raw of={} bs=64k", device.path()),
            line => format!("{line} src.raw {}", device.path()),
        };
        let done = lab.ours(&line);
        assert!(done.status.success(), "{line}: {}", stderr(&done));
        lab.qemu_img(&format!("compare -f raw -F raw src.raw {}", device.path()));
    }
}

#[test]
fn a_qcow2_image_on_a_device_reads_as_its_source_and_ends_with_the_device() {
    let Some((lab, device)) = lab() else { return };
    for options in ["", " -o preallocation=metadata", " -c"] {
        let line = format!("convert -f raw -O qcow2{options} src.raw {}", device.path());
        let done = lab.ours(&line);
        // All clusters and their metadata are more than the device has.
        match options.contains("metadata") {
            true => assert!(stderr(&done).contains("Cannot grow device files"), "{done:?}"),
            false => {
                assert!(done.status.success(), "{line}: {}", stderr(&done));
                lab.qemu_img(&format!("compare -f raw -F qcow2 src.raw {}", device.path()));
                lab.qemu_img(&format!("check {}", device.path()));
            }
        }
    }
}

#[test]
fn an_error_of_a_device_says_what_to_do() {
    let Some((lab, device)) = lab() else { return };
    let Some(read_only) = LoopDevice::of(&lab.path("disk"), &["--read-only"]) else { return };
    let tool = |words: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_cowvm")).arg("imgtool").args(words).output().unwrap();
        assert!(!done.status.success());
        stderr(&done)
    };
    let said = tool(&["resize", "-f", "raw", read_only.path(), "1M"]);
    assert!(said.contains("not writable") && said.contains("blockdev --setrw"), "{said}");
    let said = tool(&["info", &format!("file:{}", device.path())]);
    assert!(said.contains("driver=host_device"), "{said}");
    let said = tool(&["info", "host_device:/"]);
    assert!(said.contains("requires '/' to be a block device"), "{said}");
}

/// A mounted file system; unmounted when the test forgets it.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn new<'a>(device: &LoopDevice, on: &'a Path) -> Option<Mounted<'a>> {
        fs::create_dir(on).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", device.path()]).status();
        let done =
            made.and_then(|_| Command::new("mount").args(["-o", "ro"]).arg(device.path()).arg(on).status());
        if !done.as_ref().is_ok_and(|status| status.success()) {
            eprintln!("skipped: cannot mount: {done:?}");
            return None;
        }
        Some(Mounted(on))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_mounted_device_is_read_with_a_warning_and_never_written() {
    let Some((lab, device)) = lab() else { return };
    let point = lab.path("my mount");
    let Some(mounted) = Mounted::new(&device, &point) else { return };
    let before = fs::read(lab.path("disk")).unwrap();
    let use_ = format!("{} on {}", device.path(), point.display());
    for line in
        ["convert -n -f raw -O raw src.raw DEV", "create -f raw DEV 4M", "convert -O qcow2 src.raw DEV"]
    {
        let done = lab.ours(&line.replace("DEV", device.path()));
        assert!(!done.status.success() && stderr(&done).contains(&use_), "{line}: {}", stderr(&done));
    }
    assert!(fs::read(lab.path("disk")).unwrap() == before);
    let done = lab.ours(&format!("convert -f raw -O raw {} out.raw", device.path()));
    assert!(done.status.success(), "{done:?}");
    let said = stderr(&done);
    assert_eq!(said.matches("WARNING").count(), 1, "{said}");
    assert!(said.contains(&use_), "{said}");
    drop(mounted);
    let done = lab.ours(&format!("convert -n -f raw -O raw src.raw {}", device.path()));
    assert!(done.status.success(), "{done:?}");
}
