//! Internal snapshots: against a model that keeps every content, and against the real qemu-img in both
//! directions. After every step the image must pass both checks.

use super::memory::{Disk, Folder};
use super::model::{Model, base, seed};
use crate::block::aio::Backend;
use crate::block::filter::blkdebug::Fault;
use crate::block::format::qcow2::CreateOptions;
use crate::block::graph::Node;
use crate::block::graph::driver::SnapshotInfo;
use crate::block::graph::snapshots::{NewSnapshot, Selector, Snapshots, VmState};
use crate::block::options::Preallocation;
use crate::block::{Buffer, Kind, Result};
use rand::Rng;
use std::rc::Rc;

fn snapshots(disk: &Disk) -> &dyn Snapshots {
    disk.node.driver().snapshots().unwrap()
}

fn vm_state(node: &Node) -> &dyn VmState {
    node.driver().vm_state().unwrap()
}

fn named(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.into(), date: (1_700_000_000, 5), ..NewSnapshot::default() }
}

fn name(name: &str) -> Selector {
    Selector::Name(name.into())
}

fn create(disk: &Disk, name: &str) -> SnapshotInfo {
    disk.run(snapshots(disk).create(&named(name))).unwrap()
}

fn view(disk: &Disk, which: &str) -> Rc<Node> {
    disk.run(snapshots(disk).view(&name(which))).unwrap()
}

fn content_of(disk: &Disk, which: &str) -> Vec<u8> {
    let node = view(disk, which);
    disk.run(node.read_bytes(0, node.size() as usize)).unwrap()
}

/// Our check finds nothing.
fn is_clean(disk: &Disk) {
    disk.run(disk.node.flush()).unwrap();
    let report = disk.run(disk.node.driver().checker().unwrap().check()).unwrap();
    assert_eq!(report.messages, [""; 0]);
}

/// qemu-img's check finds nothing, and it reads disk and snapshots as we do.
fn qemu_agrees(disk: &Disk) -> Folder {
    is_clean(disk);
    let folder = Folder::new();
    folder.write("disk", &disk.bytes());
    if let Some(backing) = &disk.backing {
        folder.write("base", &disk.run(backing.read_bytes(0, backing.size() as usize)).unwrap());
    }
    folder.run("qemu-img check -f qcow2 disk");
    assert!(folder.content("disk", "") == disk.read_all());
    for snapshot in snapshots(disk).list() {
        let theirs = folder.content("disk", &format!("-l snapshot.id={}", snapshot.id));
        let which = Selector::Id(snapshot.id.clone());
        let node = disk.run(snapshots(disk).view(&which)).unwrap();
        let ours = disk.run(node.read_bytes(0, node.size() as usize)).unwrap();
        // qemu-img shows snapshots with the size of the live disk.
        let both = ours.len().min(theirs.len());
        assert!(ours[..both] == theirs[..both], "snapshot {}", snapshot.id);
    }
    folder
}

/// Whether a change came about. Narrow refcounts cannot count many snapshots of packed compressed clusters.
fn is_made<T>(done: Result<T>) -> bool {
    if let Err(error) = &done {
        assert!(error.message().contains("cannot get any higher"), "{error}");
    }
    done.is_ok()
}

/// A model with snapshots: names and contents in the order of the image.
struct Timeline {
    model: Model,
    taken: Vec<(String, Vec<u8>)>,
    count: usize,
}

impl Timeline {
    fn step(&mut self) {
        let known = self.taken.len();
        match self.model.rng.random_range(0..9) {
            0 | 1 if known < 6 => self.create(),
            2 if known > 0 => self.replace(),
            3 if known > 0 => self.delete(),
            4 if known > 0 => self.apply(),
            5 => self.model.disk.reopen(),
            6 => self.grow(),
            _ => (0..3).for_each(|_| self.model.step()),
        }
    }

    fn create(&mut self) {
        self.count += 1;
        let name = format!("s{}", self.count);
        let disk = &self.model.disk;
        if is_made(disk.run(snapshots(disk).create(&named(&name)))) {
            self.taken.push((name, self.model.content.clone()));
        }
    }

    fn pick(&mut self) -> usize {
        self.model.rng.random_range(0..self.taken.len())
    }

