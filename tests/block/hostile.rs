//! Images that lie: every field of every structure set to every value that is known to hurt.
//!
//! Each case opens the image, asks everything of it and then writes to it. Whatever the answers are, they must
//! come: no panic, no endless loop, and never more than [`MEMORY`] bytes at a time.

use crate::fixture::Folder;
use cowvm::block::Buffer;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// No image makes a thread hold more than this many bytes.
const MEMORY: usize = 256 << 20;
/// What takes longer than this hangs.
const HANGS: Duration = Duration::from_secs(60);

/// Counts what each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn held(change: impl FnOnce(usize) -> usize) {
    // A thread that is ending counts no more.
    let _ = HELD.try_with(|held| {
        held.set(change(held.get()));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: all requests go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        held(|held| held.saturating_add(layout.size()));
        // SAFETY: the caller's promises are the ones that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        held(|held| held.saturating_add(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        held(|held| held.saturating_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The case that each test works on, and since when: for the watchdog.
static RUNNING: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

fn watch() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let running = RUNNING.lock().unwrap();
            if let Some((case, _)) = running.iter().find(|(_, since)| since.elapsed() > HANGS) {
                eprintln!("{case}: still not done");
                std::process::abort();
            }
        }
    });
}

/// Runs one case under the watchdog and the limit of memory.
fn guarded(case: &str, work: impl FnOnce()) {
    let entry = (case.to_owned(), Instant::now());
    RUNNING.lock().unwrap().push(entry.clone());
    let before = HELD.get();
    PEAK.set(before);
    work();
    let used = PEAK.get().saturating_sub(before);
    RUNNING.lock().unwrap().retain(|other| *other != entry);
    assert!(used < MEMORY, "{case}: took {used} bytes");
}

fn be(bytes: &[u8], field: &Range<usize>) -> u64 {
    bytes[field.clone()].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn with_field(bytes: &[u8], field: &Range<usize>, value: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let width = field.len();
    bytes[field.clone()].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    bytes
}

/// A run of fields that follow one another.
fn fields(start: usize, widths: &[usize]) -> Vec<Range<usize>> {
    let ends = widths.iter().scan(start, |at, width| {
        *at += width;
        Some(*at)
    });
    ends.zip(widths).map(|(end, width)| end - width..end).collect()
}

/// The structures of an image: where its fields and tables are, read from the image itself.
struct Anatomy {
    fields: Vec<Range<usize>>,
    tables: Vec<u64>,
    cluster: usize,
}

impl Anatomy {
    fn of(bytes: &[u8]) -> Anatomy {
        let field = |at: usize, width: usize| be(bytes, &(at..at + width)) as usize;
        let cluster = 1 << field(20, 4);
        let (l1, refcount_table, snapshots) = (field(40, 8), field(48, 8), field(64, 8));
        let header = if field(4, 4) >= 3 { field(100, 4) } else { 72 };
        let mut found = fields(0, &[4, 4, 8, 4, 4, 8, 4, 4, 8, 8, 4, 4, 8]);
        if header > 72 {
            found.extend(fields(72, &[8, 8, 8, 4, 4, 1]));
        }
        found.extend(extensions(bytes, header));
        let used = |table: usize, len: usize| used_entries(bytes, table, len);
        let l1_entries = used(l1, field(36, 4) * 8);
        let l2_tables: Vec<usize> = l1_entries.iter().map(|at| offset_in(bytes, at)).collect();
        let blocks: Vec<usize> =
            used(refcount_table, cluster).iter().map(|at| offset_in(bytes, at)).collect();
        found.extend(l1_entries);
        found.extend(l2_tables.iter().flat_map(|&table| used(table, cluster)));
        found.extend(used(refcount_table, cluster));
        found.extend(blocks.iter().flat_map(|&block| used(block, 64)));
        if field(60, 4) > 0 {
            found.extend(fields(snapshots, &[8, 4, 2, 2, 4, 4, 8, 4, 4, 8, 8, 8]));
            found.extend(used(field(snapshots, 8), field(snapshots + 8, 4) * 8));
        }
        let tables = [l1, refcount_table, snapshots].into_iter().chain(l2_tables).chain(blocks);
        Anatomy { fields: found, tables: tables.map(|at| at as u64).collect(), cluster }
    }

    /// What a field is set to: the ends of its range, near misses, and the places of other structures.
    fn values(&self, old: u64, width: usize, file: u64) -> Vec<u64> {
        let max = u64::MAX >> (64 - 8 * width);
        let flags = old & 0xff00_0000_0000_0000;
        let end = file.next_multiple_of(self.cluster as u64);
        let mut values =
            vec![0, 1, max, max - 1, max >> 1, old ^ 1, old.wrapping_add(512), old.wrapping_sub(1)];
        if width == 8 {
            let places = self.tables.iter().copied().chain([end, end << 8, 1 << 55, 1 << 62]);
            values.extend(places.map(|place| flags | place));
        }
        values.retain(|&value| value <= max && value != old);
        values.sort_unstable();
        values.dedup();
        values
    }
}

fn offset_in(bytes: &[u8], entry: &Range<usize>) -> usize {
    (be(bytes, entry) & 0x00ff_ffff_ffff_fe00) as usize
}

/// The 8-byte entries of a table that hold something, a few of them.
fn used_entries(bytes: &[u8], table: usize, len: usize) -> Vec<Range<usize>> {
    let end = bytes.len().min(table + len);
    let all = (table..end.saturating_sub(7)).step_by(8).map(|at| at..at + 8);
    all.filter(|entry| be(bytes, entry) != 0).take(6).collect()
}

/// Types, lengths and the first words of all header extensions.
fn extensions(bytes: &[u8], mut at: usize) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    while be(bytes, &(at..at + 4)) != 0 {
        let len = be(bytes, &(at + 4..at + 8)) as usize;
        found.extend(fields(at, &[4, 4]));
        found.extend(fields(at + 8, &vec![8; (len / 8).min(4)]));
        at += 8 + len.next_multiple_of(8);
    }
    found
}

