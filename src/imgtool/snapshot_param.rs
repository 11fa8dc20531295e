//! `-l`: which internal snapshot of an image is meant, and its disk.

use super::output::Failure;
use crate::block::Kind;
use crate::block::graph::Node;
use crate::block::graph::snapshots::Selector;
use std::rc::Rc;

/// Whether `text` is a name or ID, and no option string.
pub(super) fn is_plain(text: &str) -> bool {
    matches!(Selector::parse(text), Ok(Selector::IdOrName(_)))
}

/// Reads the value of the option.
pub(super) fn parse(text: &str) -> Result<Selector, Failure> {
    Selector::parse(text).map_err(|error| Failure::Twice {
        first: error.message().to_owned(),
        then: format!("Failed in parsing snapshot param '{text}'"),
    })
}

/// The disk as the snapshot has it.
pub(super) async fn open(image: &Node, which: &Selector) -> Result<Rc<Node>, Failure> {
    let failed = |why: &str| Failure::message(format!("Failed to load snapshot: {why}"));
    let Some(snapshots) = image.driver().snapshots() else {
        return Err(failed(&format!(
            "Block format '{}' used by device '' does not support temporarily loading internal snapshots",
            image.driver().format_name()
        )));
    };
    snapshots.view(which).await.map_err(|error| match error.kind() {
        Kind::NotFound => failed("Can't find snapshot"),
        _ => Failure::block("Failed to load snapshot", &error),
    })
}
