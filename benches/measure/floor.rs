//! What no program gets under: the host's copies, or the codec, of a workload and nothing else.
//!
//! As many threads as requests are in flight, but no more than processors; or one, where threads that wait for each other's
//! locks are slower.

use cowvm::block::AlignedBytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

/// A cluster, in bytes.
const CLUSTER: u64 = 64 << 10;
/// What is copied at once, in bytes.
const BLOCK: u64 = 256 << 10;

/// Runs `work` for the numbers below `count`, shared between threads that each have what `make` makes; returns the seconds
/// that took.
fn timed<T>(depth: u64, count: u64, make: impl Fn() -> T + Sync, work: impl Fn(&mut T, u64) + Sync) -> f64 {
    let threads = thread::available_parallelism().map_or(1, |n| n.get() as u64).min(depth);
    let start = Instant::now();
    thread::scope(|scope| {
        for first in 0..threads {
            let (make, work) = (&make, &work);
            scope.spawn(move || {
                let mut own = make();
                (first..count).step_by(threads as usize).for_each(|number| work(&mut own, number));
            });
        }
    });
    start.elapsed().as_secs_f64()
}

/// The better of `run` with `depth` threads and with one.
fn best(depth: u64, run: impl Fn(u64) -> f64) -> f64 {
    if depth == 1 { run(1) } else { run(depth).min(run(1)) }
}

/// Copies the blocks of `source` of which `is_data` says that they are data to the new file `target`.
pub(crate) fn copies(source: &Path, target: &Path, is_data: impl Fn(u64) -> bool + Sync) -> f64 {
    let from = File::open(source).unwrap();
    let size = from.metadata().unwrap().len();
    best(u64::MAX, |depth| {
        let _ = std::fs::remove_file(target);
        let start = Instant::now();
        let to = File::create_new(target).unwrap();
        to.set_len(size).unwrap();
        timed(depth, size / BLOCK, AlignedBytes::default, |memory, number| {
            if is_data(number * BLOCK) {
                let block = memory.first(BLOCK as usize);
                from.read_exact_at(block, number * BLOCK).unwrap();
                to.write_all_at(block, number * BLOCK).unwrap();
            }
        });
        start.elapsed().as_secs_f64()
    })
}

/// Writes `size` bytes to the start of each of `count` clusters of the new file `target`; over a backing file, whole
/// clusters, of which what is not overwritten is read there before.
pub(crate) fn writes(target: &Path, base: Option<&Path>, depth: u64, count: u64, size: u64) -> f64 {
    let base = base.filter(|_| size < CLUSTER).map(|base| File::open(base).unwrap());
    best(depth, |depth| {
        let _ = std::fs::remove_file(target);
        let file = File::create_new(target).unwrap();
        timed(depth, count, AlignedBytes::default, |memory, number| {
            let cluster = memory.first(CLUSTER as usize);
            match &base {
                Some(base) => {
                    base.read_exact_at(cluster, number * CLUSTER).unwrap();
                    file.write_all_at(cluster, number * CLUSTER).unwrap();
                }
                None => file.write_all_at(&cluster[..size as usize], number * CLUSTER).unwrap(),
            }
        })
    })
}

/// Decodes `count` clusters, those of `content` over and over, by zlib's or zstd's codec.
pub(crate) fn decoding(content: &[u8], zstd: bool, depth: u64, count: u64) -> f64 {
    let encoded: Vec<Vec<u8>> =
        content.chunks(CLUSTER as usize).map(|cluster| encode(cluster, zstd)).collect();
    let make = || (zstd_safe::DCtx::create(), libdeflater::Decompressor::new(), vec![0; CLUSTER as usize]);
    timed(depth, count, make, |(unzstd, inflate, out), number| {
        let encoded = &encoded[number as usize % encoded.len()];
        if zstd {
            unzstd.decompress(&mut out[..], encoded).unwrap();
        } else {
            inflate.deflate_decompress(encoded, out).unwrap();
        }
        std::hint::black_box(out);
    })
}

fn encode(cluster: &[u8], zstd: bool) -> Vec<u8> {
    let mut out = vec![0; 2 * cluster.len()];
    let len = if zstd {
        zstd_safe::compress(&mut out[..], cluster, 3).unwrap()
    } else {
        let mut codec = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        codec.deflate_compress(cluster, &mut out).unwrap()
    };
    out.truncate(len);
    out
}
