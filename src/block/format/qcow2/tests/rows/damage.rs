//! Images that a check finds fault with, and their repair.

use super::super::memory::Disk;
use super::super::operations::{Row, Step, change};
use super::{options, workload};
use crate::block::Error;
use crate::block::aio::Backend;
use crate::block::graph::Node;
use crate::block::graph::driver::Repair;
use futures_util::future::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io;
use std::rc::Rc;

/// Images that a check finds fault with. What the guest sees is whole in all of them.
pub(super) fn repairs(seed: u64) -> Vec<Row> {
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
