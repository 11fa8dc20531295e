//! Internal snapshots come, are applied, replaced and go.

use super::super::model::base;
use super::super::operations::{Row, Step, change};
use super::sizes::resize;
use super::{new_row, options, overlay, workload};
use crate::block::Buffer;
use crate::block::graph::Node;
use crate::block::graph::snapshots::{NewSnapshot, Selector};
use crate::block::options::Preallocation;
use futures_util::future::FutureExt;
use std::rc::Rc;

/// Internal snapshots come, are replaced and applied, and go, with writes in between and VM state behind the disk.
pub(super) fn snapshots_change(seed: u64) -> Vec<Row> {
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
pub(super) fn take_snapshot(name: &'static str, replace: bool) -> Step {
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
