//! Bitmaps: ours read by QEMU, QEMU's read by us, and what is left of them when we die.

use super::memory::{Disk, Folder, State, driver};
use super::model::{Model, seed};
use crate::block::Buffer;
use crate::block::aio::{Backend, Engine};
use crate::block::filter::log_writes::{Entry, Replay};
use crate::block::graph::bitmaps::{BitmapInfo, Bitmaps};
use crate::block::graph::driver::Check;
use crate::block::options::Preallocation;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

type Ranges = Vec<Range<u64>>;

static SERVERS: AtomicUsize = AtomicUsize::new(0);

/// What QEMU says is dirty, asked over NBD.
fn dirty_by_qemu(folder: &Folder, image: &str, bitmap: &str) -> Ranges {
    // A server ends some time after its client: it has a copy, and a socket that no other has.
    let number = SERVERS.fetch_add(1, Ordering::Relaxed);
    let (socket, copy) = (folder.path(&format!("socket{number}")), format!("copy{number}"));
    folder.write(&copy, &folder.read(image));
    let server = format!("qemu-nbd --fork -r -f qcow2 -B {bitmap} -k {} {copy}", socket.display());
    folder.run(&server);
    let node = "driver=nbd,server.type=unix,server.path=";
    let context = format!("x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}");
    let map =
        folder.run(&format!("qemu-img map --output=json --image-opts {node}{},{context}", socket.display()));
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let mut dirty = Ranges::new();
    for extent in map.iter().filter(|extent| !extent["data"].as_bool().unwrap()) {
        let (start, len) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        match dirty.last_mut() {
            Some(last) if last.end == start => last.end += len,
            _ => dirty.push(start..start + len),
        }
    }
    dirty
}

