//! The image that is served, as a drive: as it is, from an offset on, an internal snapshot of it, or under a temporary
//! overlay.

use super::Failure;
use super::task::Wish;
use crate::block::drive::{Drive, Reshape};
use crate::block::format::raw::{Raw, Window};
use crate::block::graph::Node;
use crate::block::graph::snapshots::Selector;
use crate::block::options::OpenOptions;
use crate::block::{Error, Kind, Result, describe};
use crate::util::keyval::Options;
use std::rc::Rc;
use std::sync::Arc;

/// Opens the image.
pub(super) fn open_image(wish: &Wish) -> std::result::Result<Arc<Drive>, Failure> {
    let failed = |error: &Error| Failure::block(&format!("Failed to blk_new_open '{}'", wish.file), error);
    let described = match wish.described {
        true => describe::from_options(&wish.file, &wish.open).map(Some),
        false => describe::from_name(&wish.file, &wish.open),
    };
    let described = described.map_err(|error| failed(&error))?;
    let (file, options) = described.unwrap_or_else(|| (wish.file.clone(), wish.open.clone()));
    let options = OpenOptions { snapshot: wish.overlay && wish.snapshot.is_none(), ..options };
    let drive = Drive::open_reshaped("nbd", &file, &options, reshape(wish, options.unmap));
    drive.map_err(|error| match error.file() {
        // What was made of the image has words of its own.
        _ if error.message().starts_with(LOAD) || error.message().starts_with("Offset (") => {
            Failure::plain(&error)
        }
        _ if error.message().starts_with("Value '") => Failure::plain(&error),
        _ => failed(&error),
    })
}

/// What begins the message about a snapshot that cannot be had.
const LOAD: &str = "Failed to load snapshot";

/// What is served of the image, if not all of it.
fn reshape(wish: &Wish, unmap: bool) -> Option<Reshape> {
    let (snapshot, offset) = (wish.snapshot.clone(), wish.offset.clone());
    if snapshot.is_none() && offset.is_none() {
        return None;
    }
    Some(Box::new(move |root| {
        Box::pin(async move {
            let root = match &snapshot {
                Some(which) => load(&root, which).await?,
                None => root,
            };
            match offset {
                Some(offset) => from_offset(root, &offset, unmap),
                None => Ok(root),
            }
        })
    }))
}

async fn load(root: &Rc<Node>, which: &Selector) -> Result<Rc<Node>> {
    let Some(snapshots) = root.driver().snapshots() else {
        let format = root.driver().format_name();
        let what = format!(
            "{LOAD}: Block format '{format}' used by device '' does not support temporarily loading internal \
             snapshots"
        );
        return Err(Error::new(Kind::Unsupported, what));
    };
    snapshots.view(which).await.map_err(|error| match error.kind() {
        Kind::NotFound => error.replaced(format!("{LOAD}: Can't find snapshot")),
        _ => error.context(LOAD),
    })
}

fn from_offset(root: Rc<Node>, offset: &str, unmap: bool) -> Result<Rc<Node>> {
    let mut options = Options::default();
    options.set("offset", offset);
    let window = Window::take(&mut options, root.size())?;
    let name = root.filename().to_owned();
    Ok(Node::new(name, Box::new(Raw::new(root, false, window, unmap))))
}
