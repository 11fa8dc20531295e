//! The table of operations that the sweeps go through. To add one: a row, with [`change`] for what it does and what
//! it makes of the image.

use super::memory::{Disk, Folder, PASSPHRASE};
use super::model::{base, compressible};
use super::operations::{Request, Row, Step, change, sweep_seed};
use crate::block::aio::Backend;
use crate::block::crypto::{Key, luks};
use crate::block::encryption::SlotChange;
use crate::block::format::qcow2::{CreateOptions, EncryptOptions};
use crate::block::graph::Node;
use crate::block::graph::amend::AmendOptions;
use crate::block::graph::bitmaps::Bitmaps;
use crate::block::graph::driver::Repair;
use crate::block::graph::overlay::BackingName;
use crate::block::graph::snapshots::{NewSnapshot, Selector};
use crate::block::options::Preallocation;
use crate::block::{Buffer, Error};
use futures_util::future::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of guest requests start and end at multiples of this, most of the time.
const SECTOR: usize = 512;

/// All rows, with what they do at random decided by `seed`.
fn rows(seed: u64) -> Vec<Row> {
    let mut rows = writes(seed);
    rows.extend(copies_on_write(seed));
    rows.extend(subclusters(seed));
    rows.push(snapshots_and_compressed_clusters(seed, 512, ""));
    rows.push(snapshots_and_compressed_clusters(seed, 4096, ""));
    rows.push(snapshots_and_compressed_clusters(seed, 512, ",lazy_refcounts=on"));
    rows.push(snapshots_and_compressed_clusters(seed, 16384, ",extended_l2=on"));
    rows.push(refcount_table_grows(seed, false));
    rows.push(refcount_table_grows(seed, true));
    rows.extend(grows(seed));
    rows.extend(shrinks(seed));
    rows.extend(amends(seed));
    rows.extend(overlays(seed));
    rows.extend(repairs(seed));
    rows.extend(bitmaps(seed));
    rows.extend(encrypted(seed));
    rows.push(key_slots(seed));
    rows.extend(data_files(seed));
    rows.extend(snapshots_change(seed));
    rows
}

/// Takes all rows through a sweep, which returns how many points it tried.
pub(super) fn sweep_all(sweep: impl Fn(&Row, u64) -> usize) {
    let seed = sweep_seed();
    let mut all = 0;
    for row in rows(seed) {
        let begun = std::time::Instant::now();
        let points = sweep(&row, seed);
        println!("{points:6} {:5} ms  {}", begun.elapsed().as_millis(), row.name);
        all += points;
    }
    println!("{all:6} points");
}

fn writes(seed: u64) -> Vec<Row> {
    let kinds = [(512, 16, 3), (4096, 1, 3), (65536, 16, 3), (512, 16, 2), (4096, 64, 3), (512, 2, 3)];
    let row = |(cluster_size, bits, version): (u64, u64, u32)| {
        let size = (30 * cluster_size).clamp(100 << 10, 500 << 10);
        let options = options(size, cluster_size, bits, version);
        let steps = workload(seed, size as usize, cluster_size as usize, 40);
        let name = format!("writes, version {version}, clusters of {cluster_size}, {bits} bits");
        new_row(name, &options, None, steps)
    };
    kinds.into_iter().map(row).collect()
}

fn copies_on_write(seed: u64) -> Vec<Row> {
    let kinds = [(512, 3), (4096, 3), (65536, 3), (512, 2), (4096, 2)];
    let row = |(cluster_size, version): (u64, u32)| {
        let size = (30 * cluster_size).clamp(100 << 10, 500 << 10);
        let options = overlay(options(size, cluster_size, 16, version));
        let steps = workload(seed, size as usize, cluster_size as usize, 30);
        let name = format!("writes over a backing file, version {version}, clusters of {cluster_size}");
        new_row(name, &options, Some(base(size as usize * 3 / 4 + 77)), steps)
    };
    kinds.into_iter().map(row).collect()
}