/// The granules of all `changes`, as ranges.
fn granules(changes: &[Range<u64>], granularity: u64, size: u64) -> Ranges {
    let all: BTreeSet<u64> =
        changes.iter().flat_map(|range| range.start / granularity..range.end.div_ceil(granularity)).collect();
    let mut ranges = Ranges::new();
    for granule in all {
        let (start, end) = (granule * granularity, ((granule + 1) * granularity).min(size));
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

fn only(range: Range<u64>) -> Ranges {
    std::iter::once(range).collect()
}

fn bitmaps(disk: &Disk) -> &dyn Bitmaps {
    disk.node.driver().bitmaps().unwrap()
}

fn dirty(disk: &Disk, name: &str) -> Ranges {
    disk.run(bitmaps(disk).dirty(name, 0, usize::MAX)).unwrap()
}

fn open(folder: &Folder, image: &str) -> Disk {
    Disk::from_bytes(Backend::Auto, folder.read(image), None)
}

/// Closes the disk and gives its bytes to QEMU's tools.
fn hand_over(folder: &Folder, disk: &Disk, image: &str) {
    disk.close();
    folder.write(image, &disk.bytes());
    folder.run(&format!("qemu-img check {image}"));
}

/// Random changes of the disk, and where they were.
fn change(disk: &Disk, rng: &mut StdRng, count: usize) -> Ranges {
    let size = disk.node.size();
    let mut changes = Ranges::new();
    for _ in 0..count {
        let start = rng.random_range(0..size);
        let len = rng.random_range(1..=200_000).min(size - start);
        changes.push(start..start + len);
        match rng.random_range(0..4) {
            0 => disk.run(disk.node.write_zeroes(start, len, rng.random())).unwrap(),
            1 => disk.run(disk.node.discard(start, len)).unwrap(),
            _ => {
                let bytes = Buffer::from_bytes(&vec![rng.random(); len as usize]);
                disk.run(disk.node.write(start, &bytes.iov(len as usize))).unwrap();
            }
        }
    }
    changes
}

#[test]
fn what_we_write_is_dirty_to_qemu_in_enabled_bitmaps_and_in_no_other() {
    for (cluster, size) in [(512, 5_000_192u64), (65536, 30 << 20), (2 << 20, 10 << 20)] {
        let (folder, mut rng) = (Folder::new(), StdRng::seed_from_u64(seed("tracked")));
        folder.run(&format!("qemu-img create -q -f qcow2 -o cluster_size={cluster} disk {size}"));
        for (name, granularity, more) in [("fine", 512, ""), ("off", 4096, "--disable"), ("big", 1 << 20, "")]
        {
            folder.run(&format!("qemu-img bitmap --add {more} -g {granularity} disk {name}"));
        }
        let mut changes = Ranges::new();
        for _ in 0..2 {
            let disk = open(&folder, "disk");
            changes.extend(change(&disk, &mut rng, 6));
            assert_eq!(dirty(&disk, "fine"), granules(&changes, 512, size));
            hand_over(&folder, &disk, "disk");
            for (name, granularity) in [("fine", 512), ("big", 1 << 20)] {
                assert_eq!(
                    dirty_by_qemu(&folder, "disk", name),
                    granules(&changes, granularity, size),
                    "{name}"
                );
            }
            assert_eq!(dirty_by_qemu(&folder, "disk", "off"), []);
        }
    }
}

#[test]
fn what_qemu_writes_is_dirty_to_us() {
    for cluster in [512, 65536] {
        let folder = Folder::new();
        folder.run(&format!("qemu-img create -q -f qcow2 -o cluster_size={cluster} disk 20M"));
        folder.run("qemu-img bitmap --add -g 512 disk fine");
        folder.run("qemu-img bitmap --add -g 128k disk coarse");
        folder.run("qemu-io -f qcow2 disk -c 'write 100k 3k' -c 'write -z 4M 5M' -c 'discard 15M 64k'");
        let changes = [100 << 10..103 << 10, 4 << 20..9 << 20, 15 << 20..(15 << 20) + 65536];
        let disk = open(&folder, "disk");
        for (name, granularity) in [("fine", 512), ("coarse", 128 << 10)] {
            assert_eq!(dirty(&disk, name), granules(&changes, granularity, 20 << 20));
            assert_eq!(dirty_by_qemu(&folder, "disk", name), dirty(&disk, name));
        }
        assert_eq!(disk.run(bitmaps(&disk).dirty("fine", 5 << 20, 1)).unwrap(), only(5 << 20..9 << 20));
    }
}

#[test]
fn operations_do_what_qemus_do() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 20M");
    let disk = open(&folder, "disk");
    let all = bitmaps(&disk);
    disk.run(all.add("a", Some(512), true)).unwrap();
    disk.run(disk.node.write_bytes(70_000, &[1; 600])).unwrap();
    // While "a" is in use by us.
    disk.run(all.add("b", None, true)).unwrap();
    disk.run(disk.node.write_bytes(1_000_000, &[1; 600])).unwrap();
    disk.run(all.set_enabled("b", false)).unwrap();
    disk.run(disk.node.write_bytes(5_000_000, &[1; 600])).unwrap();
    disk.run(all.add("gone", Some(2 << 30), false)).unwrap();
    disk.run(all.add("all", Some(4096), false)).unwrap();
    disk.run(all.merge("all", all, "b")).unwrap();
    disk.run(all.remove("gone")).unwrap();
    hand_over(&folder, &disk, "disk");
    let info = folder.run("qemu-img info --output=json disk");
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let expected = serde_json::json!([
        {"name": "a", "granularity": 512, "flags": ["auto"]},
        {"name": "b", "granularity": 65536, "flags": []},
        {"name": "all", "granularity": 4096, "flags": []},
    ]);
    assert_eq!(info["format-specific"]["data"]["bitmaps"], expected);
    let written = [70_000..70_600, 1_000_000..1_000_600, 5_000_000..5_000_600];
    assert_eq!(dirty_by_qemu(&folder, "disk", "a"), granules(&written, 512, 20 << 20));
    let coarse = granules(&written[1..2], 65536, 20 << 20);
    for name in ["b", "all"] {
        assert_eq!(dirty_by_qemu(&folder, "disk", name), coarse);
    }
    folder.run("qemu-img bitmap --merge a disk all");
    let disk = open(&folder, "disk");
    let merged = [granules(&written, 4096, 20 << 20), coarse].concat();
    assert_eq!(dirty(&disk, "all"), granules(&merged, 4096, 20 << 20));
    disk.run(bitmaps(&disk).clear("all")).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(dirty_by_qemu(&folder, "disk", "all"), []);
    let disk = open(&folder, "disk");
    ["a", "b", "all"].iter().for_each(|name| disk.run(bitmaps(&disk).remove(name)).unwrap());
    hand_over(&folder, &disk, "disk");
    assert!(!folder.run("qemu-img info disk").contains("bitmaps"));
    assert_eq!(disk.bytes()[88..96], [0; 8]);
}

#[test]
fn a_full_bitmap_takes_no_cluster_of_bits_and_qemu_reads_it() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=512 disk 3M");
    folder.run("qemu-img bitmap --add -g 512 disk full");
    let disk = open(&folder, "disk");
    disk.run(disk.node.write_zeroes(0, 3 << 20, true)).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(dirty_by_qemu(&folder, "disk", "full"), only(0..3 << 20));
    assert_eq!(dirty(&open(&folder, "disk"), "full"), only(0..3 << 20));
}

