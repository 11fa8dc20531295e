//! `--bitmaps`: the persistent bitmaps of the source's top layer in the output.

use super::super::output::Failure;
use super::super::warn;
use crate::block::graph::Node;
use crate::block::graph::bitmaps::{BitmapInfo, Bitmaps};
use std::rc::Rc;

/// Refuses sources without bitmaps, or with some that nobody can read.
pub(super) fn check_source(sources: &[Rc<Node>], skip_broken: bool) -> Result<(), Failure> {
    let [source] = sources else {
        return Err(Failure::message("Copying bitmaps only possible with single source"));
    };
    if !are_stored_by(source) {
        return Err(Failure::message("Source lacks bitmap support"));
    }
    match list(source).into_iter().find(|bitmap| bitmap.inconsistent) {
        Some(broken) if !skip_broken => Err(Failure::message(format!(
            "Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
            broken.name
        ))),
        _ => Ok(()),
    }
}

/// Whether an image can hold bitmaps.
pub(super) fn are_stored_by(image: &Node) -> bool {
    image.driver().bitmaps().is_some_and(Bitmaps::have_room)
}

/// Copies all bitmaps but the broken ones, of which it warns.
pub(super) async fn copy(source: &Node, target: &Node, skip_broken: bool) -> Result<(), Failure> {
    let (Some(from), Some(to)) = (source.driver().bitmaps(), target.driver().bitmaps()) else {
        return Ok(());
    };
    for bitmap in list(source) {
        if bitmap.inconsistent && skip_broken {
            warn(&format!("Skipping inconsistent bitmap '{}'", bitmap.name));
            continue;
        }
        copy_one(from, to, &bitmap).await?;
    }
    Ok(())
}

async fn copy_one(from: &dyn Bitmaps, to: &dyn Bitmaps, bitmap: &BitmapInfo) -> Result<(), Failure> {
    let name = &bitmap.name;
    let added = to.add(name, Some(bitmap.granularity), bitmap.enabled).await;
    added.map_err(|error| Failure::block(&format!("Failed to create bitmap {name}"), &error))?;
    if let Err(error) = to.merge(name, from, name).await {
        // What is there now says that nothing changed, which nobody knows.
        let _ = to.remove(name).await;
        return Err(Failure::block(&format!("Failed to populate bitmap {name}"), &error));
    }
    Ok(())
}

fn list(image: &Node) -> Vec<BitmapInfo> {
    image.driver().bitmaps().map(Bitmaps::list).unwrap_or_default()
}
