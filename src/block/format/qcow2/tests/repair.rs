//! Repairs, and lazy refcounts: what is left dirty is made right, by us and by the real qemu-img.

use super::damaged::{entries, sample};
use super::memory::{Disk, Folder, MemoryFile, State, driver};
use super::model::seed;
use super::operations::is_dirty;
use crate::block::Result;
use crate::block::aio::{Backend, Engine};
use crate::block::filter::log_writes::{Entry, Log, LogWrites, Replay};
use crate::block::format::qcow2::{CreateOptions, Image};
use crate::block::graph::driver::{Check, CheckReport, Repair};
use crate::block::graph::{Driver, Node};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::rc::Rc;

fn field(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn set(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// The report of a check, and what it left of the file.
fn checked(engine: &Rc<Engine>, bytes: &[u8], what: Option<Repair>) -> (CheckReport, Vec<u8>) {
    let state = Rc::new(State { bytes: RefCell::new(bytes.to_vec()), ..State::default() });
    let file = MemoryFile::node(engine, &state);
    let report = engine.block_on(async {
        let image = Image::read_for_check(&file).await?.into_qcow2(engine, None, false)?;
        match what {
            Some(what) => image.repair(what).await,
            None => image.check().await,
        }
    });
    (report.unwrap().unwrap(), state.bytes.take())
}

/// An image that was repaired: the file, what was written, the report of another check.
struct Repaired {
    bytes: Vec<u8>,
    log: Vec<Entry>,
    report: CheckReport,
}

fn repair(engine: &Rc<Engine>, bytes: &[u8]) -> Result<Repaired> {
    let state = Rc::new(State { bytes: RefCell::new(bytes.to_vec()), ..State::default() });
    let log = Rc::new(Log::default());
    let file = Node::new("log", Box::new(LogWrites::new(MemoryFile::node(engine, &state), log.clone())));
    let report = engine
        .block_on(async {
            let image = Image::read_for_check(&file).await?.into_qcow2(engine, None, false)?;
            if let Some(error) = image.repair(Repair::All).await?.gave_up {
                return Err(error);
            }
            let report = image.check().await?;
            image.close().await?;
            Ok(report)
        })
        .unwrap()?;
    let bytes = state.bytes.borrow().clone();
    Ok(Repaired { bytes, log: log.entries().to_vec(), report })
}

fn is_sound(report: &CheckReport) -> bool {
    report.gave_up.is_none() && report.corruptions + report.leaks + report.check_errors == 0
}

fn content(engine: &Rc<Engine>, bytes: &[u8]) -> Option<Vec<u8>> {
    let state = Rc::new(State { bytes: RefCell::new(bytes.to_vec()), ..State::default() });
    let node = Node::new("disk", Box::new(driver(engine, &state, None, true).ok()?));
    engine.block_on(node.read_bytes(0, node.size() as usize)).unwrap().ok()
}

/// One place of metadata changed.
fn damage(good: &[u8], places: &[usize], rng: &mut StdRng) -> Vec<u8> {
    let be64 = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let mut bytes = good.to_vec();
    let place = places[rng.random_range(0..places.len())];
    match rng.random_range(0..7) {
        0 => bytes[be64(be64(48)) + rng.random_range(0..80)] = rng.random_range(0..3),
        1 => bytes[place..place + 8].fill(0),
        2 => {
            let other = places[rng.random_range(0..places.len())];
            bytes.copy_within(other..other + 8, place);
        }
        3 => bytes[place] ^= 0x80,
        4 => bytes[place + 6] ^= 0x02 << rng.random_range(0..6),
        5 => bytes[place + 7] ^= 1,
        _ => bytes[place + 2] ^= 1,
    }
    bytes
}

/// Damaged images with snapshots and compressed clusters.
fn damaged_images(folder: &Folder, options: &str, count: usize) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(seed("repair"));
    let good = sample(folder, options);
    let places = entries(&good, 1 << good[23]);
    (0..count).map(|_| damage(&good, &places, &mut rng)).collect()
}

#[test]
fn what_qemu_img_repairs_we_repair_to_the_same_content() {
    let engine = Engine::new(Backend::Auto).unwrap();
    for options in ["cluster_size=4k", "cluster_size=64k,refcount_bits=8", "compat=0.10"] {
        let folder = Folder::new();
        for (index, bytes) in damaged_images(&folder, options, 30).into_iter().enumerate() {
            folder.write("disk", &bytes);
            let theirs = folder.try_run("qemu-img check -q -f qcow2 -r all disk");
            if !theirs.status.success() {
                continue;
            }
            let ours = repair(&engine, &bytes).unwrap();
            let told: Vec<_> = ours.report.messages.iter().take(5).collect();
            assert!(is_sound(&ours.report), "{options}: {index}: {told:?}");
            folder.write("ours", &ours.bytes);
            folder.run("qemu-img check -f qcow2 ours");
            // Where content cannot be read, the repair of neither helps.
            let read = folder.try_run("qemu-img convert -f qcow2 -O raw disk content");
            if read.status.success() {
                folder.run("qemu-img compare -f qcow2 -F qcow2 disk ours");
            }
        }
    }
}

/// The snapshot has data that the live disk has no more. With its L1 offset (or size) back, it must show it.
#[test]
fn a_repair_frees_nothing_of_a_snapshot_whose_l1_table_is_lost() {
    let engine = Engine::new(Backend::Auto).unwrap();
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=4k disk 1M");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 1 0 100k'");
    folder.run("qemu-img snapshot -c one disk");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 2 0 60k'");
    let good = folder.read("disk");
    let entry = field(&good, 64);
    let offset = field(&good, entry) as u64;
    let end = (good.len() as u64).next_multiple_of(4096);
    let large = u64::from_be_bytes(good[entry + 8..entry + 16].try_into().unwrap()) | 0x7fff_ffff << 32;
    let lies =
        [(0, offset | 1 << 63), (0, offset | 1 << 56), (0, 1 << 40), (0, end), (0, offset | 512), (0, 0)];
    for (at, value) in lies.into_iter().chain([(8, large)]) {
        let mut bytes = good.clone();
        set(&mut bytes, entry + at, value);
        for what in [Repair::Leaks, Repair::All] {
            let (report, left) = checked(&engine, &bytes, Some(what));
            assert!(report.gave_up.is_some(), "{value:#x}: {report:?}");
            assert!(left == bytes, "{value:#x}: the file changed");
        }
    }
    // What qemu-img cannot read, it does not judge.
    let mut bytes = good.clone();
    set(&mut bytes, entry, offset | 1 << 63);
    folder.write("disk", &bytes);
    let theirs = String::from_utf8(folder.try_run("qemu-img check -f qcow2 disk").stderr).unwrap();
    let (ours, _) = checked(&engine, &bytes, None);
    assert!(ours.gave_up.is_some() && !ours.messages.is_empty());
    assert!(theirs.starts_with(&ours.messages.join("\n")), "{theirs}{:?}", ours.messages);
}

