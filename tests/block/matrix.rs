//! The matrix of images that the real qemu-img and qemu-io can make: every option, alone and with overlays,
//! snapshots, compressed clusters, encryption and bitmaps. Each recipe makes `disk` (qcow2) in a folder of its own;
//! what happens to it then is in [`crate::judge`].

use crate::fixture::{BACKENDS, Folder, Image};
use crate::judge::{SECRET, Variant, encrypted, judge};
use cowvm::block::Kind;
use cowvm::block::options::OpenOptions;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Size of every disk, in bytes: a few clusters even of the largest size.
const SIZE: u64 = 10 << 20;
const CLUSTERS: [u32; 4] = [512, 4096, 65536, 2 << 20];
const VERSIONS: [&str; 2] = ["0.10", "1.1"];

/// qemu-io commands that scatter data over the disk.
const SCATTER: [&str; 5] = [
    "write -P 1 0 100k",
    "write -P 2 1M 3M",
    "write -P 3 4500k 1k",
    "write -P 4 8M 64k",
    "write -P 5 10239k 1k",
];
/// qemu-io commands that write parts of an overlay.
const OVERLAY: [&str; 4] = ["write -P 9 4M 2M", "write -P 8 100 1000", "write -z 1M 300k", "discard 2M 1M"];

fn create(folder: &Folder, options: &str) {
    folder.qemu_img(&format!("create -q -f qcow2 -o {options} disk {SIZE}"));
}

fn create_filled(folder: &Folder, options: &str) {
    create(folder, options);
    folder.qemu_io("qcow2", "disk", &SCATTER);
}

/// A raw base of random bytes, `size` long.
fn random_base(folder: &Folder, size: usize) {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(size as u64).fill(&mut bytes[..]);
    std::fs::write(folder.path("base.raw"), bytes).unwrap();
}

/// An overlay over a shorter raw base.
fn create_overlay(folder: &Folder, options: &str) {
    random_base(folder, 5_000_192);
    folder.qemu_img(&format!("create -q -f qcow2 -b base.raw -F raw -o {options} disk {SIZE}"));
}

/// Half noise, half text: some clusters compress, some do not.
fn create_compressed(folder: &Folder, options: &str) {
    random_base(folder, SIZE as usize);
    folder.qemu_io("raw", "base.raw", &["write -P 7 1M 5M"]);
    folder.qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} base.raw disk"));
}

fn create_with_snapshots(folder: &Folder, options: &str) {
    create_filled(folder, options);
    folder.qemu_img("snapshot -c first disk");
    folder.qemu_io("qcow2", "disk", &["write -P 11 2M 1M", "write -P 12 9M 5k"]);
    folder.qemu_img("snapshot -c second disk");
    folder.qemu_io("qcow2", "disk", &["write -P 13 0 50k"]);
}

fn named(name: impl Into<String>) -> Variant {
    Variant { name: name.into(), ..Variant::default() }
}

fn with_snapshots(name: impl Into<String>) -> Variant {
    Variant { snapshots: &["first", "second"], ..named(name) }
}

/// Every version with every cluster size, made by `make` from its options.
fn all_sizes(what: fn(String) -> Variant, kind: &str, make: fn(&Folder, &str)) {
    for version in VERSIONS {
        for cluster in CLUSTERS {
            let options = format!("compat={version},cluster_size={cluster}");
            judge(what(format!("{kind}, {options}")), |folder| make(folder, &options));
        }
    }
}

#[test]
fn plain_images_live_as_in_qemu() {
    all_sizes(named, "plain", create_filled);
}

#[test]
fn images_over_a_shorter_raw_base_live_as_in_qemu() {
    all_sizes(named, "raw base", |folder, options| {
        create_overlay(folder, options);
        folder.qemu_io("qcow2", "disk", &OVERLAY[..2]);
    });
}

#[test]
fn compressed_images_live_as_in_qemu() {
    all_sizes(named, "compressed", create_compressed);
    for cluster in ["4k", "64k", "2M"] {
        let options = format!("compression_type=zstd,cluster_size={cluster}");
        judge(named(&options), |folder| create_compressed(folder, &options));
    }
}

#[test]
fn images_with_internal_snapshots_live_as_in_qemu() {
    all_sizes(with_snapshots, "snapshots", create_with_snapshots);
}

#[test]
fn images_of_every_refcount_width_live_as_in_qemu() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let mut variant = named(format!("refcount_bits={bits}"));
        match bits {
            1 => variant.no_snapshot = Some("cannot get any higher"),
            _ => variant.snapshots = &["only"],
        }
        judge(variant, |folder| {
            create_filled(folder, &format!("refcount_bits={bits},cluster_size=4096"));
            if bits > 1 {
                folder.qemu_img("snapshot -c only disk");
                folder.qemu_io("qcow2", "disk", &["write -P 13 0 50k"]);
            }
        });
    }
}

