//! The real qemu-img as the judge: what it makes we read, what we make or change it accepts.

use super::memory::{Disk, Folder, described};
use super::model::{Model, base, finish, seed};
use crate::block::aio::Backend;
use crate::block::format::qcow2::CreateOptions;
use crate::block::graph::driver::Specifics;
use crate::block::options::Preallocation;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Fills an image with the patterns of a seed: random data, runs of one byte, holes.
pub(super) fn fill(folder: &Folder, image: &str, size: u64, seed: u64, writes: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut line = format!("qemu-io {}", described(image));
    for _ in 0..writes {
        let start = rng.random_range(0..size / 512) * 512;
        let len = (rng.random_range(1..=200u64) * 512).min(size - start);
        let command = match rng.random_range(0..8) {
            0 => format!("write -z {start} {len}"),
            1 => format!("write -z -u {start} {len}"),
            2 => format!("discard {start} {len}"),
            _ => format!("write -P {} {start} {len}", rng.random_range(1..255)),
        };
        line += &format!(" -c '{command}'");
    }
    folder.run(&line);
}

fn opens_equal(folder: &Folder, image: &str, backing: Option<Vec<u8>>) -> Disk {
    let disk = Disk::from_bytes(Backend::Auto, folder.read(image), backing);
    assert!(disk.read_all() == folder.content(image, ""), "{image}");
    disk
}

/// The image, changed by us at random, and then looked at by qemu-img.
pub(super) fn survives_changes(
    folder: &Folder,
    image: &str,
    cluster: u64,
    backing: Option<Vec<u8>>,
    name: &str,
) {
    let disk = opens_equal(folder, image, backing);
    let mut model = Model::new(disk, cluster, seed(name));
    (0..40).for_each(|_| model.step());
    model.disk.reopen();
    (0..20).for_each(|_| model.step());
    finish(&model);
}

#[test]
fn images_of_every_kind_read_equal_and_survive_changes() {
    let kinds = [
        ("compat=0.10", 65536),
        ("compat=0.10,cluster_size=512", 512),
        ("cluster_size=512,refcount_bits=1", 512),
        ("cluster_size=1k,refcount_bits=64", 1024),
        ("cluster_size=2M,refcount_bits=2", 2 << 20),
        ("refcount_bits=8,lazy_refcounts=on", 65536),
        ("preallocation=metadata,cluster_size=4k", 4096),
        ("preallocation=full,cluster_size=32k,refcount_bits=4", 32768),
        ("extended_l2=on,cluster_size=16k", 16384),
        ("extended_l2=on,cluster_size=2M,refcount_bits=64", 2 << 20),
        ("extended_l2=on,preallocation=metadata,lazy_refcounts=on", 65536),
    ];
    for (options, cluster) in kinds {
        let folder = Folder::new();
        folder.run(&format!("qemu-img create -q -f qcow2 -o {options} disk 5000k"));
        fill(&folder, "disk", 5000 << 10, cluster, 30);
        survives_changes(&folder, "disk", cluster, None, options);
    }
}

#[test]
fn compressed_images_read_equal_and_survive_changes() {
    for (cluster, extended) in
        [(512, "off"), (4096, "off"), (65536, "off"), (1 << 20, "off"), (16384, "on"), (1 << 18, "on")]
    {
        let folder = Folder::new();
        let options = format!("cluster_size={cluster},extended_l2={extended}");
        folder.run(&format!("qemu-img create -q -f qcow2 -o {options} plain 3M"));
        fill(&folder, "plain", 3 << 20, 7, 40);
        folder.run(&format!("qemu-img convert -c -f qcow2 -O qcow2 -o {options} plain disk"));
        survives_changes(&folder, "disk", cluster, None, "compressed");
    }
}

#[test]
fn overlays_read_equal_and_survive_changes() {
    for (options, cluster) in [
        ("cluster_size=4k", 4096),
        ("compat=0.10,cluster_size=1k", 1024),
        ("extended_l2=on", 65536),
        ("extended_l2=on,cluster_size=16k,preallocation=metadata", 16384),
    ] {
        let (folder, bytes) = (Folder::new(), base(2_000_128));
        folder.write("base", &bytes);
        folder.run(&format!("qemu-img create -q -f qcow2 -b base -F raw -o {options} disk 3M"));
        fill(&folder, "disk", 3 << 20, 3, 20);
        survives_changes(&folder, "disk", cluster, Some(bytes), options);
    }
}

