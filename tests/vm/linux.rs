//! Debian's stock kernel on disks of ours: what a user boots is what is tested.
//!
//! Each test is one session: it makes disks, boots guests from them (their scripts are in `guest/`), and then
//! looks at the disks with programs that know nothing of cowvm: qemu-img, e2fsck, debugfs.

use std::fs;
use std::process::Command;

use super::harness::process::output;
use super::harness::session::Session;
use super::harness::site::{Site, sbin};

const MIB: usize = 1 << 20;

/// Bytes without a pattern, the same for the same seed (xorshift64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

/// An overlay `name` over a raw base of the same name with the extension `.base`; returns the base's bytes.
fn make_overlay(session: &Session, name: &str, size: usize, cluster_size: &str) -> Vec<u8> {
    let base = noise(0x5eed, size);
    let base_name = format!("{name}.base");
    fs::write(session.path(&base_name), &base).unwrap();
    let options = format!("cluster_size={cluster_size}");
    session.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "-F", "raw", "-b", &base_name, name]);
    base
}

/// The guest's view of the image, read by qemu-img.
fn raw_bytes(session: &Session, name: &str) -> Vec<u8> {
    session.qemu_img(&["convert", "-O", "raw", name, "converted.raw"]);
    fs::read(session.path("converted.raw")).unwrap()
}

/// The ext4 in `image` has no errors, and its files have the checksums that the guest wrote down.
fn assert_tree_is_intact(session: &Session, image: &str) {
    raw_bytes(session, image);
    let raw = session.path("converted.raw");
    output(sbin("e2fsck").arg("-fn").arg(&raw));
    let tree = session.path("tree");
    fs::create_dir(&tree).unwrap();
    output(sbin("debugfs").arg("-R").arg(format!("rdump / {}", tree.display())).arg(&raw));
    output(Command::new("sha256sum").args(["--check", "--quiet", "sums"]).current_dir(&tree));
}

/// The bytes of `[start, end)` that the image keeps as data.
fn allocated(session: &Session, image: &str, start: u64, end: u64) -> u64 {
    let map: serde_json::Value =
        serde_json::from_str(&session.qemu_img(&["map", "--output=json", image])).unwrap();
    let data = map.as_array().unwrap().iter().filter(|extent| extent["data"] == true);
    data.map(|extent| {
        let (first, length) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        (first + length).min(end).saturating_sub(first.max(start))
    })
    .sum()
}

fn ext4_survives_a_second_boot(cpus: &str) {
    let session = Session::new();
    let base = make_overlay(&session, "disk.qcow2", 128 * MIB, "64k");
    session.qemu_img(&["create", "-q", "-f", "qcow2", "scratch.qcow2", "64M"]);
    let fixed = noise(0xf1bed, 16 * MIB);
    fs::write(session.path("fixed.raw"), &fixed).unwrap();
    session.run(
        512,
        &format!(
            "disks='-hda disk.qcow2
                -drive file=scratch.qcow2,format=qcow2,discard=unmap,serial=SCRATCH-42
                -drive file=fixed.raw,format=raw,readonly=on'
            boot first fill -smp {cpus} -m 512 $disks
            boot second verify -smp {cpus} -m 512 $disks"
        ),
    );

    assert_eq!(session.said("first", "CPUS"), [cpus]);
    assert_eq!(session.said("first", "SERIAL"), ["SCRATCH-42"]);
    assert_eq!(session.said("first", "TREE"), session.said("second", "TREE"));
    let sum = output(Command::new("sha256sum").arg(session.path("fixed.raw")));
    assert_eq!(session.said("first", "FIXED"), [sum.split_whitespace().next().unwrap()]);

    session.assert_image_is_clean("disk.qcow2");
    session.assert_image_is_clean("scratch.qcow2");
    assert!(fs::read(session.path("disk.qcow2.base")).unwrap() == base, "the base image has changed");
    assert!(fs::read(session.path("fixed.raw")).unwrap() == fixed, "the read-only image has changed");
    let mib = |n: u64| n << 20;
    assert_eq!(allocated(&session, "scratch.qcow2", mib(4), mib(8)), 0, "discarded clusters are still there");
    assert_eq!(allocated(&session, "scratch.qcow2", 0, mib(4)), mib(4));
    assert_tree_is_intact(&session, "disk.qcow2");
}