#[test]
fn what_is_refused_is_refused_in_qemus_words() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 4T");
    folder.run("qemu-img create -q -f qcow2 -o compat=0.10 old 1M");
    folder.run("qemu-img create -q -f qcow2 small 1M");
    folder.run("qemu-img bitmap --add disk x");
    folder.run("qemu-img bitmap --add small x");
    let (disk, old, small) = (open(&folder, "disk"), open(&folder, "old"), open(&folder, "small"));
    let all = bitmaps(&disk);
    let long = "n".repeat(1024);
    let persistent =
        |name: &str, why: &str| format!("Can't make bitmap '{name}' persistent in 'faults': {why}");
    let cases = [
        (disk.run(all.add("", None, true)), "Bitmap name cannot be empty".to_owned()),
        (disk.run(all.add("y", Some(0), true)), "Granularity must be power of 2 and at least 512".to_owned()),
        (disk.run(all.add("y", Some(3000), true)), "Granularity must be power of 2 and at least 512".to_owned()),
        (disk.run(all.add("y", Some(4 << 30), true)), "Granularity must be power of 2 and at least 512".to_owned()),
        (disk.run(all.add("x", None, true)), "Bitmap already exists: x".to_owned()),
        (disk.run(all.add(&long, None, true)), persistent(&long, "Name length exceeds maximum (1023 characters)")),
        (
            disk.run(all.add("y", Some(512), true)),
            persistent("y", "Too much space will be occupied by the bitmap. Use larger granularity"),
        ),
        (old.run(bitmaps(&old).add("y", None, true)), persistent("y", "Cannot store dirty bitmaps in qcow2 v2 files")),
        (disk.run(all.remove("y")), "Dirty bitmap 'y' not found".to_owned()),
        (disk.run(all.clear("y")), "Dirty bitmap 'y' not found".to_owned()),
        (disk.run(all.merge("x", all, "y")), "Dirty bitmap 'y' not found".to_owned()),
        (
            disk.run(all.merge("x", bitmaps(&small), "x")),
            "Bitmaps are of different sizes (destination size is 4398046511104, source size is 1048576) and can't be \
             merged"
                .to_owned(),
        ),
    ];
    for (result, message) in cases {
        assert_eq!(result.unwrap_err().message(), message);
    }
}

#[test]
fn a_kill_leaves_enabled_bitmaps_in_use_and_the_others_valid() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 20M");
    folder.run("qemu-img bitmap --add disk on");
    folder.run("qemu-img bitmap --add --disable disk off");
    let disk = open(&folder, "disk");
    disk.run(disk.node.write_bytes(0, &[1])).unwrap();
    folder.write("disk", &disk.bytes());
    let info = folder.run("qemu-img info disk");
    assert_eq!(info.matches("in-use").count(), 1, "{info}");
    assert_eq!(dirty_by_qemu(&folder, "disk", "off"), []);
    let disk = open(&folder, "disk");
    let states: Vec<_> = bitmaps(&disk).list().iter().map(|info| (info.in_use, info.inconsistent)).collect();
    assert_eq!(states, [(true, true), (false, false)]);
    let unusable = "Bitmap 'on' is inconsistent and cannot be used\n\
                    Try block-dirty-bitmap-remove to delete this bitmap from disk";
    assert_eq!(disk.run(bitmaps(&disk).clear("on")).unwrap_err().message(), unusable);
    assert_eq!(disk.run(disk.node.truncate(30 << 20, Preallocation::Off)).unwrap_err().message(), unusable);
    disk.run(disk.node.write_bytes(5 << 20, &[1])).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(folder.run("qemu-img info disk").matches("in-use").count(), 1);
    let disk = open(&folder, "disk");
    disk.run(bitmaps(&disk).remove("on")).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(folder.run("qemu-img info disk").matches("in-use").count(), 0);
}

