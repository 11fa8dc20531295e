//! Disks that become smaller and larger: the content is a prefix of what it was, and what is added is zeros, whatever
//! stood there before, here or in the backing file. The real qemu-img is asked what it makes of it.

use super::interop::fill;
use super::memory::{Disk, Folder};
use super::model::{Model, base, finish, seed};
use super::rows::overlay;
use crate::block::Kind;
use crate::block::aio::Backend;
use crate::block::format::qcow2::CreateOptions;
use crate::block::options::Preallocation;
use rand::Rng;

fn options(cluster_bits: u32, refcount_bits: u64, version: u32) -> CreateOptions {
    CreateOptions {
        size: 700 << 10,
        version,
        cluster_size: 1 << cluster_bits,
        refcount_bits,
        ..CreateOptions::default()
    }
}

/// Another size, of whole sectors.
fn resize(model: &mut Model) {
    let size = model.rng.random_range(20..3000) * 512;
    let ahead = match model.rng.random_range(0..6) {
        0 if size > model.content.len() => Preallocation::Metadata,
        _ => Preallocation::Off,
    };
    model.disk.run(model.disk.node.truncate(size as u64, ahead)).unwrap();
    model.content.resize(size, 0);
    assert_eq!(model.disk.node.size(), size as u64);
}

fn up_and_down(model: &mut Model, rounds: usize) {
    for _ in 0..rounds {
        (0..6).for_each(|_| model.step());
        resize(model);
        assert!(model.disk.read_all() == model.content);
        if model.rng.random_range(0..3) == 0 {
            model.disk.reopen();
        }
    }
    finish(model);
}

#[test]
fn any_row_of_sizes_agrees_with_the_model() {
    for (bits, refcount_bits, version) in
        [(9, 16, 3), (9, 64, 3), (12, 1, 3), (16, 16, 3), (9, 16, 2), (16, 16, 2)]
    {
        let options = options(bits, refcount_bits, version);
        let name = format!("resize {options:?}");
        let disk = Disk::create(Backend::Auto, &options, None);
        up_and_down(&mut Model::new(disk, options.cluster_size, seed(&name)), 12);
    }
}

#[test]
fn a_backing_file_never_shows_through_where_the_disk_had_ended() {
    for (bits, len) in [(9, 2 << 20), (9, 300_077), (12, 2 << 20), (16, 500_077)] {
        let options = overlay(options(bits, 16, 3));
        let disk = Disk::create(Backend::Auto, &options, Some(base(len)));
        let name = format!("resize over {len}");
        up_and_down(&mut Model::new(disk, options.cluster_size, seed(&name)), 12);
    }
}

#[test]
fn subclusters_behind_the_end_are_gone_too() {
    for backing in [None, Some(base(2 << 20))] {
        let options = CreateOptions { extended_l2: true, ..options(14, 16, 3) };
        let options = if backing.is_some() { overlay(options) } else { options };
        let disk = Disk::create(Backend::Auto, &options, backing);
        up_and_down(&mut Model::new(disk, options.cluster_size, seed("subclusters")), 12);
    }
}

#[test]
fn snapshots_keep_what_is_cut_off_the_disk() {
    for cluster in [512, 65536] {
        let folder = Folder::new();
        folder.run(&format!("qemu-img create -q -f qcow2 -o cluster_size={cluster} disk 700k"));
        for (at, name) in ["one", "two"].iter().enumerate() {
            fill(&folder, "disk", 700 << 10, at as u64, 20);
            folder.run(&format!("qemu-img snapshot -c {name} disk"));
        }
        fill(&folder, "disk", 700 << 10, 7, 5);
        let before = ["one", "two"].map(|name| folder.content("disk", &format!("-l {name}")));
        let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
        let mut model = Model::new(disk, cluster, seed("snapshots"));
        up_and_down(&mut model, 8);
        folder.write("disk", &model.disk.bytes());
        for (name, before) in ["one", "two"].iter().zip(before) {
            let mut now = folder.content("disk", &format!("-l {name}"));
            // What qemu-img shows of a snapshot is as long as the disk is now.
            let len = now.len().min(before.len());
            assert!(now[..len] == before[..len]);
            folder.run(&format!("qemu-img snapshot -a {name} disk"));
            now = folder.content("disk", "");
            assert!(now == before, "{cluster} {name}");
            folder.run("qemu-img check disk");
        }
    }
}

/// Our shrinking and qemu-img's leave disks that read alike, and files that are about as long.
#[test]
fn qemu_img_shrinks_to_the_same_disk() {
    for options in
        ["cluster_size=512", "cluster_size=64k", "compat=0.10,cluster_size=4k", "lazy_refcounts=on"]
    {
        let folder = Folder::new();
        folder.run(&format!("qemu-img create -q -f qcow2 -o {options} disk 5M"));
        fill(&folder, "disk", 5 << 20, 3, 60);
        for size in [3_000_320, 1 << 20, 512] {
            let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
            disk.run(disk.node.truncate(size, Preallocation::Off)).unwrap();
            disk.close();
            folder.write("ours", &disk.bytes());
            folder.run(&format!("qemu-img resize -q -f qcow2 --shrink disk {size}"));
            folder.run("qemu-img check ours");
            assert!(folder.content("ours", "") == folder.content("disk", ""), "{options} {size}");
            let [ours, theirs] = ["ours", "disk"].map(|name| folder.read(name).len());
            assert!(ours <= theirs + (512 << 10), "{options} {size}: {ours} bytes, qemu-img has {theirs}");
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_in_qemus_words() {
    let disk = Disk::create(Backend::Auto, &options(16, 16, 3), None);
    let refused = |disk: &Disk, size, ahead| disk.run(disk.node.truncate(size, ahead)).unwrap_err();
    let error = refused(&disk, 512 << 10, Preallocation::Metadata);
    assert_eq!(error.message(), "Preallocation can only be used for growing images");
    assert_eq!(refused(&disk, 1000, Preallocation::Off).kind(), Kind::InvalidArgument);
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o compat=0.10 disk 1M");
    folder.run("qemu-img snapshot -c one disk");
    let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
    let error = refused(&disk, 512 << 10, Preallocation::Off);
    assert_eq!(error.message(), "Can't resize a v2 image which has snapshots");
    assert_eq!(disk.node.size(), 1 << 20);
}