fn subclusters(seed: u64) -> [Row; 3] {
    let size = 400 << 10;
    let plain = CreateOptions { extended_l2: true, ..options(size, 16384, 16, 3) };
    let kept = CreateOptions { preallocation: Preallocation::Metadata, ..plain.clone() };
    let steps = || workload(seed, size as usize, 16384, 40);
    let row = |name: &str, options, backing| new_row(name.into(), &options, backing, steps());
    [
        row("writes to subclusters", plain.clone(), None),
        row("writes to subclusters over a backing file", overlay(plain), Some(base(300_077))),
        row("writes to subclusters of clusters that are kept", overlay(kept), Some(base(300_077))),
    ]
}

/// An image that qemu-img made, with clusters that are shared.
fn snapshots_and_compressed_clusters(seed: u64, cluster: usize, more: &str) -> Row {
    let folder = Folder::new();
    folder.write("bytes", &base(100 << 10));
    let options = format!("cluster_size={cluster}{more}");
    folder.run(&format!("qemu-img convert -c -f raw -O qcow2 -o {options} bytes disk"));
    folder.run("qemu-io -f qcow2 disk -c 'write -P 5 10k 30k'");
    folder.run("qemu-img snapshot -c one disk");
    folder.run("qemu-io -f qcow2 disk -c 'write -P 6 20k 30k'");
    let name = format!("writes beside a snapshot and compressed clusters of {cluster}{more}");
    let steps = workload(seed, 100 << 10, cluster, 30);
    Row { name, bytes: folder.read("disk"), backing: None, steps, damaged: false, slow: false }
}

/// Images that a check finds fault with. What the guest sees is whole in all of them.
fn repairs(seed: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    for cluster in [512, 4096] {
        for (name, damage, what) in [
            ("leaks", leak as fn(&mut Vec<u8>, usize), Repair::Leaks),
            ("refcounts", zero_refcounts, Repair::All),
            ("refcount table", lose_refcount_block, Repair::All),
        ] {
            let mut bytes = sound(seed, cluster);
            damage(&mut bytes, cluster);
            let mut steps = vec![repair(what)];
            steps.extend(workload(seed, 100 << 10, cluster, 6));
            let name = format!("repairing {name}, clusters of {cluster}");
            rows.push(Row { name, bytes, backing: None, steps, damaged: what == Repair::All, slow: false });
        }
        rows.push(dirty(seed, cluster));
    }
    rows
}

/// The dirty bit is set, as whoever writes refcounts late leaves it: opening the image to write repairs it.
fn dirty(seed: u64, cluster: usize) -> Row {
    let name = format!("writes to a dirty image, clusters of {cluster}");
    let mut bytes = sound(seed, cluster);
    zero_refcounts(&mut bytes, cluster);
    // Incompatible bit 0.
    bytes[79] |= 1;
    Row {
        name,
        bytes,
        backing: None,
        steps: workload(seed, 100 << 10, cluster, 10),
        damaged: true,
        slow: false,
    }
}

/// An image with some data.
fn sound(seed: u64, cluster: usize) -> Vec<u8> {
    let disk = Disk::create(Backend::Auto, &options(100 << 10, cluster as u64, 16, 3), None);
    let mut bytes = vec![0; 50 << 10];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    disk.run(disk.node.write_bytes(20 << 10, &bytes)).unwrap();
    disk.close();
    disk.bytes()
}

fn repair(what: Repair) -> Step {
    let make = move |node: Rc<Node>| {
        async move {
            let report = node.driver().checker().unwrap().repair(what).await?;
            match report.gave_up {
                Some(error) => Err(error),
                // It goes on after a table that cannot be read.
                None if report.check_errors > 0 => {
                    Err(Error::from_io(io::Error::from_raw_os_error(libc::EIO)))
                }
                None => Ok(()),
            }
        }
        .boxed_local()
    };
    change("repair", make, |_| {})
}

