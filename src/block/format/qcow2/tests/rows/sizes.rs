//! Disks become larger and smaller.

use super::super::model::base;
use super::super::operations::{Row, Step, change};
use super::{new_row, options, overlay, snapshots_and_compressed_clusters, workload};
use crate::block::options::Preallocation;
use futures_util::future::FutureExt;

pub(super) fn grows(seed: u64) -> Vec<Row> {
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
pub(super) fn shrinks(seed: u64) -> Vec<Row> {
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

pub(super) fn resize(size: usize, mode: Preallocation) -> Step {
    change(
        "resize",
        move |node| async move { node.truncate(size as u64, mode).await }.boxed_local(),
        move |seen| seen.content.resize(size, 0),
    )
}