/// An image under test, in a file that is rewritten for every case.
struct Subject {
    folder: Folder,
    good: Vec<u8>,
    options: OpenOptions,
}

impl Subject {
    fn new(name: &str) -> Subject {
        let folder = Folder::new();
        make(&folder, name);
        let good = std::fs::read(folder.path("disk")).unwrap();
        let options =
            OpenOptions { format: Some("qcow2".into()), force_share: true, ..OpenOptions::default() };
        Subject { folder, good, options }
    }

    fn open(&self, bytes: &[u8], read_only: bool) -> Option<(Rc<Engine>, Rc<Node>)> {
        let path = self.folder.path("disk");
        std::fs::write(&path, bytes).unwrap();
        let engine = Engine::new(Backend::Threads).unwrap();
        let options = OpenOptions { read_only, unmap: true, ..self.options.clone() };
        let node = engine.block_on(open(&engine, path.to_str().unwrap(), &options)).unwrap();
        node.ok().map(|node| (engine, node))
    }

    fn survives(&self, case: &str, bytes: &[u8]) {
        guarded(case, || {
            if let Some((engine, node)) = self.open(bytes, true) {
                engine.block_on(ask_everything(&node)).unwrap();
            }
            if let Some((engine, node)) = self.open(bytes, false) {
                engine.block_on(change_everything(&node)).unwrap();
            }
        });
    }
}

/// Answers do not matter here, only that they come.
async fn ask_everything(node: &Rc<Node>) {
    let size = node.size();
    for at in [0, 64 << 10, 300 << 10, size.saturating_sub(64 << 10)] {
        let _ = node.read_bytes(at, 64 << 10).await;
    }
    let mut at = 0;
    for _ in 0..64 {
        let Ok(status) = node.block_status(at, size.saturating_sub(at)).await else { break };
        at += status.len;
    }
    let _ = node.driver().specifics();
    if let Some(checker) = node.driver().checker() {
        let _ = checker.check().await;
    }
    let _ = node.close().await;
}

