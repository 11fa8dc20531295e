//! Encrypted images, their key slots, and images with an external data file.

use super::super::memory::PASSPHRASE;
use super::super::model::base;
use super::super::operations::{Request, Row, Step, change};
use super::snapshots::take_snapshot;
use super::{new_row, options, overlay, workload};
use crate::block::crypto::{Key, luks};
use crate::block::encryption::SlotChange;
use crate::block::format::qcow2::{CreateOptions, EncryptOptions};
use crate::block::graph::Node;
use futures_util::future::FutureExt;
use std::rc::Rc;
use std::time::Duration;

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

pub(super) fn encrypted(seed: u64) -> Vec<Row> {
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
pub(super) fn key_slots(seed: u64) -> Row {
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

/// The data file stands in the same file, see [`super::super::window`].
pub(super) fn data_files(seed: u64) -> Vec<Row> {
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