/// Misaligned clusters under entries without data: qemu-img drops them, and leaves the zeros as they are.
#[test]
fn a_repair_of_subclusters_shows_as_much_of_the_backing_file_as_before() {
    let engine = Engine::new(Backend::Auto).unwrap();
    let folder = Folder::new();
    folder.write("base", &[7; 1 << 20]);
    folder.run("qemu-img create -q -f qcow2 -o extended_l2=on -b base -F raw disk");
    folder.run("qemu-io -f qcow2 disk -c 'write 0 64k' -c 'write -z 64k 8k'");
    let mut bytes = folder.read("disk");
    let l2 = field(&bytes, field(&bytes, 40)) & 0xff_ffff_ffff_fe00;
    // Behind the zeros of the second cluster is backing data; all of the third is.
    for (entry, cluster) in [(1, 0x5_0200), (2, 0x5_0400)] {
        set(&mut bytes, l2 + entry * 16, 1 << 63 | cluster);
    }
    let zeros = field(&bytes, l2 + 24);
    assert_eq!(zeros, 0xf << 32);
    folder.write("disk", &bytes);
    folder.run("qemu-img check -q -f qcow2 -r all disk");
    let (report, left) = checked(&engine, &bytes, Some(Repair::All));
    assert!(report.gave_up.is_none() && report.corruptions_fixed >= 2, "{report:?}");
    assert!(left[l2 + 16..l2 + 48] == folder.read("disk")[l2 + 16..l2 + 48]);
    folder.write("ours", &left);
    folder.run("qemu-img check -q -f qcow2 ours");
    folder.run("qemu-img compare -f qcow2 -F qcow2 disk ours");
}

#[test]
fn a_repair_leaves_alone_what_an_unaligned_offset_passes_for_an_l2_table() {
    let engine = Engine::new(Backend::Auto).unwrap();
    let folder = Folder::new();
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=4k disk 3M");
    // The tables of the first and the second 2 MiB.
    folder.run("qemu-io -f qcow2 disk -c 'write -P 1 0 1M' -c 'write -P 2 2M 512k'");
    let mut bytes = folder.read("disk");
    let l1 = field(&bytes, 40);
    let table = (field(&bytes, l1) & 0xff_ffff_ffff_fe00) + 512;
    set(&mut bytes, l1, 1 << 63 | table as u64);
    let (_, left) = checked(&engine, &bytes, Some(Repair::All));
    assert!(left[table..table + 4096] == bytes[table..table + 4096], "the table changed");
    assert_eq!(field(&left, l1), field(&bytes, l1));
}

