//! Options of an open image: what becomes of discarded space, and what writes are kept from. QEMU gets a copy of the
//! image, the same options and the same requests.

use crate::fixture::{BACKENDS, Folder, Image};
use cowvm::block::graph::snapshots::{NewSnapshot, Selector};
use cowvm::block::options::OpenOptions;
use cowvm::block::{Buffer, Kind};
use cowvm::util::keyval::Options;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

fn options(driver: &str) -> OpenOptions {
    OpenOptions {
        format: Some("qcow2".into()),
        read_only: false,
        unmap: true,
        driver: Options::parse(driver, None),
        ..OpenOptions::default()
    }
}

fn open(folder: &Folder, name: &str, driver: &str) -> Image {
    Image::open_with(BACKENDS[0], &folder.path(name), &options(driver))
}

fn map(folder: &Folder, name: &str) -> String {
    folder.qemu_img(&format!("map --output=json {name}"))
}

/// A folder with an image `ours` that is full of data, and a copy of it.
fn full_image(create: &str) -> Folder {
    let folder = Folder::new();
    folder.qemu_img(&format!("create -q -f qcow2{create} ours 4M"));
    folder.qemu_io("qcow2", "ours", &["write -P 7 0 4M"]);
    std::fs::copy(folder.path("ours"), folder.path("theirs")).unwrap();
    folder
}

/// Discards and zeroes, aligned or not, and writes to some of it.
fn change_both(folder: &Folder, driver: &str) {
    let image = open(folder, "ours", driver);
    image.discard(0, MIB);
    image.write_zeroes(MIB, 512 * KIB, true);
    image.write_zeroes(1536 * KIB, 512 * KIB, false);
    image.discard(2 * MIB + 100, 200 * KIB);
    image.write(64 * KIB, &[9; 65536]);
    image.close();
    let theirs = format!("driver=qcow2,file.filename=theirs,discard=unmap,{driver}");
    folder.qemu_io_on(
        &["--image-opts", &theirs],
        &[
            "discard 0 1M",
            "write -z -u 1M 512k",
            "write -z 1536k 512k",
            "discard 2097252 200k",
            "write -P 9 64k 64k",
        ],
    );
}

#[test]
fn discarded_space_is_mapped_and_given_back_as_in_qemu() {
    for create in ["", " -o cluster_size=4k", " -o extended_l2=on", " -o data_file=data"] {
        for driver in [
            "",
            "discard-no-unref=on",
            "pass-discard-request=off",
            "discard-no-unref=on,pass-discard-request=off",
        ] {
            let folder = full_image(create);
            let data = create.contains("data_file");
            if data {
                // Theirs has a data file of its own.
                folder.qemu_img("create -q -f qcow2 -o data_file=more theirs 4M");
                folder.qemu_io("qcow2", "theirs", &["write -P 7 0 4M"]);
            }
            change_both(&folder, driver);
            // After a discard the first write takes another cluster than QEMU's, unless they keep their place.
            let told = |name| {
                let map = map(&folder, name);
                if driver.contains("no-unref") || data { map } else { without_offsets(&map) }
            };
            assert_eq!(told("ours"), told("theirs"), "{create} {driver}");
            let (ours, theirs) = if data { ("data", "more") } else { ("ours", "theirs") };
            let difference = folder.space(ours).abs_diff(folder.space(theirs));
            // Metadata takes a few blocks more or less.
            assert!(difference <= 256 * KIB, "{create} {driver}: {difference}");
            folder.qemu_img("check -q ours");
            assert!(
                folder.content("qcow2", "ours") == folder.content("qcow2", "theirs"),
                "{create} {driver}"
            );
        }
    }
}

