//! The table of operations that the sweeps go through. To add one: a row, with
//! [`change`](super::operations::change) for what it does and what it makes of the image.

mod bitmaps;
mod damage;
mod encryption;
mod header;
mod sizes;
mod snapshots;

use super::memory::{Disk, Folder};
use super::model::{base, compressible};
use super::operations::{Request, Row, Step, sweep_seed};
use crate::block::aio::Backend;
use crate::block::format::qcow2::CreateOptions;
use crate::block::options::Preallocation;
use bitmaps::bitmaps;
use damage::repairs;
use encryption::{data_files, encrypted, key_slots};
use header::{amends, amends_of_size, overlays};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sizes::{grows, shrinks};
use snapshots::snapshots_change;

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
    rows.extend(amends_of_size(seed));
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
