//! Images that contradict themselves: what `check` says of them, and that they are refused or left as they are.

use super::memory::{Disk, Folder, State, driver, open};
use super::model::seed;
use crate::block::Kind;
use crate::block::aio::{Backend, Engine};
use crate::block::format::qcow2::CreateOptions;
use crate::block::graph::driver::{Check, CheckReport};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::rc::Rc;

pub(super) fn engine_and_state(bytes: &[u8]) -> (Rc<Engine>, Rc<State>) {
    let state = State { bytes: RefCell::new(bytes.to_vec()), ..State::default() };
    (Engine::new(Backend::Auto).unwrap(), Rc::new(state))
}

fn our_report(bytes: &[u8]) -> Option<CheckReport> {
    let (engine, state) = engine_and_state(bytes);
    let image = driver(&engine, &state, None, true).ok()?;
    Some(engine.block_on(image.check()).unwrap().unwrap())
}

/// What the real qemu-img says: counts from its JSON, messages from stderr.
fn their_report(folder: &Folder) -> Option<CheckReport> {
    let output = folder.try_run("qemu-img check -f qcow2 --output=json disk");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let count = |name: &str| json.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    // Besides its findings it says when it gives up.
    let finding = |line: &&str| !line.starts_with("qemu-img: ");
    let messages =
        String::from_utf8_lossy(&output.stderr).lines().filter(finding).map(str::to_owned).collect();
    Some(CheckReport {
        corruptions: count("corruptions"),
        leaks: count("leaks"),
        check_errors: count("check-errors"),
        total_clusters: count("total-clusters"),
        allocated_clusters: count("allocated-clusters"),
        fragmented_clusters: count("fragmented-clusters"),
        compressed_clusters: count("compressed-clusters"),
        image_end_offset: count("image-end-offset"),
        messages,
        ..CheckReport::default()
    })
}

/// An image with data, zero and compressed clusters and a snapshot.
pub(super) fn sample(folder: &Folder, options: &str) -> Vec<u8> {
    folder.run(&format!("qemu-img create -q -f qcow2 -o {options} plain 1M"));
    folder.run("qemu-io -f qcow2 plain -c 'write -P 1 0 100k' -c 'write -P 2 300k 50k'");
    folder.run(&format!("qemu-img convert -c -f qcow2 -O qcow2 -o {options} plain disk"));
    folder.run(
        "qemu-io -f qcow2 disk -c 'write -P 3 120k 90k' -c 'write -P 4 512k 90k' -c 'write -z 700k 64k'",
    );
    folder.run("qemu-img snapshot -c one disk");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 5 130k 10k' -c 'write -P 6 900k 50k'");
    folder.read("disk")
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Offsets of 8-byte entries that hold something: of the L1 table, the L2 tables and the refcount table.
pub(super) fn entries(bytes: &[u8], cluster: usize) -> Vec<usize> {
    let used = |from: usize, len: usize| {
        (from..from + len)
            .step_by(8)
            .filter(|&at| at + 8 <= bytes.len() && be64(bytes, at) != 0)
            .collect::<Vec<_>>()
    };
    let l1 =
        used(be64(bytes, 40) as usize, 8 * u32::from_be_bytes(bytes[36..40].try_into().unwrap()) as usize);
    let l2 = l1.iter().flat_map(|&at| used((be64(bytes, at) & 0xff_ffff_ffff_fe00) as usize, cluster));
    let refcount_table = used(be64(bytes, 48) as usize, cluster);
    l1.iter().copied().chain(l2).chain(refcount_table).collect()
}

/// Compares, and shows the first difference alone.
fn agree(ours: Option<CheckReport>, theirs: Option<CheckReport>, what: &str) {
    let (Some(mut ours), Some(mut theirs)) = (ours, theirs) else {
        panic!("{what}: one of us cannot check it");
    };
    let (our_words, their_words) = (std::mem::take(&mut ours.messages), std::mem::take(&mut theirs.messages));
    for (a, b) in our_words.iter().zip(&their_words) {
        assert_eq!(a, b, "{what}");
    }
    assert_eq!(our_words.len(), their_words.len(), "{what}");
    assert_eq!(ours, theirs, "{what}");
}

#[test]
fn check_says_what_qemu_img_says_of_damaged_images() {
    for (options, cluster) in [("cluster_size=4k", 4096), ("cluster_size=64k", 65536), ("compat=0.10", 65536)]
    {
        let folder = Folder::new();
        // Always the same: what qemu-img says of an image that makes no sense at all is no promise.
        let mut rng = StdRng::seed_from_u64(4711);
        let good = sample(&folder, options);
        assert_eq!(our_report(&good), their_report(&folder));
        let places = entries(&good, cluster);
        let refcount_block = be64(&good, be64(&good, 48) as usize) as usize;
        for _ in 0..60 {
            let mut bytes = good.clone();
            let place = places[rng.random_range(0..places.len())];
            let what = match rng.random_range(0..6) {
                0 => {
                    let at = refcount_block + rng.random_range(0..80);
                    bytes[at] = rng.random_range(0..3);
                    "refcount"
                }
                1 => {
                    bytes[place..place + 8].fill(0);
                    "no entry"
                }
                2 => {
                    let other = places[rng.random_range(0..places.len())];
                    bytes.copy_within(other..other + 8, place);
                    "another entry"
                }
                3 => {
                    bytes[place] ^= 0x80;
                    "copied flag"
                }
                4 => {
                    bytes[place + 6] ^= 0x02 << rng.random_range(0..6);
                    "offset"
                }
                _ => {
                    bytes[place + 2] ^= 1;
                    "past the end"
                }
            };
            folder.write("disk", &bytes);
            agree(our_report(&bytes), their_report(&folder), &format!("{what} at {place:#x}"));
        }
    }
}

/// A plain image of 64 KiB clusters, first cluster written: L1 table at 3, L2 table at 4, data at 5.
fn plain() -> Vec<u8> {
    let disk =
        Disk::create(Backend::Auto, &CreateOptions { size: 4 << 20, ..CreateOptions::default() }, None);
    disk.run(disk.node.write_bytes(0, &[1; 65536])).unwrap();
    disk.close();
    disk.bytes()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn a_write_that_would_hit_metadata_is_refused_and_marks_the_image() {
    for (cluster, name) in [
        (0u64, "offset 0"),
        (1, "refcount table"),
        (2, "refcount block"),
        (3, "active L1 table"),
        (4, "active L2 table"),
    ] {
        let mut bytes = plain();
        put(&mut bytes, 4 << 16, &(1 << 63 | cluster << 16).to_be_bytes());
        let disk = Disk::from_bytes(Backend::Auto, bytes.clone(), None);
        let error = disk.run(disk.node.write_bytes(100, &[9; 10])).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains(name), "{}", error.message());
        let again = disk.run(disk.node.write_bytes(1 << 20, &[9; 10])).unwrap_err();
        assert_eq!(again.kind(), Kind::ReadOnly);
        disk.run(disk.node.close()).unwrap();
        bytes[79] |= 2;
        assert!(disk.bytes() == bytes, "{name}: nothing but the corrupt bit changes");
        let reopened = open(&disk.engine, &disk.state, None, false).unwrap_err();
        assert_eq!(reopened.message(), "Image is corrupt; cannot be opened read/write");
        assert!(open(&disk.engine, &disk.state, None, true).is_ok());
    }
}

/// Refcounts that say "free" of clusters in use: what they are handed out for would destroy metadata.
#[test]
fn clusters_in_use_with_refcount_0_are_not_overwritten() {
    for used in 0..5 {
        let mut bytes = plain();
        put(&mut bytes, (2 << 16) + 2 * used, &[0, 0]);
        let disk = Disk::from_bytes(Backend::Auto, bytes.clone(), None);
        let error = disk.run(disk.node.write_bytes(1 << 20, &[9; 10])).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "cluster {used}");
        disk.run(disk.node.close()).unwrap();
        bytes[79] |= 2;
        assert!(disk.bytes() == bytes, "cluster {used}");
    }
}