async fn change_everything(node: &Rc<Node>) {
    let size = node.size();
    let data = Buffer::from_bytes(&[0x77; 70_000]).iov(70_000);
    for at in [1000, 130 << 10, 512 << 10, 900 << 10, size.saturating_sub(70_000)] {
        let _ = node.write(at, &data).await;
    }
    let _ = node.write_zeroes(300 << 10, 100 << 10, true).await;
    let _ = node.discard(0, 64 << 10).await;
    let _ = node.flush().await;
    let _ = node.truncate(size.saturating_add(1 << 20), cowvm::block::options::Preallocation::Off).await;
    let _ = node.close().await;
}

/// The kinds of image, by name: small ones with as many structures as can be.
const IMAGES: [&str; 4] = ["v2", "v3", "small-clusters", "overlay"];

fn make(folder: &Folder, name: &str) {
    let options = match name {
        "v2" => "compat=0.10",
        "small-clusters" => "cluster_size=512",
        _ => "cluster_size=4k",
    };
    folder.qemu_img(&format!("create -q -f qcow2 -o {options} plain 1M"));
    folder.qemu_io("qcow2", "plain", &["write -P 1 0 100k", "write -P 2 300k 50k"]);
    match name {
        "overlay" => folder.qemu_img(&format!("create -q -f qcow2 -b plain -F qcow2 -o {options} disk")),
        _ => folder.qemu_img(&format!("convert -c -f qcow2 -O qcow2 -o {options} plain disk")),
    };
    folder.qemu_io("qcow2", "disk", &["write -P 3 120k 90k", "write -P 4 512k 90k", "write -z 700k 64k"]);
    folder.qemu_img("snapshot -c one disk");
    folder.qemu_io("qcow2", "disk", &["write -P 5 130k 10k", "write -P 6 900k 50k"]);
}

#[test]
fn every_field_may_have_any_value() {
    watch();
    for name in IMAGES {
        let subject = Subject::new(name);
        let anatomy = Anatomy::of(&subject.good);
        for field in &anatomy.fields {
            let old = be(&subject.good, field);
            for value in anatomy.values(old, field.len(), subject.good.len() as u64) {
                let case = format!("{name}: bytes {field:?} set from {old:#x} to {value:#x}");
                subject.survives(&case, &with_field(&subject.good, field, value));
            }
        }
    }
}

/// An image with its bitmap directory and the tables, to be lied about.
fn with_bitmaps(create: &str, granularity: u64, count: usize) -> (Folder, Vec<u8>, usize) {
    let folder = Folder::new();
    folder.qemu_img(&format!("create -q -f qcow2 {create}"));
    for number in 0..count {
        folder.qemu_img(&format!("bitmap --add -g {granularity} disk bitmap{number}"));
    }
    let bytes = std::fs::read(folder.path("disk")).unwrap();
    let mut at = be(&bytes, &(100..104)) as usize;
    while be(&bytes, &(at..at + 4)) != 0x2385_2875 {
        at += 8 + (be(&bytes, &(at + 4..at + 8)) as usize).next_multiple_of(8);
    }
    (folder, bytes, at + 8)
}

/// Opens an image and writes a byte.
fn writes_within_limits(case: &str, folder: Folder, bytes: Vec<u8>) {
    watch();
    let options = OpenOptions { format: Some("qcow2".into()), ..OpenOptions::default() };
    let subject = Subject { folder, good: bytes, options };
    let begun = Instant::now();
    guarded(case, || {
        let (engine, node) = subject.open(&subject.good, false).unwrap();
        let _ = engine.block_on(node.write(0, &Buffer::from_bytes(&[1]).iov(1))).unwrap();
    });
    println!("{case}: {:?}", begun.elapsed());
}

