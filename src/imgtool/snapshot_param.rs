//! `-l`: which internal snapshot of an image is meant, and its disk.

use super::output::Failure;
use crate::block::Kind;
use crate::block::graph::Node;
use crate::block::graph::snapshots::Selector;
use crate::util::keyval::Options;
use std::rc::Rc;

/// What begins an option string; anything else is a name or an ID.
const PREFIX: &str = "snapshot.";

/// Whether `text` is a name or ID, and no option string.
pub(super) fn is_plain(text: &str) -> bool {
    !text.starts_with(PREFIX)
}

/// Reads `snapshot.id=ID,snapshot.name=NAME` (one of them will do), or a name or ID.
pub(super) fn parse(text: &str) -> Result<Selector, Failure> {
    if is_plain(text) {
        return Ok(Selector::IdOrName(text.to_owned()));
    }
    let mut options = Options::parse(text, None);
    let (id, name) = (options.take("snapshot.id"), options.take("snapshot.name"));
    options.finish().map_err(|error| Failure::Twice {
        first: error.to_string(),
        then: format!("Failed in parsing snapshot param '{text}'"),
    })?;
    Ok(match (id, name) {
        (Some(id), Some(name)) => Selector::IdAndName(id, name),
        (Some(id), None) => Selector::Id(id),
        (None, name) => Selector::Name(name.unwrap_or_default()),
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