#[test]
fn headers_that_lie_are_refused_without_following_them() {
    let good = plain();
    let cases: &[(usize, &[u8], &str)] = &[
        (0, b"QFI\xfa", "Image is not in qcow2 format"),
        (4, &[0, 0, 0, 1], "Unsupported qcow2 version 1"),
        (4, &[0, 0, 0, 4], "Unsupported qcow2 version 4"),
        (20, &[0, 0, 0, 8], "Unsupported cluster size: 2^8"),
        (20, &[0, 0, 0, 22], "Unsupported cluster size: 2^22"),
        (20, &[0xff; 4], "Unsupported cluster size: 2^4294967295"),
        (8, &[0, 0, 0, 0, 0, 1, 0, 1], "Invalid backing file offset"),
        (8, &[0xff; 8], "Invalid backing file offset"),
        (8, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0], "Backing file name too long"),
        (8, &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 9], "Backing file name too long"),
        (24, &[0x7f; 8], "Image is too big"),
        (24, &[0xff; 8], "Could not refresh total sector count: File too large"),
        (24, &[0, 0, 1, 0, 0, 0, 0, 0], "L1 table is too small"),
        (36, &[0xff; 4], "Active L1 table too large"),
        (36, &[0, 0, 0, 0], "L1 table is too small"),
        (40, &[0, 0, 0, 0, 0, 3, 2, 0], "Active L1 table offset invalid"),
        (40, &[0xff; 8], "Active L1 table offset invalid"),
        (48, &[0, 0, 0, 0, 0, 0, 2, 0], "Reference count table offset invalid"),
        (48, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], "Reference count table offset invalid"),
        (56, &[0, 0, 0, 0], "Image does not contain a reference count table"),
        (56, &[0xff; 4], "Reference count table too large"),
        (60, &[0xff; 4], "Snapshot table too large"),
        (60, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], "Snapshot table offset invalid"),
        (32, &[0, 0, 0, 2], "the header extension that says where the LUKS header is, is missing"),
        (32, &[0, 0, 0, 3], "Unsupported encryption method 3"),
        (32, &[0, 0, 0, 255], "Unsupported encryption method 255"),
        (95, &[2], "data-file-raw requires a data file"),
        (79, &[8], "qcow2: Compression type incompatible feature bit must not be set"),
        (72, &[0x80], "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000"),
        (96, &[0, 0, 0, 7], "Reference count entry width too large; may not exceed 64 bits"),
        (100, &[0, 0, 0, 103], "qcow2 header too short"),
        (100, &[0, 1, 0, 8], "qcow2 header exceeds cluster size"),
        (104, &[1], "qcow2: Compression type incompatible feature bit must be set"),
        (104, &[2], "qcow2: unknown compression type: 2"),
        (116, &[0xff; 4], "Header extension too large"),
    ];
    for (at, value, message) in cases {
        let mut bytes = good.clone();
        put(&mut bytes, *at, value);
        let (engine, state) = engine_and_state(&bytes);
        let error = open(&engine, &state, None, true).unwrap_err();
        assert_eq!(error.message(), *message, "at {at}");
    }
    let mut small = good.clone();
    put(&mut small, 20, &[0, 0, 0, 13]);
    put(&mut small, 79, &[16]);
    let (engine, state) = engine_and_state(&small);
    let error = open(&engine, &state, None, true).unwrap_err();
    assert_eq!(error.message(), "Unsupported subcluster size: 256");
    for len in [0, 3, 8, 71, 100] {
        let (engine, state) = engine_and_state(&good[..len]);
        assert!(open(&engine, &state, None, true).is_err(), "{len} bytes");
    }
}

