//! The image that is served, as a drive: as it is, from an offset on, an internal snapshot of it, or under a temporary
//! overlay.

use super::Failure;
use super::options::Wish;
use crate::block::aio::{Backend, Engine};
use crate::block::drive::{Drive, Reshape};
use crate::block::format::raw::{Raw, Window};
use crate::block::graph::Node;
use crate::block::graph::snapshots::Selector;
use crate::block::open::open;
use crate::block::ops::create::{Template, create};
use crate::block::options::{CacheMode, OpenOptions};
use crate::block::{Error, Kind, Result, describe};
use crate::util::keyval::Options;
use crate::util::text;
use std::rc::Rc;
use std::sync::Arc;

/// The drive, and the folder of its overlay, which goes away with it.
pub(super) struct Image {
    pub(super) drive: Arc<Drive>,
    _overlay: Option<tempfile::TempDir>,
}

/// Opens the image.
pub(super) fn open_image(wish: &Wish) -> std::result::Result<Image, Failure> {
    let failed = |error: &Error| Failure::block(&format!("Failed to blk_new_open '{}'", wish.file), error);
    let described = match wish.described {
        true => describe::from_options(&wish.file, &wish.open).map(Some),
        false => describe::from_name(&wish.file, &wish.open),
    };
    let described = described.map_err(|error| failed(&error))?;
    let (mut file, mut options) = described.unwrap_or_else(|| (wish.file.clone(), wish.open.clone()));
    let mut overlay = None;
    if wish.overlay && wish.snapshot.is_none() {
        let folder = tempfile::Builder::new().prefix("cowvm-nbd-").tempdir_in(temporary())?;
        file =
            text::from_os(overlay_in(&folder, &file, &options).map_err(|error| failed(&error))?.as_os_str());
        options = OpenOptions {
            format: Some("qcow2".to_owned()),
            cache: CacheMode { no_flush: true, ..options.cache },
            driver: Options::default(),
            read_only: false,
            location: None,
            ..options
        };
        overlay = Some(folder);
    }
    let drive = Drive::open_reshaped("nbd", &file, &options, reshape(wish, options.unmap));
    let drive = drive.map_err(|error| match error.file() {
        // What was made of the image has words of its own.
        _ if error.message().starts_with(LOAD) || error.message().starts_with("Offset (") => {
            Failure::plain(&error)
        }
        _ if error.message().starts_with("Value '") => Failure::plain(&error),
        _ => failed(&error),
    })?;
    Ok(Image { drive, _overlay: overlay })
}

/// What begins the message about a snapshot that cannot be had.
const LOAD: &str = "Failed to load snapshot";

/// Where temporary files go: as QEMU has it, the place for larger ones.
fn temporary() -> std::path::PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), Into::into)
}

/// Makes an overlay of `file`.
fn overlay_in(folder: &tempfile::TempDir, file: &str, options: &OpenOptions) -> Result<std::path::PathBuf> {
    let engine = Engine::new(Backend::from_environment())?;
    let path = folder.path().join("overlay.qcow2");
    engine.block_on(async {
        let below = open(&engine, file, &OpenOptions { read_only: true, ..options.clone() }).await?;
        let (size, format) = (below.size(), below.driver().format_name());
        below.close().await?;
        let backing = std::fs::canonicalize(text::to_path(file))?;
        let mut values = Template::new("qcow2", true)?.values(&Options::default())?;
        values.set("size", &size.to_string())?;
        values.set("backing_file", &text::from_os(backing.as_os_str()))?;
        values.set("backing_fmt", format)?;
        create(&engine, &text::from_os(path.as_os_str()), &values, &options.secrets).await
    })??;
    Ok(path)
}

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