/// Operations on bitmaps. Whether enabled ones can be trusted after a crash is told with their own tests.
fn bitmaps(seed: u64) -> [Row; 2] {
    fn of(node: &Node) -> &dyn Bitmaps {
        node.driver().bitmaps().unwrap()
    }
    let add = |name: &'static str, enabled| {
        let make =
            move |node: Rc<Node>| async move { of(&node).add(name, Some(512), enabled).await }.boxed_local();
        change("add a bitmap", make, |_| {})
    };
    let row = |enabled| {
        let merge =
            |node: Rc<Node>| async move { of(&node).merge("two", of(&node), "one").await }.boxed_local();
        let clear = |node: Rc<Node>| async move { of(&node).clear("two").await }.boxed_local();
        let remove = |node: Rc<Node>| async move { of(&node).remove("one").await }.boxed_local();
        let mut steps = workload(seed, 100 << 10, 512, 4);
        steps.extend([add("one", enabled), add("two", enabled), change("merge bitmaps", merge, |_| {})]);
        steps.extend(workload(seed + 1, 100 << 10, 512, 4));
        steps.extend([change("clear a bitmap", clear, |_| {}), change("remove a bitmap", remove, |_| {})]);
        steps.extend(workload(seed + 2, 100 << 10, 512, 4));
        new_row(format!("bitmaps, enabled: {enabled}"), &options(100 << 10, 512, 16, 3), None, steps)
    };
    [row(false), row(true)]
}

fn passphrase() -> Key {
    Key::from(PASSPHRASE.as_bytes().to_vec())
}

/// As few iterations as there may be.
const AT_ONCE: Duration = Duration::from_nanos(1);

fn luks() -> EncryptOptions {
    EncryptOptions::Luks(
        luks::CreateOptions { time: AT_ONCE, ..luks::CreateOptions::default() },
        passphrase(),
    )
}

fn encrypted(seed: u64) -> Vec<Row> {
    let row = |(name, encryption, cluster, with_backing): (_, _, u64, bool)| {
        let plain = options(100 << 10, cluster, 16, 3);
        let small = if with_backing { overlay(plain) } else { plain };
        let small = CreateOptions { encryption: Some(encryption), ..small };
        let mut steps: Vec<Step> = workload(seed, 100 << 10, cluster as usize, 16);
        steps.iter_mut().for_each(without_compression);
        steps.push(take_snapshot("one", false));
        steps.extend(workload(seed + 1, 100 << 10, cluster as usize, 4));
        steps.iter_mut().for_each(without_compression);
        let backing = with_backing.then(|| base(80 << 10));
        let name = format!("writes, {name}, clusters of {cluster}, backing {with_backing}");
        Row { slow: true, ..new_row(name, &small, backing, steps) }
    };
    let aes = EncryptOptions::Aes(passphrase());
    [("AES", aes, 512, true), ("LUKS", luks(), 512, false), ("LUKS", luks(), 4096, true)].map(row).into()
}

/// Encrypted images and those with a data file take no compressed clusters.
fn without_compression(step: &mut Step) {
    let Step::Guest(requests) = step else { return };
    for request in requests {
        if let Request::Compressed(at, bytes) = request {
            *request = Request::Write(*at, std::mem::take(bytes));
        }
    }
}

/// A second passphrase comes and goes.
fn key_slots(seed: u64) -> Row {
    fn slot(name: &'static str, slot_change: SlotChange) -> Step {
        let make = move |node: Rc<Node>| {
            let slot_change = slot_change.clone();
            async move { node.driver().key_slots().unwrap().change_key_slots(&slot_change, false).await }
                .boxed_local()
        };
        change(name, make, |_| {})
    }
    let small = CreateOptions { encryption: Some(luks()), ..options(100 << 10, 4096, 16, 3) };
    let fill = SlotChange::Fill { slot: Some(1), passphrase: Key::from(b"other".to_vec()), time: AT_ONCE };
    let mut steps = workload(seed, 100 << 10, 4096, 2);
    steps.push(slot("fill a key slot", fill));
    steps.extend(workload(seed + 1, 100 << 10, 4096, 2));
    steps.push(slot("erase a key slot", SlotChange::Erase { slot: Some(1), passphrase: None }));
    steps.iter_mut().for_each(without_compression);
    Row { slow: true, ..new_row("key slots".into(), &small, None, steps) }
}