#[test]
fn bitmaps_that_others_made_stale_are_no_bitmaps() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 20M");
    folder.run("qemu-img bitmap --add disk old");
    let mut bytes = folder.read("disk");
    bytes[95] = 0x80;
    folder.write("disk", &bytes);
    let disk = open(&folder, "disk");
    assert_eq!(bitmaps(&disk).list(), []);
    disk.run(disk.node.write_bytes(0, &[1])).unwrap();
    disk.close();
    assert_eq!(disk.bytes()[88..96], [0; 8]);
    let disk = open(&folder, "disk");
    disk.run(bitmaps(&disk).add("new", None, true)).unwrap();
    disk.close();
    assert_eq!(disk.bytes()[88..96], [0, 0, 0, 0, 0, 0, 0, 1]);
    folder.write("disk", &disk.bytes());
    assert!(folder.run("qemu-img info disk").contains("name: new"));
}

#[test]
fn unknown_autoclear_bits_go_and_that_of_the_bitmaps_stays() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 20M");
    folder.run("qemu-img bitmap --add disk one");
    let mut bytes = folder.read("disk");
    bytes[95] = 0x81;
    let disk = Disk::from_bytes(Backend::Auto, bytes, None);
    disk.run(disk.node.write_bytes(0, &[1])).unwrap();
    assert_eq!(disk.bytes()[95], 1);
}

#[test]
fn bitmaps_grow_with_the_disk_and_what_is_added_is_clean() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=512 disk 1M");
    folder.run("qemu-img bitmap --add -g 512 disk on");
    folder.run("qemu-img bitmap --add -g 64k --disable disk off");
    folder.run("qemu-io -f qcow2 disk -c 'write 1000k 24k'");
    let disk = open(&folder, "disk");
    disk.run(disk.node.truncate(9 << 20, Preallocation::Off)).unwrap();
    disk.run(disk.node.write_bytes(8 << 20, &[1; 512])).unwrap();
    hand_over(&folder, &disk, "disk");
    let expected = [1000 << 10..1 << 20, 8 << 20..(8 << 20) + 512];
    assert_eq!(dirty_by_qemu(&folder, "disk", "on"), expected);
    assert_eq!(dirty_by_qemu(&folder, "disk", "off"), []);
}

#[test]
fn bitmaps_shrink_with_the_disk_and_what_is_added_again_is_clean() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=512 disk 9M");
    folder.run("qemu-img bitmap --add -g 512 disk on");
    folder.run("qemu-io -f qcow2 disk -c 'write 0 9M'");
    let disk = open(&folder, "disk");
    disk.run(disk.node.truncate(1 << 20, Preallocation::Off)).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(dirty_by_qemu(&folder, "disk", "on"), std::slice::from_ref(&(0..1 << 20)));
    let disk = open(&folder, "disk");
    disk.run(disk.node.truncate((1 << 20) - 512, Preallocation::Off)).unwrap();
    disk.run(disk.node.truncate(2 << 20, Preallocation::Off)).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(dirty_by_qemu(&folder, "disk", "on"), std::slice::from_ref(&(0..(1 << 20) - 512)));
}

/// Calls `judge` with all files that a kill at any moment of the log leaves, and with one of those that a power
/// failure may leave.
fn die_everywhere(initial: &[u8], log: &[Entry], rng: &mut StdRng, mut judge: impl FnMut(usize, Vec<u8>)) {
    let mut replay = Replay::new(log, initial);
    loop {
        judge(replay.at(), replay.killed().to_vec());
        judge(replay.at(), replay.power_failure(|_, _| rng.random()));
        if !replay.advance() {
            return;
        }
    }
}

/// What a crash left.
struct Left {
    infos: Vec<BitmapInfo>,
    /// Of those that are not in use.
    dirty: Vec<Option<Ranges>>,
    content: Vec<u8>,
}

fn after_crash(bytes: Vec<u8>) -> Left {
    let engine = Engine::new(Backend::Threads).unwrap();
    let state = Rc::new(State { bytes: RefCell::new(bytes), ..State::default() });
    let image = driver(&engine, &state, None, true).unwrap();
    engine
        .block_on(async {
            let report = image.check().await.unwrap();
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.messages);
            let (infos, mut dirty) = (image.list(), Vec::new());
            for info in &infos {
                dirty.push(match info.in_use {
                    true => None,
                    false => Some(image.dirty(&info.name, 0, usize::MAX).await.unwrap()),
                });
            }
            let node = crate::block::graph::Node::new("disk", Box::new(image));
            let content = node.read_bytes(0, node.size() as usize).await.unwrap();
            Left { infos, dirty, content }
        })
        .unwrap()
}