fn without_offsets(map: &str) -> String {
    let lines =
        map.lines().map(|line| line.split(", \"offset\"").next().unwrap().trim_end_matches(['}', ',', ']']));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_shared_with_a_snapshot_is_never_emptied() {
    let folder = full_image("");
    folder.qemu_img("snapshot -c one ours");
    let image = open(&folder, "ours", "discard-no-unref=on");
    image.discard(0, MIB);
    image.write_zeroes(2 * MIB, MIB, true);
    assert!(image.read(0, 64 << 10).iter().all(|&byte| byte == 0));
    image.close();
    folder.qemu_img("check -q ours");
    folder.qemu_img("convert -l one -O raw ours one");
    assert!(std::fs::read(folder.path("one")).unwrap() == [7; 4 << 20]);
}

#[test]
fn snapshots_that_go_give_back_their_space_unless_told_otherwise() {
    for (driver, goes_back) in [("", true), ("pass-discard-snapshot=off", false)] {
        let folder = full_image("");
        folder.qemu_img("snapshot -c one ours");
        folder.qemu_io("qcow2", "ours", &["write -P 8 0 4M"]);
        let before = folder.space("ours");
        // Whatever the guest may do: this is no request of his.
        let unmap = false;
        let options = OpenOptions { unmap, ..options(driver) };
        let image = Image::open_with(BACKENDS[0], &folder.path("ours"), &options);
        let one = Selector::Name("one".into());
        let delete = image.node.driver().snapshots().unwrap().delete(&one);
        image.engine.block_on(delete).unwrap().unwrap();
        image.close();
        let freed = before.saturating_sub(folder.space("ours"));
        assert_eq!(freed >= 3 * MIB, goes_back, "{driver}: {freed}");
        folder.qemu_img("check -q ours");
    }
}

#[test]
fn old_tables_give_back_their_space_where_that_is_asked_for() {
    let left = ["pass-discard-other=off", "pass-discard-other=on"].map(|driver| {
        let folder = full_image("");
        folder.qemu_img("bitmap --add -g 512 ours one");
        folder.qemu_io("qcow2", "ours", &["write -P 8 0 4M"]);
        let image = open(&folder, "ours", driver);
        let remove = image.node.driver().bitmaps().unwrap().remove("one");
        image.engine.block_on(remove).unwrap().unwrap();
        image.close();
        folder.qemu_img("check -q ours");
        folder.space("ours")
    });
    assert!(left[1] < left[0], "{left:?}");
}

#[test]
fn options_that_make_no_sense_are_refused_in_qemus_words() {
    let folder = full_image("");
    folder.qemu_img("create -q -f qcow2 -o compat=0.10 old 1M");
    for (name, driver) in [
        ("old", "discard-no-unref=on"),
        ("ours", "discard-no-unref=perhaps"),
        ("ours", "pass-discard-other=2"),
        ("ours", "overlap-check=some"),
        ("ours", "overlap-check.template=some"),
        ("ours", "overlap-check=none,overlap-check.template=all"),
        ("ours", "overlap-check.inactive-l2=maybe"),
        ("ours", "overlap-check.nothing=on"),
    ] {
        let told = folder.qemu_io_refuses(&format!("driver=qcow2,file.filename={name},{driver}"));
        let refused = Image::try_open(BACKENDS[0], &folder.path(name), &options(driver));
        let error = refused.err().unwrap_or_else(|| panic!("{driver}: opened"));
        assert_eq!(format!("qemu-io: can't open: {}\n", error.message()), told, "{driver}");
    }
}

/// An image with a snapshot, whose second guest cluster is said to be where the snapshot's L2 table is.
fn points_to_inactive_l2(folder: &Folder) {
    folder.qemu_img("create -q -f qcow2 disk 1M");
    folder.qemu_io("qcow2", "disk", &["write -P 1 0 128k"]);
    folder.qemu_img("snapshot -c one disk");
    let mut bytes = std::fs::read(folder.path("disk")).unwrap();
    let field =
        |bytes: &[u8], at: u64| u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap());
    let table = |bytes: &[u8]| field(bytes, field(bytes, 40)) & 0x00ff_ffff_ffff_fe00;
    let inactive = table(&bytes);
    folder.qemu_io("qcow2", "disk", &["write -P 2 0 64k"]);
    bytes = std::fs::read(folder.path("disk")).unwrap();
    let entry = table(&bytes) as usize + 8;
    bytes[entry..entry + 8].copy_from_slice(&(1 << 63 | inactive).to_be_bytes());
    std::fs::write(folder.path("disk"), bytes).unwrap();
}

#[test]
fn l2_tables_of_snapshots_are_kept_from_writes_where_that_is_asked_for() {
    for (driver, is_kept) in [
        ("", false),
        ("overlap-check=all", true),
        ("overlap-check.inactive-l2=on", true),
        ("overlap-check=all,overlap-check.inactive-l2=off", false),
    ] {
        let folder = Folder::new();
        points_to_inactive_l2(&folder);
        let image = open(&folder, "disk", driver);
        let bytes = Buffer::from_bytes(&[3; 512]).iov(512);
        let done = image.engine.block_on(image.node.write(64 * KIB, &bytes)).unwrap();
        assert_eq!(done.is_err(), is_kept, "{driver}");
        if let Err(error) = done {
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.message().contains("overlaps with inactive L2 table"), "{error}");
        }
    }
}

#[test]
fn snapshots_come_and_go_while_their_l2_tables_are_watched() {
    let folder = full_image("");
    let image = open(&folder, "ours", "overlap-check=all");
    let snapshots = image.node.driver().snapshots().unwrap();
    for round in 0..4u8 {
        let name = round.to_string();
        let new = NewSnapshot { name, ..NewSnapshot::default() };
        image.engine.block_on(snapshots.create(&new)).unwrap().unwrap();
        image.write(u64::from(round) * MIB, &[round; 1 << 20]);
        if round > 0 {
            let old = Selector::Name((round - 1).to_string());
            image.engine.block_on(snapshots.delete(&old)).unwrap().unwrap();
            image.write(0, &[round; 200_000]);
        }
    }
    image.close();
    folder.qemu_img("check -q ours");
}