#[test]
fn internal_snapshots_are_listed_and_never_change() {
    for (options, cluster) in [
        ("cluster_size=1k", 1024),
        ("refcount_bits=4", 65536),
        ("compat=0.10", 65536),
        ("extended_l2=on", 65536),
        ("extended_l2=on,cluster_size=16k,preallocation=metadata", 16384),
    ] {
        let folder = Folder::new();
        folder.run(&format!("qemu-img create -q -f qcow2 -o {options} disk 3M"));
        let mut contents = Vec::new();
        for (index, name) in ["first", "zwei", "three"].iter().enumerate() {
            fill(&folder, "disk", 3 << 20, index as u64, 15);
            contents.push(folder.content("disk", ""));
            folder.run(&format!("qemu-img snapshot -c {name} disk"));
        }
        let disk = opens_equal(&folder, "disk", None);
        let Some(Specifics::Qcow2(specifics)) = disk.node.driver().specifics() else {
            panic!("no specifics")
        };
        let names: Vec<&str> = specifics.snapshots.iter().map(|snapshot| &snapshot.name[..]).collect();
        assert_eq!(names, ["first", "zwei", "three"]);
        let mut model = Model::new(disk, cluster, seed(options));
        (0..60).for_each(|_| model.step());
        finish(&model);
        folder.write("disk", &model.disk.bytes());
        for (name, content) in ["first", "zwei", "three"].iter().zip(&contents) {
            assert!(folder.content("disk", &format!("-l {name}")) == *content, "{name}");
        }
    }
}

#[test]
fn new_images_are_byte_equal_to_those_of_qemu_img() {
    let cases: [(&str, &str, CreateOptions); 14] = [
        ("", "64M", CreateOptions { size: 64 << 20, ..CreateOptions::default() }),
        ("", "0", CreateOptions::default()),
        ("", "12", CreateOptions { size: 12, ..CreateOptions::default() }),
        ("-o compat=0.10", "3G", CreateOptions { size: 3 << 30, version: 2, ..CreateOptions::default() }),
        (
            "-o cluster_size=512,refcount_bits=64",
            "1M",
            CreateOptions { size: 1 << 20, cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() },
        ),
        (
            "-o cluster_size=4k,refcount_bits=1,lazy_refcounts=on",
            "1G",
            CreateOptions {
                size: 1 << 30,
                cluster_size: 4096,
                refcount_bits: 1,
                lazy_refcounts: true,
                ..CreateOptions::default()
            },
        ),
        (
            "-o cluster_size=2M",
            "1T",
            CreateOptions { size: 1 << 40, cluster_size: 2 << 20, ..CreateOptions::default() },
        ),
        (
            "-u -b base -F raw",
            "10M",
            CreateOptions {
                size: 10 << 20,
                backing_file: Some("base".into()),
                backing_format: Some("raw".into()),
                ..CreateOptions::default()
            },
        ),
        (
            "-u -b base -F raw -o cluster_size=512",
            "1M",
            CreateOptions {
                size: 1 << 20,
                cluster_size: 512,
                backing_file: Some("base".into()),
                backing_format: Some("raw".into()),
                ..CreateOptions::default()
            },
        ),
        (
            "-o preallocation=metadata",
            "100k",
            CreateOptions {
                size: 100 << 10,
                preallocation: Preallocation::Metadata,
                ..CreateOptions::default()
            },
        ),
        (
            "-o extended_l2=on,cluster_size=16k",
            "20M",
            CreateOptions {
                size: 20 << 20,
                cluster_size: 16384,
                extended_l2: true,
                ..CreateOptions::default()
            },
        ),
        (
            "-o extended_l2=on,preallocation=metadata,cluster_size=16k",
            "40M",
            CreateOptions {
                size: 40 << 20,
                cluster_size: 16384,
                extended_l2: true,
                preallocation: Preallocation::Metadata,
                ..CreateOptions::default()
            },
        ),
        (
            "-u -b base -F raw -o extended_l2=on,preallocation=metadata",
            "1M",
            CreateOptions {
                size: 1 << 20,
                extended_l2: true,
                preallocation: Preallocation::Metadata,
                backing_file: Some("base".into()),
                backing_format: Some("raw".into()),
                ..CreateOptions::default()
            },
        ),
        (
            "-o preallocation=metadata,cluster_size=1k",
            "400k",
            CreateOptions {
                size: 400 << 10,
                cluster_size: 1024,
                preallocation: Preallocation::Metadata,
                ..CreateOptions::default()
            },
        ),
    ];
    for (words, size, options) in cases {
        let folder = Folder::new();
        folder.run(&format!("qemu-img create -q -f qcow2 {words} disk {size}"));
        let disk = Disk::create(Backend::Auto, &options, None);
        disk.close();
        let (ours, theirs) = (disk.bytes(), folder.read("disk"));
        assert_eq!(ours.len(), theirs.len(), "{words} {size}");
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{words} {size}");
    }
}

#[test]
fn preallocated_images_are_as_long_as_those_of_qemu_img() {
    for (mode, preallocation) in [
        ("metadata", Preallocation::Metadata),
        ("falloc", Preallocation::Falloc),
        ("full", Preallocation::Full),
    ] {
        for (size, cluster_size) in
            [(700 << 10, 65536), (100 << 10, 65536), (1234 << 10, 1024), (3 << 20, 512)]
        {
            let folder = Folder::new();
            let words = format!("preallocation={mode},cluster_size={cluster_size}");
            folder.run(&format!("qemu-img create -q -f qcow2 -o {words} disk {size}"));
            let options = CreateOptions { size, cluster_size, preallocation, ..CreateOptions::default() };
            let disk = Disk::create(Backend::Auto, &options, None);
            disk.close();
            assert_eq!(disk.bytes().len(), folder.read("disk").len(), "{words} {size}");
            folder.write("disk", &disk.bytes());
            folder.run("qemu-img check -f qcow2 disk");
        }
    }
}