#[test]
fn death_at_any_moment_leaves_no_bitmap_that_looks_valid_and_misses_a_change() {
    let (folder, seed) = (Folder::new(), seed("bitmap death"));
    let mut rng = StdRng::seed_from_u64(seed);
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=512 disk 200k");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 7 0 150k'");
    folder.run("qemu-img bitmap --add -g 512 disk on");
    folder.run("qemu-img bitmap --add -g 4k disk coarse");
    let initial = folder.read("disk");
    let mut model = Model::new(open(&folder, "disk"), 512, seed);
    let before = model.content.clone();
    for _ in 0..3 {
        (0..6).for_each(|_| model.step());
        model.disk.reopen();
    }
    model.disk.close();
    let log = model.disk.log.entries().to_vec();
    die_everywhere(&initial, &log, &mut rng, |at, file| {
        let left = after_crash(file);
        assert_eq!(left.infos.len(), 2);
        for dirty in left.dirty.iter().flatten() {
            for (byte, _) in before.iter().zip(&left.content).enumerate().filter(|(_, (a, b))| a != b) {
                let byte = byte as u64;
                assert!(dirty.iter().any(|range| range.contains(&byte)), "at {at}: byte {byte}");
            }
        }
    });
    assert!(after_crash(model.disk.bytes()).dirty.iter().all(Option::is_some));
}

#[test]
fn death_within_an_operation_leaves_the_old_or_the_new_bitmaps() {
    let mut rng = StdRng::seed_from_u64(seed("operations"));
    // In the larger cluster the extension and the autoclear bit lie in two sectors.
    for cluster in [512, 65536] {
        dies_well_in_operations(cluster, &mut rng);
    }
}

fn dies_well_in_operations(cluster: u64, rng: &mut StdRng) {
    let folder = Folder::new();
    folder.run(&format!("qemu-img create -q -f qcow2 -o cluster_size={cluster} disk 3M"));
    folder.run("qemu-img bitmap --add -g 512 disk first");
    folder.run("qemu-io -f qcow2 disk -c 'write 1M 100k' -c 'write 2M 3k'");
    let mut disk = open(&folder, "disk");
    for operation in 0..8 {
        disk.reopen();
        disk.log.clear();
        let initial = disk.bytes();
        let all = bitmaps(&disk);
        let done = async {
            match operation {
                0 => all.add("second", Some(4096), false).await,
                1 => all.merge("second", all, "first").await,
                2 => all.set_enabled("second", true).await,
                3 => all.clear("first").await,
                4 => all.remove("first").await,
                5 => all.add("third", None, true).await,
                6 => {
                    all.remove("second").await?;
                    all.remove("third").await
                }
                _ => all.add("again", None, true).await,
            }
        };
        disk.run(done).unwrap();
        disk.close();
        let log = disk.log.entries().to_vec();
        let state = |bytes: Vec<u8>| {
            let left = after_crash(bytes);
            (left.infos, left.dirty)
        };
        let (old, new) = (state(initial.clone()), state(disk.bytes()));
        assert_ne!(old, new);
        die_everywhere(&initial, &log, rng, |at, file| {
            let now = state(file);
            let between = operation == 6 && now.0.len() == 1;
            assert!(now == old || now == new || between, "operation {operation} at {at}: {:?}", now.0);
        });
    }
}

#[test]
fn an_error_at_any_request_leaves_bitmaps_that_can_be_trusted() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=512 disk 1M");
    folder.run("qemu-img bitmap --add -g 512 disk on");
    let initial = folder.read("disk");
    for fail in 0..60 {
        let disk = Disk::from_bytes(Backend::Auto, initial.clone(), None);
        disk.fail_after(fail, libc::ENOSPC);
        let written = disk.run(disk.node.write_bytes(5000, &[1; 3000])).is_ok();
        let added = disk.run(bitmaps(&disk).add("new", None, true)).is_ok();
        disk.recover();
        disk.run(disk.node.write_bytes(9000, &[1; 30])).unwrap();
        disk.close();
        let left = after_crash(disk.bytes());
        assert!(left.infos.len() == 2 || !added, "fail {fail}");
        assert_eq!(left.infos.len(), bitmaps(&disk).list().len(), "fail {fail}");
        if let Some(dirty) = &left.dirty[0] {
            assert!(!written || dirty[0].contains(&5000), "fail {fail}: {dirty:?}");
            assert!(dirty.iter().any(|range| range.contains(&9000)), "fail {fail}: {dirty:?}");
        }
    }
}