/// The data file stands in the same file, see [`super::window`].
fn data_files(seed: u64) -> Vec<Row> {
    let row = |(cluster, raw): (u64, bool)| {
        let name = format!("data file, clusters of {cluster}, raw {raw}");
        let plain = options(100 << 10, cluster, 16, 3);
        let small = CreateOptions { data_file: Some("data".into()), data_file_raw: raw, ..plain };
        let mut steps = workload(seed, 100 << 10, cluster as usize, 30);
        steps.iter_mut().for_each(without_compression);
        new_row(name, &small, None, steps)
    };
    [(512, false), (4096, true)].map(row).into()
}

fn be64(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// Where the first refcount block is.
fn refcount_block(bytes: &[u8]) -> usize {
    be64(bytes, be64(bytes, 48))
}

/// Three clusters more, in use by nobody.
fn leak(bytes: &mut Vec<u8>, cluster: usize) {
    let block = refcount_block(bytes);
    for _ in 0..3 {
        let at = block + bytes.len().div_ceil(cluster) * 2;
        bytes[at..at + 2].copy_from_slice(&[0, 1]);
        bytes.resize(bytes.len().next_multiple_of(cluster) + cluster, 7);
    }
}

/// Clusters that count as free and are not.
#[expect(clippy::ptr_arg, reason = "as all kinds of damage are called")]
fn zero_refcounts(bytes: &mut Vec<u8>, _cluster: usize) {
    let block = refcount_block(bytes);
    bytes[block + 10..block + 24].fill(0);
}

/// The table names no block for the first clusters.
#[expect(clippy::ptr_arg, reason = "as all kinds of damage are called")]
fn lose_refcount_block(bytes: &mut Vec<u8>, _cluster: usize) {
    let table = be64(bytes, 48);
    bytes[table..table + 8].fill(0);
}

/// 512-byte clusters with 64-bit refcounts: the table outgrows its cluster again and again.
fn refcount_table_grows(seed: u64, lazy_refcounts: bool) -> Row {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    for at in (0..7 * (128 << 10)).step_by(128 << 10) {
        let mut bytes = vec![0; 128 << 10];
        rng.fill(&mut bytes[..]);
        steps.push(Step::Guest(vec![Request::Write(at, bytes)]));
        steps.push(Step::Flush);
    }
    steps.extend(workload(seed, 1 << 20, 512, 10));
    let options = CreateOptions { lazy_refcounts, ..options(1 << 20, 512, 64, 3) };
    new_row(format!("the refcount table grows, lazy {lazy_refcounts}"), &options, None, steps)
}

fn grows(seed: u64) -> Vec<Row> {
    use Preallocation::{Falloc, Full, Metadata, Off};
    let mut rows = Vec::new();
    for (mode, cluster, version, with_backing) in [
        (Off, 512, 3, false),
        (Metadata, 512, 3, false),
        (Metadata, 512, 2, false),
        (Falloc, 4096, 3, false),
        (Full, 4096, 3, false),
        (Metadata, 65536, 3, false),
        (Off, 512, 3, true),
        (Metadata, 512, 3, true),
        (Metadata, 4096, 3, true),
    ] {
        let small = options(100 << 10, cluster, 16, version);
        let backing = with_backing.then(|| base(250 << 10));
        let small = if with_backing { overlay(small) } else { small };
        let mut steps = workload(seed, 100 << 10, cluster as usize, 12);
        steps.push(resize(200 << 10, mode));
        steps.extend(workload(seed + 1, 200 << 10, cluster as usize, 4));
        steps.push(resize(500 << 10, mode));
        steps.extend(workload(seed + 2, 500 << 10, cluster as usize, 4));
        let name =
            format!("growing, {mode:?}, version {version}, clusters of {cluster}, backing {with_backing}");
        rows.push(new_row(name, &small, backing, steps));
    }
    rows
}

/// Smaller, and larger again: nothing of what stood there may show.
fn shrinks(seed: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    for (cluster, version, with_backing) in [
        (512, 3, false),
        (512, 2, false),
        (4096, 3, false),
        (65536, 3, false),
        (512, 3, true),
        (4096, 3, true),
    ] {
        let small = options(250 << 10, cluster, 16, version);
        let backing = with_backing.then(|| base(300 << 10));
        let small = if with_backing { overlay(small) } else { small };
        let mut steps = workload(seed, 250 << 10, cluster as usize, 12);
        steps.push(resize(70 << 10, Preallocation::Off));
        steps.push(resize(200 << 10, Preallocation::Off));
        steps.extend(workload(seed + 1, 200 << 10, cluster as usize, 6));
        let odd = (150 << 10) + 512;
        steps.push(resize(odd, Preallocation::Off));
        steps.extend(workload(seed + 2, odd, cluster as usize, 4));
        steps.push(resize(250 << 10, Preallocation::Metadata));
        let name = format!("shrinking, version {version}, clusters of {cluster}, backing {with_backing}");
        rows.push(new_row(name, &small, backing, steps));
    }
    rows.push(shrinks_beside_a_snapshot(seed));
    rows
}

fn shrinks_beside_a_snapshot(seed: u64) -> Row {
    let mut row = snapshots_and_compressed_clusters(seed, 512, "");
    row.name = "shrinking beside a snapshot and compressed clusters".into();
    row.steps.truncate(8);
    row.steps.push(Step::Flush);
    row.steps.push(resize(30 << 10, Preallocation::Off));
    row.steps.push(resize(100 << 10, Preallocation::Off));
    row
}

/// The version and the width of refcounts change, beside snapshots.
fn amends(seed: u64) -> Vec<Row> {
    let kinds = [
        (2, 16, false, Some("1.1"), None),
        (2, 16, true, Some("1.1"), Some(8)),
        (3, 16, false, Some("0.10"), None),
        (3, 64, true, Some("0.10"), Some(16)),
        (3, 16, false, None, Some(64)),
        (3, 64, true, None, Some(4)),
    ];
    let row = |(version, bits, with_backing, compat, refcount_bits): (_, _, bool, Option<&str>, _)| {
        let cluster = if with_backing { 4096 } else { 512 };
        let small = options(100 << 10, cluster, bits, version);
        let backing = with_backing.then(|| base(80 << 10));
        let small = if with_backing { overlay(small) } else { small };
        let mut steps = workload(seed, 100 << 10, cluster as usize, 6);
        steps.push(take_snapshot("one", false));
        steps.extend(workload(seed + 1, 100 << 10, cluster as usize, 6));
        let compat = compat.map(str::to_owned);
        let options = AmendOptions { compat, refcount_bits, ..AmendOptions::default() };
        let name = format!("amending, version {version}, {bits} bits, backing {with_backing}: {options:?}");
        let make = move |node: Rc<Node>| {
            let options = options.clone();
            async move { node.driver().amender().unwrap().amend(&options).await }.boxed_local()
        };
        steps.push(change("amend", make, |_| {}));
        new_row(name, &small, backing, steps)
    };
    kinds.into_iter().map(row).collect()
}

/// Overlays are emptied, with and without a snapshot beside, and get another backing file.
fn overlays(seed: u64) -> Vec<Row> {
    let kinds = [(512, 3, false), (512, 2, true), (4096, 3, true), (65536, 3, false)];
    let row = |(cluster, version, with_snapshot): (u64, u32, bool)| {
        let (size, backing) = (250 << 10, base(200 << 10));
        let small = overlay(options(size as u64, cluster, 16, version));
        let mut steps = workload(seed, size, cluster as usize, 12);
        if with_snapshot {
            steps.push(take_snapshot("one", false));
            steps.extend(workload(seed + 1, size, cluster as usize, 6));
        }
        steps.push(make_empty(backing.clone()));
        steps.extend(workload(seed + 2, size, cluster as usize, 6));
        steps.push(make_empty(backing.clone()));
        // Longer, and still the same file to whoever looks for it.
        let dots = if cluster == 512 { 1 } else { 120 };
        steps.push(change_backing(&format!("{}base", "./".repeat(dots))));
        let name = format!("an overlay, version {version}, clusters of {cluster}, snapshot {with_snapshot}");
        new_row(name, &small, Some(backing), steps)
    };
    kinds.into_iter().map(row).collect()
}

fn make_empty(backing: Vec<u8>) -> Step {
    let make =
        |node: Rc<Node>| async move { node.driver().overlay().unwrap().make_empty().await }.boxed_local();
    change("make empty", make, move |seen| {
        let size = seen.content.len();
        seen.content.clone_from(&backing);
        seen.content.resize(size, 0);
    })
}

fn change_backing(name: &str) -> Step {
    let backing = BackingName { file: name.to_owned(), format: Some("raw".into()) };
    let make = move |node: Rc<Node>| {
        let backing = backing.clone();
        async move { node.driver().overlay().unwrap().change_backing(Some(&backing)).await }.boxed_local()
    };
    change("change the backing file", make, |_| {})
}

fn resize(size: usize, mode: Preallocation) -> Step {
    change(
        "resize",
        move |node| async move { node.truncate(size as u64, mode).await }.boxed_local(),
        move |seen| seen.content.resize(size, 0),
    )
}

/// Internal snapshots come, are replaced and applied, and go, with writes in between and VM state behind the disk.
fn snapshots_change(seed: u64) -> Vec<Row> {
    let kinds = [(512, 16, 3, false), (4096, 4, 3, true), (16384, 64, 3, false), (512, 16, 2, false)];
    let row = |(cluster, bits, version, with_backing): (u64, u64, u32, bool)| {
        let small = options(100 << 10, cluster, bits, version);
        let backing = with_backing.then(|| base(250 << 10));
        let small = if with_backing { overlay(small) } else { small };
        let mut steps = Vec::new();
        let writes = |steps: &mut Vec<Step>| {
            steps.extend(workload(seed + steps.len() as u64, 100 << 10, cluster as usize, 4));
        };
        writes(&mut steps);
        steps.push(take_snapshot("one", false));
        writes(&mut steps);
        steps.push(take_snapshot("two", false));
        writes(&mut steps);
        steps.extend([take_snapshot("one", true), apply_snapshot("two")]);
        writes(&mut steps);
        if version > 2 {
            steps.push(resize(130 << 10, Preallocation::Off));
        }
        steps.extend([store_vm_state(), take_snapshot("three", false), store_vm_state()]);
        steps.extend([delete_snapshot("two"), apply_snapshot("one")]);
        writes(&mut steps);
        steps.extend([take_snapshot("three", true), delete_snapshot("one"), delete_snapshot("three")]);
        writes(&mut steps);
        let name = format!(
            "snapshots, version {version}, clusters of {cluster}, {bits} bits, backing {with_backing}"
        );
        new_row(name, &small, backing, steps)
    };
    kinds.into_iter().map(row).collect()
}

/// A snapshot with VM state, in place of those of its name or beside them.
fn take_snapshot(name: &'static str, replace: bool) -> Step {
    let make = move |node: Rc<Node>| {
        let new = NewSnapshot { name: name.into(), vm_state_size: 9000, ..NewSnapshot::default() };
        async move {
            let snapshots = node.driver().snapshots().unwrap();
            let done = if replace { snapshots.replace(&new).await } else { snapshots.create(&new).await };
            done.map(drop)
        }
        .boxed_local()
    };
    change(if replace { "replace" } else { "create" }, make, move |seen| {
        seen.snapshots.retain(|(other, _)| !replace || other != name);
        seen.snapshots.push((name.into(), seen.content.clone()));
    })
}

fn apply_snapshot(name: &'static str) -> Step {
    let make = move |node: Rc<Node>| {
        async move { node.driver().snapshots().unwrap().apply(&Selector::Name(name.into())).await }
            .boxed_local()
    };
    change("apply", make, move |seen| {
        let found = seen.snapshots.iter().find(|(other, _)| other == name);
        seen.content.clone_from(&found.unwrap().1);
    })
}

fn delete_snapshot(name: &'static str) -> Step {
    let make = move |node: Rc<Node>| {
        async move { node.driver().snapshots().unwrap().delete(&Selector::Name(name.into())).await }
            .boxed_local()
    };
    change("delete", make, move |seen| seen.snapshots.retain(|(other, _)| other != name))
}

/// Bytes behind the disk, which nobody sees.
fn store_vm_state() -> Step {
    let make = |node: Rc<Node>| {
        async move {
            let bytes = Buffer::from_bytes(&[0x5a; 9000]).iov(9000);
            node.driver().vm_state().unwrap().write(0, &bytes).await?;
            node.flush().await
        }
        .boxed_local()
    };
    change("VM state", make, |_| {})
}

fn new_row(name: String, options: &CreateOptions, backing: Option<Vec<u8>>, steps: Vec<Step>) -> Row {
    let disk = Disk::create(Backend::Auto, options, backing.clone());
    disk.close();
    Row { name, bytes: disk.bytes(), backing, steps, damaged: false, slow: false }
}

pub(super) fn options(size: u64, cluster_size: u64, refcount_bits: u64, version: u32) -> CreateOptions {
    CreateOptions { size, cluster_size, refcount_bits, version, ..CreateOptions::default() }
}

pub(super) fn overlay(options: CreateOptions) -> CreateOptions {
    let (backing_file, backing_format) = (Some("base".into()), Some("raw".into()));
    CreateOptions { backing_file, backing_format, ..options }
}

/// Random requests, up to three at once, with a flush now and then and at the end.
pub(super) fn workload(seed: u64, size: usize, cluster: usize, steps: usize) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed ^ (size * cluster) as u64);
    let mut out = Vec::new();
    // What is done to large clusters takes long.
    let steps = if cluster > 4096 { steps / 2 } else { steps };
    for _ in 0..steps {
        let mut batch: Vec<Request> = Vec::new();
        for _ in 0..rng.random_range(1..4) {
            let request = request(&mut rng, size, cluster);
            let (start, end) = (request.range().start, request.range().end);
            if batch.iter().all(|other| other.range().end <= start || end <= other.range().start) {
                batch.push(request);
            }
        }
        out.push(Step::Guest(batch));
        if rng.random_range(0..8) == 0 {
            out.push(Step::Flush);
        }
    }
    out.push(Step::Flush);
    out
}

fn request(rng: &mut StdRng, size: usize, cluster: usize) -> Request {
    let aligned = rng.random_range(0..8) > 0;
    let unit = if aligned { SECTOR } else { 1 };
    let start = rng.random_range(0..size / unit) * unit;
    let longest = (3 * cluster).min(100 << 10).min(size - start) / unit;
    let range = start..start + rng.random_range(1..=longest) * unit;
    match rng.random_range(0..12) {
        0..6 => {
            let mut bytes = vec![0; range.len()];
            rng.fill(&mut bytes[..]);
            Request::Write(start, bytes)
        }
        6..8 => {
            let start = start / cluster * cluster;
            let end = range.end.next_multiple_of(cluster).min(size);
            Request::Compressed(start, compressible(rng, end - start))
        }
        8..11 => Request::Zero(range, rng.random()),
        _ => Request::Discard(range),
    }
}
