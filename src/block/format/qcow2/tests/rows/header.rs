//! What the header says of an image changes, and overlays are emptied.

use super::super::model::base;
use super::super::operations::{Row, Seen, Step, change, change_in_stages};
use super::snapshots::take_snapshot;
use super::{new_row, options, overlay, workload};
use crate::block::graph::Node;
use crate::block::graph::amend::AmendOptions;
use crate::block::graph::overlay::BackingName;
use futures_util::future::FutureExt;
use std::rc::Rc;

/// The version and the width of refcounts change, beside snapshots.
pub(super) fn amends(seed: u64) -> Vec<Row> {
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

/// Images of version 2, with a snapshot, get another size with version 3: they grow over a longer backing file, and
/// shrink.
pub(super) fn amends_of_size(seed: u64) -> [Row; 2] {
    [(4096, 230 << 10, None), (512, 40 << 10, Some(8))].map(|(cluster, size, refcount_bits)| {
        let (backing, small) = (base(200 << 10), overlay(options(100 << 10, cluster, 16, 2)));
        let mut steps = workload(seed, 100 << 10, cluster as usize, 6);
        steps.push(take_snapshot("one", false));
        steps.extend(workload(seed + 1, 100 << 10, cluster as usize, 6));
        let (compat, new_size) = (Some("1.1".into()), Some(size as u64));
        let options = AmendOptions { compat, refcount_bits, size: new_size, ..AmendOptions::default() };
        let name = format!("amending with a snapshot, clusters of {cluster}: {options:?}");
        let make = move |node: Rc<Node>| {
            let options = options.clone();
            async move { node.driver().amender().unwrap().amend(&options).await }.boxed_local()
        };
        steps.push(change_in_stages("amend", make, move |seen| seen.content.resize(size, 0), stages));
        new_row(name, &small, Some(backing), steps)
    })
}

/// The version first, then the size, then the rest.
fn stages(old: &Seen, new: &Seen) -> Vec<Seen> {
    let specifics = |seen: &Seen| seen.facts.split_once(", ").unwrap().1.to_owned();
    let upgraded = specifics(new).replace("refcount_bits: 8", "refcount_bits: 16");
    let stage = |seen: &Seen| {
        let facts = format!("{} bytes, {upgraded}", seen.content.len());
        Seen { facts, ..seen.clone() }
    };
    vec![stage(old), stage(new)]
}

/// Overlays are emptied, with and without a snapshot beside, and get another backing file.
pub(super) fn overlays(seed: u64) -> Vec<Row> {
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
