//! Bitmaps come, change and go.

use super::super::operations::{Row, change};
use super::{new_row, options, workload};
use crate::block::graph::Node;
use crate::block::graph::bitmaps::Bitmaps;
use futures_util::future::FutureExt;
use std::rc::Rc;

/// Operations on bitmaps. Whether enabled ones can be trusted after a crash is told with their own tests.
pub(super) fn bitmaps(seed: u64) -> [Row; 2] {
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