/// Where the header extension's data, the directory and the first table stand.
fn places(bytes: &[u8]) -> [usize; 3] {
    let field = |at: usize, len: usize| {
        bytes[at..at + len].iter().fold(0, |value, &byte| value << 8 | usize::from(byte))
    };
    let mut at = field(100, 4);
    while field(at, 4) != 0x2385_2875 {
        at += 8 + field(at + 4, 4).next_multiple_of(8);
    }
    let directory = field(at + 8 + 16, 8);
    [at + 8, directory, field(directory, 8)]
}

#[test]
fn directories_that_break_a_rule_are_refused_in_qemus_words() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 10M");
    folder.run("qemu-img bitmap --add disk one");
    folder.run("qemu-img bitmap --add -g 512 disk two");
    let good = folder.read("disk");
    let cases: [(usize, usize, usize, u64); 24] = [
        (0, 0, 4, 0),
        (0, 0, 4, 65536),
        (0, 0, 4, 3),
        (0, 0, 4, 1),
        (0, 4, 4, 7),
        (0, 8, 8, 0),
        (0, 8, 8, 1 << 30),
        (0, 8, 8, 56),
        (0, 8, 8, u64::MAX),
        (0, 16, 8, 0),
        (0, 16, 8, 0x123),
        (0, 16, 8, 1 << 38),
        (1, 0, 8, 0),
        (1, 0, 8, 0x201),
        (1, 8, 4, 0),
        (1, 8, 4, 1 << 28),
        (1, 12, 4, 8),
        (1, 12, 4, 4),
        (1, 16, 1, 0),
        (1, 17, 1, 8),
        (1, 17, 1, 32),
        (1, 18, 2, 1024),
        (1, 20, 4, 8),
        (1, 20, 4, u32::MAX as u64),
    ];
    for (place, offset, width, value) in cases {
        let mut bytes = good.clone();
        let at = places(&good)[place] + offset;
        bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        folder.write("broken", &bytes);
        let real = folder.try_run("qemu-img check -f qcow2 broken");
        let real = String::from_utf8(real.stderr).unwrap();
        let engine = Engine::new(Backend::Threads).unwrap();
        let state = Rc::new(State { bytes: RefCell::new(bytes), ..State::default() });
        let ours = driver(&engine, &state, None, true).err().unwrap();
        assert!(real.contains(ours.message()), "{place} {offset} {value:#x}: {real}{}", ours.message());
    }
}

#[test]
fn bitmaps_that_cannot_be_read_are_left_in_use_and_the_guest_goes_on() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 10M");
    folder.run("qemu-img bitmap --add disk one");
    let good = folder.read("disk");
    for (place, offset, value) in
        [(1, 0, 1u64 << 38), (2, 0, 2), (2, 0, 0x201), (2, 0, 1 << 38), (2, 0, 1 << 63)]
    {
        let mut bytes = good.clone();
        let at = places(&good)[place] + offset;
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        let disk = Disk::from_bytes(Backend::Auto, bytes, None);
        let read = disk.run(bitmaps(&disk).dirty("one", 0, 1));
        disk.run(disk.node.write_bytes(0, &[1])).unwrap();
        disk.close();
        let info = &bitmaps(&disk).list()[0];
        assert_eq!(info.inconsistent, read.is_err(), "{value:#x}");
    }
}

#[test]
fn bitmaps_that_share_their_clusters_do_not_fill_the_memory() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=4k disk 8G");
    folder.run("qemu-img bitmap --add -g 512 disk one");
    folder.run("qemu-io -f qcow2 disk -c 'write 0 1'");
    let mut bytes = folder.read("disk");
    let [_, directory, table] = places(&bytes);
    let entries = u32::from_be_bytes(bytes[directory + 8..directory + 12].try_into().unwrap()) as usize;
    let shared = bytes[table..table + 8].to_vec();
    (0..entries).for_each(|at| bytes[table + at * 8..table + at * 8 + 8].copy_from_slice(&shared));
    let disk = Disk::from_bytes(Backend::Auto, bytes, None);
    disk.run(disk.node.write_bytes(0, &[1])).unwrap();
    assert!(bitmaps(&disk).list()[0].inconsistent);
}