#[test]
fn a_dirty_image_is_made_right_before_it_is_written() {
    let mut bytes = plain();
    bytes[79] |= 1;
    // The data cluster is not counted, another one is for nothing.
    put(&mut bytes, (2 << 16) + 2 * 5, &[0, 0, 0, 1]);
    let (engine, state) = engine_and_state(&bytes);
    assert!(open(&engine, &state, None, true).is_ok());
    assert!(*state.bytes.borrow() == bytes, "reading changes nothing");
    let node = open(&engine, &state, None, false).unwrap();
    assert_eq!(state.bytes.borrow()[79], 0);
    engine.block_on(node.write_bytes(1 << 20, &[9; 10])).unwrap().unwrap();
    engine.block_on(node.close()).unwrap().unwrap();
    let report = our_report(&state.bytes.borrow()).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
}

/// Bytes of metadata changed at random: an error or an answer, never a panic, and no memory for what is claimed.
#[test]
fn random_damage_ends_in_errors_at_worst() {
    let (folder, seed) = (Folder::new(), seed("damage"));
    let mut rng = StdRng::seed_from_u64(seed);
    for options in ["cluster_size=512", "cluster_size=4k", "compat=0.10"] {
        let good = sample(&folder, options);
        let cluster = 1 << good[23];
        let mut places = entries(&good, cluster);
        places.extend([(); 40].map(|()| rng.random_range(0..128)));
        for _ in 0..200 {
            let mut bytes = good.clone();
            for _ in 0..rng.random_range(1..4) {
                let place = places[rng.random_range(0..places.len())];
                bytes[place + rng.random_range(0..8)] = rng.random();
            }
            let _ = our_report(&bytes);
            let (engine, state) = engine_and_state(&bytes);
            let Ok(node) = open(&engine, &state, None, false) else { continue };
            let size = node.size().min(2 << 20);
            for at in (0..size).step_by(50_000) {
                let _ = engine.block_on(node.read_bytes(at, 3000)).unwrap();
                let _ = engine.block_on(node.write_bytes(at, &[1; 3000])).unwrap();
            }
            let _ = engine.block_on(node.write_zeroes(0, size / 2, true)).unwrap();
            let _ = engine.block_on(node.flush()).unwrap();
            let _ = engine.block_on(node.close()).unwrap();
        }
    }
}

#[test]
fn damage_to_a_backing_file_is_not_laid_to_the_overlays_charge() {
    let mut base = plain();
    // The first cluster's data would begin inside of a cluster.
    put(&mut base, 4 << 16, &(1 << 63 | 5 << 16 | 512u64).to_be_bytes());
    let (engine, state) = engine_and_state(&base);
    let backing = open(&engine, &state, None, true).unwrap();
    let options =
        CreateOptions { size: 4 << 20, backing_file: Some("base".into()), ..CreateOptions::default() };
    let overlay = Disk::create(Backend::Auto, &options, Some(vec![0; 4 << 20]));
    overlay.close();
    let (_, state) = engine_and_state(&overlay.bytes());
    let node = open(&engine, &state, Some(backing), false).unwrap();
    let run = |offset| engine.block_on(node.write_bytes(offset, &[9; 10])).unwrap();
    let error = run(100).unwrap_err();
    assert_eq!((error.kind(), error.file()), (Kind::Corrupt, Some("disk".as_ref())));
    run(1 << 20).unwrap();
    engine.block_on(node.close()).unwrap().unwrap();
    assert_eq!(state.bytes.borrow()[79] & 2, 0);
}