#[test]
fn images_with_zero_clusters_live_as_in_qemu() {
    for cluster in CLUSTERS {
        judge(named(format!("zero clusters of {cluster}")), |folder| {
            random_base(folder, SIZE as usize);
            folder.qemu_img(&format!("create -q -f qcow2 -b base.raw -F raw -o cluster_size={cluster} disk"));
            folder.qemu_io(
                "qcow2",
                "disk",
                &["write -P 1 0 4M", "write -z 2M 4M", "write -zu 512k 1M", "discard 7M 2M"],
            );
        });
    }
}

#[test]
fn preallocated_and_lazy_images_live_as_in_qemu() {
    for option in
        ["preallocation=metadata", "preallocation=falloc", "preallocation=full", "lazy_refcounts=on"]
    {
        judge(named(option), |folder| create_filled(folder, option));
    }
    for option in ["lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512"] {
        judge(named(format!("{option}, dirty")), |folder| {
            create(folder, option);
            folder.qemu_io_dies("disk", &SCATTER);
            assert!(folder.qemu_img("info -f qcow2 --output=json disk").contains("\"dirty-flag\": true"));
        });
    }
}

#[test]
fn chains_live_as_in_qemu() {
    let chain = "a chain of compressed, zeroed and plain images";
    judge(Variant { snapshots: &["mark"], ..named(chain) }, |folder| {
        random_base(folder, 7_000_064);
        folder.qemu_img("convert -c -f raw -O qcow2 base.raw lower");
        folder.qemu_img("create -q -f qcow2 -b lower -F qcow2 -o cluster_size=4k middle 9M");
        folder.qemu_io("qcow2", "middle", &["write -z 1M 2M", "write -P 6 5M 100k"]);
        folder.qemu_img(&format!("create -q -f qcow2 -b middle -F qcow2 -o cluster_size=128k disk {SIZE}"));
        folder.qemu_io("qcow2", "disk", &["write -P 3 6M 3M"]);
        folder.qemu_img("snapshot -c mark disk");
    });
}

#[test]
fn images_with_subclusters_live_as_in_qemu() {
    for cluster in ["16k", "64k", "2M"] {
        let options = format!("extended_l2=on,cluster_size={cluster}");
        let preallocated = format!("{options},preallocation=metadata");
        judge(named(format!("plain, {options}")), |folder| create_filled(folder, &options));
        judge(named(format!("backing, {options}")), |folder| {
            create_overlay(folder, &options);
            folder.qemu_io("qcow2", "disk", &OVERLAY);
        });
        judge(with_snapshots(format!("snapshots, {options}")), |folder| {
            create_with_snapshots(folder, &options);
        });
        judge(named(format!("compressed, {options}")), |folder| create_compressed(folder, &options));
        judge(named(&preallocated), |folder| create_filled(folder, &preallocated));
        judge(named(format!("backing, {preallocated}")), |folder| create_overlay(folder, &preallocated));
    }
}

#[test]
fn images_with_a_data_file_live_as_in_qemu_and_have_no_snapshots() {
    for (options, raw_data) in [
        ("data_file=data", None),
        ("data_file=data,cluster_size=512", None),
        ("data_file=data,preallocation=metadata", None),
        ("data_file=data,extended_l2=on", None),
        ("data_file=data,data_file_raw=on", Some("data")),
        ("data_file=data,data_file_raw=on,cluster_size=2M", Some("data")),
        ("data_file=data,data_file_raw=on,extended_l2=on", Some("data")),
    ] {
        let no_snapshot = Some("Operation not supported");
        judge(Variant { raw_data, no_snapshot, ..named(options) }, |folder| create_filled(folder, options));
    }
    let overlay = Variant { no_snapshot: Some("Operation not supported"), ..named("data file, backing") };
    judge(overlay, |folder| create_overlay(folder, "data_file=data"));
}

#[test]
fn encrypted_data_files_live_as_in_qemu() {
    for options in [
        "data_file=data,encrypt.format=aes",
        "data_file=data,cluster_size=4k,encrypt.format=luks,encrypt.iter-time=10",
        "data_file=data,extended_l2=on,encrypt.format=luks,encrypt.iter-time=10",
        // What must read as the guest's disk cannot be encrypted: the bit goes with the first change.
        "data_file=data,data_file_raw=on,encrypt.format=luks,encrypt.iter-time=10",
    ] {
        let no_snapshot = Some("Operation not supported");
        judge(Variant { encrypted: true, no_snapshot, ..named(options) }, |folder| {
            create_encrypted(folder, options);
            qemu_io_encrypted(folder, &SCATTER);
        });
    }
}