#[test]
fn the_site_has_a_kvm_for_linux_and_gives_the_files_back() {
    let session = Session::new();
    if session.site == Site::Reference {
        return;
    }
    fs::write(session.path("question"), noise(7, MIB)).unwrap();
    session.run(0, "test -w /dev/kvm\ngrep -Eqw 'svm|vmx' /proc/cpuinfo\ncp question answer");
    assert!(fs::read(session.path("answer")).unwrap() == noise(7, MIB));
}

#[test]
fn ext4_on_an_overlay_survives_a_second_boot_with_one_cpu() {
    ext4_survives_a_second_boot("1");
}

#[test]
fn ext4_on_an_overlay_survives_a_second_boot_with_four_cpus() {
    ext4_survives_a_second_boot("4");
}

#[test]
fn a_rebooting_guest_comes_up_again_on_the_same_disk() {
    let session = Session::new();
    session.qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
    session.run(256, "boot counter count-boots -smp 2 -m 256 -hda disk.qcow2");
    assert_eq!(session.said("counter", "BOOT"), ["1", "2", "3"]);
    session.assert_image_is_clean("disk.qcow2");
    assert_eq!(raw_bytes(&session, "disk.qcow2")[0], b'3');
}

#[test]
fn the_console_is_a_shell_that_sees_the_disk() {
    let session = Session::new();
    session.qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "40M"]);
    session.run(
        256,
        "start terminal shell -m 256 -hda disk.qcow2
        wait_for '/ #'
        echo 'test -b /dev/vda && echo SECTORS $(cat /sys/block/vda/size)' >&3
        wait_for 'SECTORS'
        echo exit >&3
        finish",
    );
    assert_eq!(session.said("terminal", "SECTORS"), [(40 * MIB / 512).to_string()]);
}

#[test]
fn memory_above_the_pci_hole_is_used() {
    const GUEST_MIB: u32 = 4300;
    let session = Session::new();
    session.qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "64M"]);
    session.run(GUEST_MIB + 512, &format!("boot large memory -m {GUEST_MIB} -hda disk.qcow2"));
    let total: u32 = session.said("large", "MEMORY")[0].parse().unwrap();
    assert!(total > (GUEST_MIB - 300) * 1024, "the guest sees only {total} KiB");
    let upper = session.said("large", "RANGE").iter().any(|range| range.starts_with("100000000-"));
    assert!(upper, "no memory above 4 GiB: {}", session.console("large"));
    session.assert_image_is_clean("disk.qcow2");
}

#[test]
fn a_killed_vmm_leaves_an_image_with_all_that_was_flushed() {
    const KILLED_AFTER: [usize; 3] = [1, 20, 60];
    const SIZE: usize = 64 * MIB;
    let session = Session::new();
    let image = |blocks| format!("storm-{blocks}.qcow2");
    let mut script = String::new();
    for blocks in KILLED_AFTER {
        make_overlay(&session, &image(blocks), SIZE, "4k");
        script += &format!(
            "start storm-{blocks} storm -smp 2 -m 256 -hda {}
            wait_for 'SYNCED {blocks}'
            murder\n",
            image(blocks)
        );
    }
    session.run(3 * 256, &script);

    for blocks in KILLED_AFTER {
        let (code, words) = session.check(&image(blocks));
        assert!(
            matches!(code, Some(0 | 3)),
            "killed after block {blocks}, qemu-img check says {code:?}: {words}"
        );
        let synced: usize =
            session.said(&format!("storm-{blocks}"), "SYNCED").last().unwrap().parse().unwrap();
        assert!(synced >= blocks);
        let bytes = raw_bytes(&session, &image(blocks));
        for block in 1..=synced {
            let pattern = format!("block {block}\n").into_bytes();
            let offset = block * 37 % 4096 * 4096;
            let wanted: Vec<u8> = pattern.iter().copied().cycle().take(4096).collect();
            assert!(
                bytes[offset..offset + 4096] == wanted,
                "block {block} of {synced} was flushed and is lost"
            );
        }
    }
}
