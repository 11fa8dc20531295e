//! Options of images that exist, changed: the real qemu-img changes a copy, finds nothing wrong with ours, and reads
//! the same disk and snapshots from it.

use super::interop::fill;
use super::memory::{Disk, Folder};
use super::model::{Model, finish, seed};
use crate::block::Result;
use crate::block::aio::Backend;
use crate::block::graph::amend::AmendOptions;

/// What qemu-img calls by the options' names.
fn options(text: &str) -> AmendOptions {
    let mut options = AmendOptions::default();
    for part in text.split(',') {
        let (name, value) = part.split_once('=').unwrap();
        let on = Some(value == "on");
        match name {
            "compat" => options.compat = Some(value.into()),
            "lazy_refcounts" => options.lazy_refcounts = on,
            "refcount_bits" => options.refcount_bits = Some(value.parse().unwrap()),
            "size" => options.size = Some(value.parse().unwrap()),
            "data_file" => options.data_file = Some(value.into()),
            "data_file_raw" => options.data_file_raw = on,
            "backing_file" => options.backing_file = Some(value.into()),
            _ => options.backing_format = Some(value.into()),
        }
    }
    options
}

fn amend(disk: &Disk, text: &str) -> Result<()> {
    disk.run(disk.node.driver().amender().unwrap().amend(&options(text)))
}

/// Images with all kinds of clusters: (options of create, backing file, options of amend).
const CHANGES: [(&str, bool, &str); 17] = [
    ("compat=0.10", false, "compat=1.1"),
    ("compat=0.10,cluster_size=512", true, "compat=v3,lazy_refcounts=on"),
    ("compat=0.10", false, "compat=1.1,refcount_bits=8"),
    ("compat=1.1", false, "compat=0.10"),
    ("compat=1.1,cluster_size=512", false, "compat=v2"),
    ("compat=1.1", true, "compat=0.10"),
    ("compat=1.1,cluster_size=4k", true, "compat=0.10"),
    ("refcount_bits=64,cluster_size=512", true, "compat=0.10,refcount_bits=16"),
    ("lazy_refcounts=on", false, "lazy_refcounts=off"),
    ("cluster_size=512", false, "refcount_bits=64"),
    ("cluster_size=512,refcount_bits=64", false, "refcount_bits=4"),
    ("refcount_bits=2", true, "refcount_bits=32"),
    ("cluster_size=4k", false, "refcount_bits=8,lazy_refcounts=on,size=3000320"),
    ("extended_l2=on", true, "refcount_bits=8"),
    ("compat=0.10", false, "compat=1.1,size=3000320"),
    ("compat=0.10,cluster_size=4k", true, "compat=1.1,size=1000448"),
    ("compat=0.10,cluster_size=512", true, "compat=1.1,refcount_bits=8,lazy_refcounts=on,size=3000320"),
];

fn image(folder: &Folder, create: &str, with_backing: bool, snapshots: bool) {
    folder.write("base", &super::model::base(1_300_000));
    let backing = if with_backing { "-F raw -b base" } else { "" };
    folder.run(&format!("qemu-img create -q -f qcow2 -o {create} {backing} disk 2000k"));
    for round in 0..3 {
        fill(folder, "disk", 2000 << 10, round, 25);
        if snapshots && round < 2 {
            folder.run(&format!("qemu-img snapshot -c s{round} disk"));
        }
    }
}

fn snapshots_of(folder: &Folder, image: &str) -> Vec<Vec<u8>> {
    ["s0", "s1"].iter().map(|name| folder.content(image, &format!("-l {name}"))).collect()
}

/// What qemu-img says of the format.
fn facts(folder: &Folder, image: &str) -> String {
    let text = folder.run(&format!("qemu-img info {image}"));
    let from = text.find("Format specific information").unwrap();
    let to = text.find("Child node").unwrap_or(text.len());
    text[from..to].into()
}

#[test]
fn qemu_img_finds_the_same_disk_and_snapshots_and_the_same_options() {
    for (create, with_backing, change) in CHANGES {
        // Where they can be: not counted in 2 bits.
        let snapshots = !create.contains("refcount_bits=2");
        let (name, folder) = (format!("{create} {change}"), Folder::new());
        image(&folder, create, with_backing, snapshots);
        let backing = with_backing.then(|| folder.read("base"));
        let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), backing.clone());
        amend(&disk, change).unwrap();
        assert!(disk.node.driver().read_only(), "{name}");
        disk.close();
        folder.write("ours", &disk.bytes());
        folder.run("qemu-img check ours");
        let before = snapshots.then(|| snapshots_of(&folder, "disk"));
        folder.run(&format!("qemu-img amend -f qcow2 -o {change} disk"));
        assert!(folder.content("ours", "") == folder.content("disk", ""), "{name}");
        assert_eq!(facts(&folder, "ours"), facts(&folder, "disk"), "{name}");
        if let Some(before) = before {
            // qemu-img shows them in the size of the live disk.
            let now = snapshots_of(&folder, "ours");
            let pairs = now.iter().zip(&before).map(|(now, before)| now.iter().zip(before));
            assert!(pairs.flatten().all(|(now, before)| now == before), "{name}");
        }
        let disk = Disk::from_bytes(Backend::Auto, folder.read("ours"), backing);
        let mut model = Model::new(disk, 1 << 16, seed(&name));
        (0..10).for_each(|_| model.step());
        finish(&model);
    }
}