#[test]
fn a_repair_cut_short_at_any_moment_can_be_done_again() {
    let engine = Engine::new(Backend::Threads).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    for options in ["cluster_size=512", "cluster_size=4k,refcount_bits=64"] {
        for bytes in damaged_images(&Folder::new(), options, 40) {
            let Ok(whole) = repair(&engine, &bytes) else { continue };
            if !is_sound(&whole.report) {
                continue;
            }
            let expected = content(&engine, &whole.bytes);
            let mut replay = Replay::new(&whole.log, &bytes);
            loop {
                let failure = replay.power_failure(|_, _| rng.random());
                for file in [replay.killed(), &failure] {
                    let again = repair(&engine, file).unwrap();
                    assert!(is_sound(&again.report), "at {}: {:?}", replay.at(), again.report);
                    assert!(content(&engine, &again.bytes) == expected, "at {}", replay.at());
                }
                if !replay.advance() {
                    break;
                }
            }
        }
    }
}

fn lazy(size: u64) -> CreateOptions {
    CreateOptions { size, lazy_refcounts: true, ..CreateOptions::default() }
}

#[test]
fn lazy_refcounts_are_late_and_the_dirty_bit_tells_it_before() {
    let disk = Disk::create(Backend::Auto, &lazy(4 << 20), None);
    let before = disk.bytes();
    assert!(!is_dirty(&before), "a new image is clean");
    disk.run(disk.node.write_bytes(1 << 20, &[1; 1 << 20])).unwrap();
    assert!(disk.bytes() == before || !is_dirty(&disk.bytes()), "nothing relies on it yet");
    disk.run(disk.node.flush()).unwrap();
    let flushed = disk.bytes();
    assert!(is_dirty(&flushed));
    assert!(flushed[2 << 16..3 << 16] == before[2 << 16..3 << 16], "the refcounts are late");
    let folder = Folder::new();
    folder.write("dirty", &flushed);
    disk.close();
    assert!(!is_dirty(&disk.bytes()));
    folder.write("clean", &disk.bytes());
    folder.run("qemu-img check -f qcow2 clean");
    folder.run("qemu-img compare -f qcow2 -F qcow2 dirty clean");
    folder.run("qemu-img check -f qcow2 -r all dirty");
    folder.run("qemu-img compare -f qcow2 -F qcow2 dirty clean");
}

#[test]
fn lazy_refcounts_can_be_switched_on_and_off_by_whoever_opens_the_image() {
    for (by_header, by_option) in [(true, false), (false, true)] {
        let engine = Engine::new(Backend::Auto).unwrap();
        let options = CreateOptions { lazy_refcounts: by_header, ..lazy(4 << 20) };
        let disk = Disk::create(Backend::Auto, &options, None);
        disk.close();
        let state = Rc::new(State { bytes: RefCell::new(disk.bytes()), ..State::default() });
        let file = MemoryFile::node(&engine, &state);
        let mut image = engine.block_on(Image::read(&file)).unwrap().unwrap();
        image.set_lazy_refcounts(by_option).unwrap();
        let node = Node::new("disk", Box::new(image.into_qcow2(&engine, None, false).unwrap()));
        engine.block_on(node.write_bytes(0, &[1; 512])).unwrap().unwrap();
        engine.block_on(node.flush()).unwrap().unwrap();
        assert_eq!(is_dirty(&state.bytes.borrow()), by_option);
        engine.block_on(node.close()).unwrap().unwrap();
        assert!(!is_dirty(&state.bytes.borrow()));
    }
    let version_2 = CreateOptions { size: 1 << 20, version: 2, ..CreateOptions::default() };
    let disk = Disk::create(Backend::Auto, &version_2, None);
    let state = Rc::new(State { bytes: RefCell::new(disk.bytes()), ..State::default() });
    let file = MemoryFile::node(&disk.engine, &state);
    let mut image = disk.run(Image::read(&file)).unwrap();
    assert!(image.set_lazy_refcounts(true).unwrap_err().message().starts_with("Lazy refcounts require"));
}

#[test]
fn images_that_qemu_left_dirty_are_made_right_and_written() {
    for options in ["cluster_size=64k", "cluster_size=4k,refcount_bits=64", "cluster_size=512"] {
        let folder = Folder::new();
        folder.run(&format!("qemu-img create -q -f qcow2 -o lazy_refcounts=on,{options} disk 3M"));
        folder.run("qemu-io -f qcow2 disk -c 'write -P 1 0 700k'");
        folder.run("qemu-img snapshot -c one disk");
        let kill = "-c 'write -P 2 300k 900k' -c 'discard 64k 64k' -c flush -c 'write -P 3 2M 300k' -c abort";
        folder.try_run(&format!("qemu-io -f qcow2 disk {kill}"));
        let bytes = folder.read("disk");
        assert!(is_dirty(&bytes), "{options}");
        let (now, snapshot) = (folder.content("disk", ""), folder.content("disk", "-l one"));
        let disk = Disk::from_bytes(Backend::Auto, bytes, None);
        assert!(disk.read_all() == now, "{options}");
        disk.run(disk.node.write_bytes(2_900_000, &[7; 100_000])).unwrap();
        disk.close();
        folder.write("disk", &disk.bytes());
        folder.run("qemu-img check -f qcow2 disk");
        assert!(folder.content("disk", "-l one") == snapshot, "{options}");
        assert!(folder.content("disk", "") == disk.read_all(), "{options}");
    }
}