fn create_encrypted(folder: &Folder, options: &str) {
    folder.qemu_img(&format!(
        "create -q --object {SECRET} -f qcow2 -o {options},encrypt.key-secret=s disk {SIZE}"
    ));
}

fn qemu_io_encrypted(folder: &Folder, commands: &[&str]) {
    folder.qemu_io_on(&encrypted("disk").split(' ').collect::<Vec<_>>(), commands);
}

#[test]
fn encrypted_images_live_as_in_qemu() {
    for options in [
        "encrypt.format=luks,encrypt.iter-time=10",
        "cluster_size=4k,encrypt.format=luks,encrypt.iter-time=10",
        "extended_l2=on,encrypt.format=luks,encrypt.iter-time=10",
        "encrypt.format=aes",
        "compat=0.10,cluster_size=512,encrypt.format=aes",
    ] {
        let create =
            format!("create -q --object {SECRET} -f qcow2 -o {options},encrypt.key-secret=s disk {SIZE}");
        let variant = |kind: &str| Variant { encrypted: true, ..named(format!("{kind}, {options}")) };
        judge(variant("plain"), |folder| {
            folder.qemu_img(&create);
            qemu_io_encrypted(folder, &SCATTER);
        });
        judge(variant("backing"), |folder| {
            random_base(folder, 5_000_192);
            folder.qemu_img(&create.replace(" -f qcow2", " -f qcow2 -b base.raw -F raw"));
            qemu_io_encrypted(folder, &OVERLAY[..2]);
        });
        judge(Variant { snapshots: &["first"], ..variant("snapshots") }, |folder| {
            folder.qemu_img(&create);
            qemu_io_encrypted(folder, &SCATTER);
            folder.qemu_img(&format!("snapshot -c first {}", encrypted("disk")));
            qemu_io_encrypted(folder, &["write -P 13 0 50k"]);
        });
    }
}

#[test]
fn images_with_bitmaps_live_as_in_qemu_and_let_no_snapshot_be_applied() {
    for (add, options) in [
        ("--add -g 512", "cluster_size=512"),
        ("--add -g 4k", "cluster_size=4k"),
        ("--add", "cluster_size=64k"),
        ("--add -g 2M", "cluster_size=64k"),
        ("--add -g 64k", "extended_l2=on"),
        ("--add --disable", "cluster_size=64k"),
    ] {
        let no_apply = Some("Device has active dirty bitmaps");
        let name = format!("bitmap {add}, {options}");
        judge(Variant { no_apply, snapshots: &["first"], ..named(name) }, |folder| {
            create(folder, options);
            folder.qemu_img(&format!("bitmap {add} disk one"));
            folder.qemu_io("qcow2", "disk", &SCATTER);
            folder.qemu_img("snapshot -c first disk");
            folder.qemu_img("bitmap --add -g 128k disk two");
        });
    }
}

#[test]
fn images_whose_bitmap_is_in_use_live_as_in_qemu_and_keep_their_size() {
    let variant = Variant {
        no_apply: Some("Device has active dirty bitmaps"),
        no_resize: Some("Bitmap 'one' is inconsistent and cannot be used"),
        ..named("bitmap in use")
    };
    judge(variant, |folder| {
        create_filled(folder, "cluster_size=64k");
        folder.qemu_img("bitmap --add disk one");
        folder.qemu_io_dies("disk", &["write -P 6 1M 64k"]);
        assert!(folder.qemu_img("info -f qcow2 disk").contains("in-use"));
    });
}

#[test]
fn images_marked_as_corrupt_are_read_and_not_written() {
    let folder = Folder::new();
    create_filled(&folder, "cluster_size=64k");
    let content = folder.content("qcow2", "disk");
    let mut bytes = std::fs::read(folder.path("disk")).unwrap();
    // The last byte of the incompatible features, bit 1.
    bytes[79] |= 2;
    std::fs::write(folder.path("disk"), bytes).unwrap();
    let image = Image::open(BACKENDS[0], &folder.path("disk"), "qcow2", true);
    assert!(image.read(0, SIZE as usize) == content);
    image.close();
    let writing = OpenOptions { format: Some("qcow2".into()), read_only: false, ..OpenOptions::default() };
    let Err(error) = Image::try_open(BACKENDS[0], &folder.path("disk"), &writing) else {
        panic!("opened for writing")
    };
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.message().contains("Image is corrupt; cannot be opened read/write"), "{error}");
}