#[test]
fn snapshots_without_extra_data_get_it_with_version_3() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o compat=0.10 disk 1M");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 3 100k 200k'");
    folder.run("qemu-img snapshot -c one disk");
    let mut bytes = folder.read("disk");
    bytes.resize(bytes.len().next_multiple_of(1 << 16), 0);
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    // As programs of 2010 wrote it: nothing between the fixed part and the ID.
    let extra = bytes[table + 39] as usize;
    assert!(extra > 0);
    bytes[table + 39] = 0;
    bytes.copy_within(table + 40 + extra..table + 40 + extra + 16, table + 40);
    let disk = Disk::from_bytes(Backend::Auto, bytes, None);
    amend(&disk, "compat=1.1").unwrap();
    disk.close();
    folder.write("ours", &disk.bytes());
    let checked = folder.try_run("qemu-img check ours");
    assert_eq!((checked.status.code(), &checked.stderr[..]), (Some(0), &b""[..]));
    folder.run("qemu-img resize -q ours 2M");
    assert!(folder.content("ours", "-l one")[..1 << 20] == folder.content("disk", "-l one"));
}

/// What version 2 cannot do, as nothing but zero clusters can hide it.
#[test]
fn with_version_3_a_disk_grows_over_a_longer_backing_file() {
    let folder = Folder::new();
    let base = super::model::base(2 << 20);
    folder.write("base", &base);
    folder.run("qemu-img create -q -f qcow2 -o compat=0.10 -F raw -b base disk 1M");
    let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), Some(base.clone()));
    assert!(amend(&disk, "size=2097152").is_err());
    amend(&disk, "compat=1.1,size=2097152").unwrap();
    disk.close();
    folder.write("ours", &disk.bytes());
    folder.run("qemu-img check ours");
    assert!(folder.content("ours", "") == [&base[..1 << 20], &vec![0; 1 << 20]].concat());
}

/// In version 2 they have none of their own.
#[test]
fn a_downgrade_gives_the_disk_the_size_of_its_snapshots_first() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 1M");
    folder.run("qemu-img snapshot -c s0 disk");
    folder.run("qemu-img resize -q disk 2M");
    let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
    amend(&disk, "compat=0.10,size=1048576").unwrap();
    disk.close();
    folder.write("ours", &disk.bytes());
    folder.run("qemu-img amend -f qcow2 -o compat=0.10,size=1M disk");
    assert_eq!(facts(&folder, "ours"), facts(&folder, "disk"));
    folder.run("qemu-img check ours");
}

#[test]
fn qemu_imgs_words_refuse_what_cannot_be() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 v2 -o compat=0.10 1M");
    folder.run("qemu-img create -q -f qcow2 v3 1M");
    folder.run("qemu-img create -q -f qcow2 narrow -o refcount_bits=8 1M");
    folder.run("qemu-img create -q -f qcow2 shared 1M");
    folder.run("qemu-io -f qcow2 shared -c 'write 0 64k'");
    (0..4).for_each(|at| drop(folder.run(&format!("qemu-img snapshot -c s{at} shared"))));
    folder.run("qemu-img create -q -f qcow2 grown 1M");
    folder.run("qemu-img snapshot -c s grown");
    folder.run("qemu-img resize -q grown 2M");
    for (image, change) in [
        ("v2", "lazy_refcounts=on"),
        ("v2", "refcount_bits=8"),
        ("v3", "refcount_bits=3"),
        ("v3", "refcount_bits=128"),
        ("v3", "compat=0.5"),
        ("v3", "compat=0.10,lazy_refcounts=on"),
        ("narrow", "compat=0.10"),
        ("shared", "refcount_bits=1"),
        ("grown", "compat=0.10"),
        ("shared", "compat=0.10,size=2097152"),
        ("v3", "data_file=x"),
        ("v3", "data_file_raw=on"),
        ("v3", "backing_file=x"),
        // This one makes it version 3 all the same.
        ("v2", "compat=1.1,size=100"),
    ] {
        let bytes = folder.read(image);
        let disk = Disk::from_bytes(Backend::Auto, bytes.clone(), None);
        let error = amend(&disk, change).unwrap_err();
        disk.close();
        let theirs = folder.try_run(&format!("qemu-img amend -f qcow2 -o {change} {image}"));
        let theirs = String::from_utf8(theirs.stderr).unwrap();
        let theirs = theirs.strip_prefix("qemu-img: ").unwrap();
        assert!(theirs.starts_with(error.message()), "{image} {change}: {error}, {theirs}");
        folder.write("ours", &disk.bytes());
        folder.run("qemu-img check ours");
        assert!(disk.bytes() == bytes || change == "refcount_bits=1", "{image} {change}");
    }
}

/// qemu-img lets the bitmaps go without a word.
#[test]
fn nothing_is_lost_by_a_downgrade() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 1M");
    folder.run("qemu-img bitmap --add disk one");
    let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
    let error = amend(&disk, "compat=0.10").unwrap_err();
    assert_eq!(error.message(), "Cannot downgrade an image with persistent bitmaps");
}

#[test]
fn the_type_of_compression_goes_where_nothing_is_compressed() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o compression_type=zstd disk 1M");
    let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
    amend(&disk, "compat=0.10").unwrap();
    disk.close();
    folder.write("ours", &disk.bytes());
    folder.run("qemu-img check ours");
    assert!(folder.run("qemu-img info ours").contains("compression type: zlib"));

    folder.run("qemu-io -f qcow2 disk -c 'write -c -P 1 0 64k'");
    folder.run("qemu-img snapshot -c one disk");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 1 0 64k'");
    let before = folder.read("disk");
    let disk = Disk::from_bytes(Backend::Auto, before, None);
    let error = amend(&disk, "compat=0.10").unwrap_err();
    let words = "Cannot downgrade an image with zstd compression type and existing compressed clusters";
    assert_eq!(error.message(), words);
}