    fn replace(&mut self) {
        let at = self.pick();
        let disk = &self.model.disk;
        if is_made(disk.run(snapshots(disk).replace(&named(&self.taken[at].0)))) {
            let (name, _) = self.taken.remove(at);
            self.taken.push((name, self.model.content.clone()));
        }
    }

    fn delete(&mut self) {
        let at = self.pick();
        let (gone, _) = self.taken.remove(at);
        let disk = &self.model.disk;
        disk.run(snapshots(disk).delete(&name(&gone))).unwrap();
    }

    fn apply(&mut self) {
        let at = self.pick();
        let disk = &self.model.disk;
        if is_made(disk.run(snapshots(disk).apply(&name(&self.taken[at].0)))) {
            self.model.content = self.taken[at].1.clone();
        }
    }

    fn grow(&mut self) {
        let size = self.model.content.len() as u64 + 512 * self.model.rng.random_range(1..100);
        let node = self.model.disk.node.clone();
        match self.model.disk.run(node.truncate(size, Preallocation::Off)) {
            Ok(()) => self.model.content.resize(size as usize, 0),
            Err(error) => assert_eq!(error.kind(), Kind::Unsupported),
        }
    }

    fn verify(&self) {
        let disk = &self.model.disk;
        assert!(disk.read_all() == self.model.content);
        let names: Vec<String> = snapshots(disk).list().into_iter().map(|info| info.name).collect();
        assert_eq!(names, self.taken.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        for (name, content) in &self.taken {
            assert!(content_of(disk, name) == *content, "{name}");
        }
        is_clean(disk);
    }
}

fn run(options: &CreateOptions, backing: Option<Vec<u8>>, steps: usize) {
    run_on(Disk::create(Backend::Auto, options, backing), options.cluster_size, steps);
}

fn run_on(disk: Disk, cluster_size: u64, steps: usize) {
    let model = Model::new(disk, cluster_size, seed("snapshots"));
    let mut timeline = Timeline { model, taken: Vec::new(), count: 0 };
    for _ in 0..steps {
        timeline.step();
        // Verifying flushes: often it comes between, sometimes it does not.
        if timeline.model.rng.random() {
            timeline.step();
        }
        timeline.verify();
    }
    qemu_agrees(&timeline.model.disk);
}

fn options(cluster_bits: u32, refcount_bits: u64, version: u32) -> CreateOptions {
    let size = (40 << cluster_bits).min(3 << 20) + 1536;
    let cluster_size = 1 << cluster_bits;
    CreateOptions { size, version, cluster_size, refcount_bits, ..CreateOptions::default() }
}

#[test]
fn every_snapshot_keeps_its_content_whatever_happens_to_the_others() {
    for cluster_bits in [9, 10, 12, 14, 16, 18, 21] {
        run(&options(cluster_bits, 16, 3), None, 40);
    }
    run(&options(9, 16, 2), None, 40);
    run(&options(16, 16, 2), None, 25);
    run(&CreateOptions { extended_l2: true, ..options(14, 16, 3) }, None, 40);
}

#[test]
fn tables_of_many_clusters_move_where_there_are_only_holes() {
    // A refcount block counts 64 clusters, an L2 table maps 64, the L1 and the refcount table have several.
    let options = CreateOptions { size: 5 << 20, ..options(9, 64, 3) };
    let mut disk = Disk::create(Backend::Auto, &options, None);
    disk.run(disk.node.write_bytes(0, &vec![7; 5 << 20])).unwrap();
    for at in (1..80).map(|at| at * 50_176) {
        disk.run(disk.node.discard(at, 1024)).unwrap();
    }
    disk.reopen();
    run_on(disk, 512, 15);
}

#[test]
fn snapshots_keep_their_content_with_every_refcount_width() {
    for order in 2..=6 {
        for cluster_bits in [9, 13] {
            run(&options(cluster_bits, 1 << order, 3), None, 30);
        }
    }
}

#[test]
fn snapshots_of_overlays_keep_their_content() {
    for cluster_bits in [9, 12, 16] {
        let (backing_file, backing_format) = (Some("base".into()), Some("raw".into()));
        let options = CreateOptions { backing_file, backing_format, ..options(cluster_bits, 16, 3) };
        for len in [options.size as usize / 2 + 77, options.size as usize * 2] {
            run(&options, Some(base(len)), 30);
        }
        if cluster_bits == 16 {
            let preallocation = Preallocation::Metadata;
            let options = CreateOptions { extended_l2: true, preallocation, ..options };
            run(&options, Some(base(options.size as usize / 2)), 30);
        }
    }
}

#[test]
fn a_header_whose_write_was_lost_is_put_right_before_anything_else_changes() {
    let disk = Disk::create(Backend::Auto, &options(12, 16, 3), None);
    disk.run(disk.node.write_bytes(0, &[5; 9000])).unwrap();
    disk.run(disk.node.flush()).unwrap();
    let broken = Fault { range: Some(0..512), once: false, ..Fault::nth(1, libc::EIO) };
    disk.faults.replace([broken.into()]);
    assert_eq!(disk.run(snapshots(&disk).create(&named("one"))).unwrap_err().errno(), libc::EIO);
    // The host may have written it all the same: there is one snapshot, says the header.
    disk.state.bytes.borrow_mut()[63] = 1;
    assert_eq!(disk.run(disk.node.write_bytes(0, &[6; 10])).unwrap_err().errno(), libc::EIO);
    disk.recover();
    disk.run(disk.node.write_bytes(0, &[7; 10])).unwrap();
    assert_eq!(disk.bytes()[63], 0);
    create(&disk, "two");
    assert_eq!(snapshots(&disk).list().len(), 1);
    qemu_agrees(&disk);
}

#[test]
fn what_qemu_img_made_is_applied_deleted_and_replaced() {
    for (words, cluster) in [
        ("cluster_size=1k", 1024),
        ("compat=0.10", 65536),
        ("refcount_bits=4,cluster_size=4k", 4096),
        ("extended_l2=on,cluster_size=16k", 16384),
    ] {
        let folder = Folder::new();
        folder.write("bytes", &base(2 << 20));
        folder.run(&format!("qemu-img convert -c -f raw -O qcow2 -o {words} bytes disk"));
        let mut contents = Vec::new();
        for at in 0..3 {
            contents.push(folder.content("disk", ""));
            folder.run(&format!("qemu-img snapshot -c s{at} disk"));
            folder.run(&format!("qemu-io -f qcow2 disk -c 'write -P {} {at}00k 300k'", at + 1));
        }
        let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
        for (at, content) in contents.iter().enumerate() {
            assert!(content_of(&disk, &format!("s{at}")) == *content);
        }
        disk.run(snapshots(&disk).apply(&name("s1"))).unwrap();
        assert!(disk.read_all() == contents[1]);
        qemu_agrees(&disk);
        disk.run(snapshots(&disk).delete(&name("s0"))).unwrap();
        disk.run(snapshots(&disk).replace(&named("s2"))).unwrap();
        let mut model = Model::new(disk, cluster, seed(words));
        (0..20).for_each(|_| model.step());
        assert!(content_of(&model.disk, "s1") == contents[1] && content_of(&model.disk, "s2") == contents[1]);
        qemu_agrees(&model.disk);
    }
}

#[test]
fn what_we_made_is_listed_applied_and_deleted_by_qemu_img() {
    for (cluster_bits, version) in [(9, 3), (16, 2), (16, 3)] {
        let disk = Disk::create(Backend::Auto, &options(cluster_bits, 16, version), None);
        let mut model = Model::new(disk, 1 << cluster_bits, seed("ours"));
        (0..10).for_each(|_| model.step());
        create(&model.disk, "one");
        let one = model.content.clone();
        (0..10).for_each(|_| model.step());
        create(&model.disk, "two");
        let two = model.content.clone();
        (0..10).for_each(|_| model.step());
        let folder = qemu_agrees(&model.disk);
        let list = folder.run("qemu-img snapshot -l disk");
        let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((&lines[2][..2], &lines[3][..2]), (&["1", "one"][..], &["2", "two"][..]));
        folder.run("qemu-img snapshot -a one disk");
        assert!(folder.content("disk", "") == one);
        folder.run("qemu-img check disk");
        folder.run("qemu-img snapshot -d one disk");
        folder.run("qemu-img check disk");
        assert!(folder.content("disk", "-l two") == two);
        folder.run("qemu-img snapshot -a two disk");
        folder.run("qemu-img snapshot -d two disk");
        folder.run("qemu-img check disk");
        assert!(folder.content("disk", "") == two);
    }
}

#[test]
fn a_snapshot_records_what_it_was_given() {
    let disk = Disk::create(Backend::Auto, &options(16, 16, 3), None);
    let new = NewSnapshot {
        name: "näme".into(),
        date: (1_234_567_890, 123_456_789),
        vm_clock_nsec: 3_723_004_000_000,
        icount: Some(77),
        vm_state_size: 5 << 32,
    };
    let info = disk.run(snapshots(&disk).create(&new)).unwrap();
    create(&disk, "");
    assert_eq!((&info.id[..], info.icount, info.vm_state_size), ("1", Some(77), 5 << 32));
    let folder = qemu_agrees(&disk);
    let list = folder.run("qemu-img snapshot -l disk");
    let line: Vec<&str> = list.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!((line[1], line[2], line[3]), ("näme", "20", "GiB"));
    assert_eq!((*line.last().unwrap(), line[line.len() - 2]), ("77", "0001:02:03.004"));
    let reopened = Disk::from_bytes(Backend::Auto, disk.bytes(), None);
    assert_eq!(snapshots(&reopened).list(), snapshots(&disk).list());
    assert_eq!(snapshots(&reopened).list()[1].icount, None);
}

/// The next ID follows the highest number that an ID begins with; entries of others stay byte for byte.
#[test]
fn entries_of_others_are_kept_byte_for_byte() {
    let disk = Disk::create(Backend::Auto, &options(16, 16, 3), None);
    create(&disk, "first-name");
    disk.close();
    let mut bytes = disk.bytes();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    // Longer extra data, an ID that is no number, a name that is no text.
    let (fixed, rest) = (bytes[table..table + 40].to_vec(), bytes[table + 64..table + 75].to_vec());
    let extra = [&bytes[table + 40..table + 64], &[0xab; 13][..]].concat();
    let mut entry = [&fixed[..], &extra, b"41x", &rest[1..]].concat();
    entry[12..14].copy_from_slice(&3u16.to_be_bytes());
    entry[36..40].copy_from_slice(&37u32.to_be_bytes());
    entry[45 + 37] = 0xff;
    bytes[table..table + entry.len()].copy_from_slice(&entry);
    let disk = Disk::from_bytes(Backend::Auto, bytes, None);
    assert_eq!(create(&disk, "second").id, "42");
    disk.close();
    let bytes = disk.bytes();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    assert_eq!(bytes[table..table + entry.len()], entry);
}

#[test]
fn vm_state_goes_into_the_snapshot_and_leaves_the_live_disk() {
    for (cluster_bits, backing) in [(9, None), (16, None), (12, Some(base(9 << 20)))] {
        let mut options = options(cluster_bits, 16, 3);
        if backing.is_some() {
            (options.backing_file, options.backing_format) = (Some("base".into()), Some("raw".into()));
        }
        let disk = Disk::create(Backend::Auto, &options, backing);
        let mut model = Model::new(disk, options.cluster_size, seed("vm state"));
        (0..10).for_each(|_| model.step());
        let mut state = vec![0; 300_001];
        model.rng.fill(&mut state[..]);
        state[70_000..120_000].fill(0);
        store(&model, 0, &state[..70_000]);
        (0..5).for_each(|_| model.step());
        store(&model, 120_000, &state[120_000..]);
        assert!(load(&model.disk, &model.disk.node, state.len()) == state);
        let new = NewSnapshot { vm_state_size: state.len() as u64, ..named("with") };
        model.disk.run(snapshots(&model.disk).create(&new)).unwrap();
        assert!(load(&model.disk, &model.disk.node, state.len()).iter().all(|&byte| byte == 0));
        (0..10).for_each(|_| model.step());
        create(&model.disk, "without");
        model.disk.reopen();
        assert!(load(&model.disk, &view(&model.disk, "with"), state.len()) == state);
        assert!(load(&model.disk, &view(&model.disk, "without"), 1000).iter().all(|&byte| byte == 0));
        qemu_agrees(&model.disk);
        model.disk.run(snapshots(&model.disk).apply(&name("with"))).unwrap();
        model.disk.run(snapshots(&model.disk).replace(&named("with"))).unwrap();
        assert!(load(&model.disk, &view(&model.disk, "with"), 1000).iter().all(|&byte| byte == 0));
        qemu_agrees(&model.disk);
    }
}

fn store(model: &Model, at: u64, bytes: &[u8]) {
    let state = vm_state(&model.disk.node);
    model.disk.run(state.write(at, &Buffer::from_bytes(bytes).iov(bytes.len()))).unwrap();
}

fn load(disk: &Disk, node: &Node, len: usize) -> Vec<u8> {
    let iov = Buffer::new(len).iov(len);
    disk.run(vm_state(node).read(0, &iov)).unwrap();
    iov.to_vec()
}

#[test]
fn vm_state_is_given_up_before_the_disk_grows_into_it() {
    let disk = Disk::create(Backend::Auto, &options(9, 16, 3), None);
    let mut model = Model::new(disk, 512, seed("grow"));
    (0..5).for_each(|_| model.step());
    store(&model, 0, &[7; 100_000]);
    model.disk.run(model.disk.node.truncate(1 << 20, Preallocation::Off)).unwrap();
    model.content.resize(1 << 20, 0);
    assert!(model.disk.read_all() == model.content);
    store(&model, 0, &[8; 100_000]);
    model.disk.run(vm_state(&model.disk.node).discard()).unwrap();
    assert!(load(&model.disk, &model.disk.node, 100_000).iter().all(|&byte| byte == 0));
    qemu_agrees(&model.disk);
}

#[test]
fn a_count_that_cannot_get_higher_is_found_before_anything_changes() {
    for (bits, possible) in [(1, 0), (2, 2)] {
        let disk = Disk::create(Backend::Auto, &options(12, bits, 3), None);
        disk.run(disk.node.write_bytes(0, &[5; 20_000])).unwrap();
        (0..possible).for_each(|at| drop(create(&disk, &format!("{at}"))));
        let before = snapshots(&disk).list();
        let refused = disk.run(snapshots(&disk).create(&named("one too many"))).unwrap_err();
        assert_eq!(refused.kind(), Kind::InvalidArgument);
        assert!(refused.hint().is_some());
        assert_eq!(snapshots(&disk).list(), before);
        disk.close();
        qemu_agrees(&disk);
    }
}

#[test]
fn what_goes_back_to_the_host_is_given_out_again_only_afterwards() {
    const PART: usize = 64 << 10;
    let options = CreateOptions { size: 3 * PART as u64, ..options(12, 16, 3) };
    let mut disk = Disk::create(Backend::Auto, &options, None);
    disk.run(disk.node.write_bytes(0, &[1; PART])).unwrap();
    create(&disk, "old");
    disk.run(disk.node.write_bytes(0, &[2; PART])).unwrap();
    // The file makes garbage of what it gets back, while this write looks for clusters.
    disk.run(async {
        snapshots(&disk).delete(&name("old")).await?;
        disk.node.write_bytes(PART as u64, &[3; PART]).await
    })
    .unwrap();
    assert!(disk.read_all()[..2 * PART] == [[2; PART], [3; PART]].concat());
    disk.reopen();
    assert!(disk.read_all()[..2 * PART] == [[2; PART], [3; PART]].concat());
    disk.run(disk.node.write_bytes(2 * PART as u64, &[4; PART])).unwrap();
    qemu_agrees(&disk);
    assert!(disk.bytes().len() <= 3 * PART + 8 * 4096, "what came back was not taken");
}

#[test]
fn a_snapshot_that_is_being_read_stays() {
    let disk = Disk::create(Backend::Auto, &options(16, 16, 3), None);
    disk.run(disk.node.write_bytes(0, &[1; 5000])).unwrap();
    create(&disk, "held");
    let held = view(&disk, "held");
    assert_eq!(disk.run(held.write_bytes(0, &[9; 10])).unwrap_err().kind(), Kind::ReadOnly);
    let delete = || disk.run(snapshots(&disk).delete(&name("held")));
    assert_eq!(delete().unwrap_err().kind(), Kind::Locked);
    assert_eq!(disk.run(snapshots(&disk).replace(&named("held"))).unwrap_err().kind(), Kind::Locked);
    disk.run(disk.node.write_bytes(0, &[2; 5000])).unwrap();
    create(&disk, "other");
    assert_eq!(disk.run(held.read_bytes(0, 5000)).unwrap(), [1; 5000]);
    drop(held);
    delete().unwrap();
    assert_eq!(delete().unwrap_err().kind(), Kind::NotFound);
    qemu_agrees(&disk);
}