#[test]
fn bitmaps_that_say_all_bits_are_set_take_little() {
    let (folder, mut bytes, extension) = with_bitmaps("disk 2T", 512, 10);
    let directory = be(&bytes, &(extension + 16..extension + 24)) as usize;
    let (table, entries) =
        (be(&bytes, &(directory..directory + 8)), be(&bytes, &(directory + 8..directory + 12)));
    for entry in 0..entries as usize {
        bytes[table as usize + entry * 8 + 7] = 1;
    }
    // All have that table: 24 bytes, 7 of a name, padding.
    for bitmap in 0..10 {
        bytes = with_field(&bytes, &(directory + bitmap * 32..directory + bitmap * 32 + 8), table);
    }
    writes_within_limits("bitmaps that are full", folder, bytes);
}

#[test]
fn as_many_bitmaps_as_there_can_be_take_little() {
    for name_len in [8, 1000] {
        let (folder, mut bytes, extension) = with_bitmaps("-o cluster_size=512 disk 1M", 4096, 1);
        let directory = be(&bytes, &(extension + 16..extension + 24)) as usize;
        let first = bytes[directory..directory + 24].to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let start = bytes.len();
        for number in 0..65535 {
            bytes.extend(with_field(&first, &(18..20), name_len));
            bytes.extend(format!("{number:0width$}", width = name_len as usize).bytes());
        }
        let fields = [(0, 4, 65535), (8, 8, bytes.len() - start), (16, 8, start)];
        for (at, width, value) in fields {
            let at = extension + at;
            bytes = with_field(&bytes, &(at..at + width), value as u64);
        }
        writes_within_limits(&format!("bitmaps with names of {name_len} bytes"), folder, bytes);
    }
}

/// Entries of a snapshot table up to its limit of 64 MiB, most of them names.
#[test]
fn a_check_of_snapshots_with_long_names_takes_little() {
    watch();
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 disk 1M");
    folder.qemu_img("snapshot -c one disk");
    let mut bytes = std::fs::read(folder.path("disk")).unwrap();
    let table = be(&bytes, &(64..72)) as usize;
    // Extra data of 24 bytes, an ID of one.
    let entry = with_field(&bytes[table..table + 65], &(14..16), 950);
    bytes.resize(bytes.len().next_multiple_of(65536), 0);
    let start = bytes.len() as u64;
    for number in 0..65536 {
        bytes.extend(&entry);
        bytes.extend(format!("{number:0950}").bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes = with_field(&with_field(&bytes, &(60..64), 65536), &(64..72), start);
    let options = OpenOptions { format: Some("qcow2".into()), check: true, ..OpenOptions::default() };
    let subject = Subject { folder, good: bytes, options };
    guarded("snapshots with long names", || {
        let (engine, node) = subject.open(&subject.good, true).unwrap();
        let report = engine.block_on(node.driver().checker().unwrap().check()).unwrap();
        assert!(report.unwrap().corruptions > 0, "the L1 table has many users");
    });
}

#[test]
fn random_damage_is_survived() {
    watch();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for name in IMAGES {
        let subject = Subject::new(name);
        let anatomy = Anatomy::of(&subject.good);
        for round in 0..100 {
            let mut bytes = subject.good.clone();
            for _ in 0..rng.random_range(1..6) {
                damage(&mut bytes, &anatomy, &mut rng);
            }
            subject.survives(&format!("{name}: seed {seed}, round {round}"), &bytes);
        }
    }
}

/// Changes one field, or some bytes of a table, or the length of the file.
fn damage(bytes: &mut Vec<u8>, anatomy: &Anatomy, rng: &mut StdRng) {
    let field = anatomy.fields[rng.random_range(0..anatomy.fields.len())].clone();
    match rng.random_range(0..8) {
        0 => bytes.truncate(rng.random_range(bytes.len() / 2..=bytes.len())),
        1..4 => {
            let table = anatomy.tables[rng.random_range(0..anatomy.tables.len())] as usize;
            let at = table + 8 * rng.random_range(0..16);
            if at + 8 <= bytes.len() {
                rng.fill(&mut bytes[at..at + 8]);
            }
        }
        _ if field.end <= bytes.len() => {
            let values = anatomy.values(be(bytes, &field), field.len(), bytes.len() as u64);
            *bytes = with_field(bytes, &field, values[rng.random_range(0..values.len())]);
        }
        _ => {}
    }
}