#[test]
fn a_bitmap_merges_up_to_the_end_of_a_disk_that_ends_within_a_granule() {
    let folder = Folder::new();
    let size = (1 << 20) + 512;
    folder.run(&format!("qemu-img create -q -f qcow2 disk {size}"));
    folder.run("qemu-img bitmap --add disk from");
    folder.run("qemu-img bitmap --add --disable disk to");
    folder.run("qemu-io -f qcow2 disk -c 'write 0 1k' -c 'write 1M 512'");
    let disk = open(&folder, "disk");
    disk.run(bitmaps(&disk).merge("to", bitmaps(&disk), "from")).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(dirty_by_qemu(&folder, "disk", "to"), [0..64 << 10, 1 << 20..size]);
}

/// QEMU grows the disk and loses the bitmap when it closes the image.
#[test]
fn a_disk_does_not_grow_over_what_its_bitmaps_can_hold() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 disk 1T");
    folder.run("qemu-img bitmap --add -g 512 disk fine");
    folder.run("qemu-img bitmap --add -g 64k --disable disk coarse");
    let disk = open(&folder, "disk");
    disk.run(disk.node.write_bytes(5 << 30, &[1; 512])).unwrap();
    let error = disk.run(disk.node.truncate(3 << 40, Preallocation::Off)).unwrap_err();
    let constraint = "Too much space will be occupied by the bitmap. Use larger granularity";
    assert_eq!(error.message(), format!("Bitmap 'fine' doesn't satisfy the constraints: {constraint}"));
    assert_eq!(disk.node.size(), 1 << 40);
    hand_over(&folder, &disk, "disk");
    assert_eq!(dirty_by_qemu(&folder, "disk", "fine"), only(5 << 30..(5 << 30) + 512));
    folder.run("cp disk theirs");
    let real = folder.try_run("qemu-img resize -q theirs 3T");
    assert!(String::from_utf8(real.stderr).unwrap().contains(error.message()));
    let disk = open(&folder, "disk");
    disk.run(disk.node.truncate(2 << 40, Preallocation::Off)).unwrap();
    hand_over(&folder, &disk, "disk");
    assert_eq!(dirty_by_qemu(&folder, "disk", "fine"), only(5 << 30..(5 << 30) + 512));
}

/// Whether the corrupt bit is set.
fn is_marked(disk: &Disk) -> bool {
    disk.bytes()[79] & 2 != 0
}

#[test]
fn bitmaps_that_would_be_written_over_other_metadata_mark_the_image_as_corrupt() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=4k disk 8M");
    folder.run("qemu-io -f qcow2 disk -c 'write 0 1k'");
    folder.run("qemu-img bitmap --add disk one");
    let good = folder.read("disk");
    let [_, directory, _] = places(&good);
    let l1 = u64::from_be_bytes(good[40..48].try_into().unwrap()) as usize;
    // The directory stands where an L2 table does.
    let mut bytes = good.clone();
    bytes[l1 + 24..l1 + 32].copy_from_slice(&(1 << 63 | directory as u64).to_be_bytes());
    let disk = Disk::from_bytes(Backend::Auto, bytes, None);
    let error = disk.run(disk.node.write_bytes(0, &[1])).unwrap_err();
    assert!(error.message().contains("overlaps with active L2 table"), "{error}");
    assert!(is_marked(&disk));
    // The cluster of an L2 table passes for free, and is given to a bitmap.
    let table = u64::from_be_bytes(good[l1..l1 + 8].try_into().unwrap()) as usize & 0xff_ffff_ffff_fe00;
    let refcounts = u64::from_be_bytes(good[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(good[refcounts..refcounts + 8].try_into().unwrap()) as usize;
    let mut bytes = good.clone();
    bytes[block + table / 4096 * 2..][..2].fill(0);
    let disk = Disk::from_bytes(Backend::Auto, bytes, None);
    let error = disk.run(bitmaps(&disk).add("two", None, false)).unwrap_err();
    assert!(error.message().contains("overlaps with active L2 table"), "{error}");
    assert!(is_marked(&disk));
}
