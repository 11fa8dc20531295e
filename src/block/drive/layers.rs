//! The layers of a drive that is in use: temporary overlays, external snapshots, commit.
//!
//! ```text
//!   snapshot=on      root: temporary overlay ─▶ the image, read-only
//!   take_overlay     root: new overlay ─▶ what was the root, read-only now
//!   commit           root, emptied ─▶ the image below, opened for writing meanwhile
//! ```
//! All of it runs while no request is in flight. An image is opened in its other mode before the node that has it
//! open goes away, so that whatever fails, the drive goes on with what it had.

use super::Local;
use super::empty::no_root;
use crate::block::aio::Engine;
use crate::block::format::qcow2::{self, CreateOptions};
use crate::block::graph::{ChildRole, Node};
use crate::block::open::{open, open_over};
use crate::block::ops::commit::{CommitOptions, commit};
use crate::block::ops::create::{Template, create};
use crate::block::options::OpenOptions;
use crate::block::protocol::Location;
use crate::block::protocol::file::{Access, Expected, FileDriver};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use crate::util::text;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// An image of the drive: its name, and how it is opened but for the mode.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) filename: String,
    pub(super) options: OpenOptions,
}

/// The graph of a drive.
pub(super) struct Graph {
    pub(super) root: Rc<Node>,
    /// The image below the root, where a temporary overlay was put on top.
    pub(super) below: Option<Layer>,
    /// What was to be opened.
    pub(super) how: Layer,
}

impl Graph {
    /// A graph that is `root` and what is below it.
    #[cfg(test)]
    pub(super) fn of(root: Rc<Node>, options: OpenOptions) -> Graph {
        let how = Layer { filename: root.filename().to_owned(), options };
        Graph { root, below: None, how }
    }
}

/// Opens the graph of a drive; a removable one has no medium where there is no name.
pub(super) async fn open_root(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<Graph> {
    let how = Layer { filename: filename.to_owned(), options: options.clone() };
    if options.removable.is_some() && filename.is_empty() {
        return Ok(Graph { root: no_root(), below: None, how });
    }
    if !options.snapshot || options.read_only {
        return Ok(Graph { root: open(engine, filename, options).await?, below: None, how });
    }
    let base = how.open(engine, true).await?;
    Ok(Graph { root: temporary_overlay(engine, &base).await?, below: Some(how.clone()), how })
}

/// An overlay over `base` that nobody else can see and that is gone with the process.
async fn temporary_overlay(engine: &Rc<Engine>, base: &Rc<Node>) -> Result<Rc<Node>> {
    let name = format!("{} (snapshot)", base.filename());
    let file = Node::new(&*name, Box::new(FileDriver::temporary(engine, &name)?));
    qcow2::create(engine, &file, None, &CreateOptions { size: base.size(), ..CreateOptions::default() })
        .await
        .map_err(|error| error.context("Could not make the temporary overlay"))?;
    open_over(engine, file, base, &name, false).await
}

impl Layer {
    async fn open(&self, engine: &Rc<Engine>, read_only: bool) -> Result<Rc<Node>> {
        let options = OpenOptions {
            read_only,
            // Who writes must be alone.
            force_share: self.options.force_share && read_only,
            ..self.options.clone()
        };
        open(engine, &self.filename, &options).await
    }
}

impl Local {
    /// Writes what the top image has into its backing file, and empties it. Requests wait meanwhile.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without a backing file; what the host says. The disk shows the same in every case.
    pub async fn commit(&self) -> Result<()> {
        let _drained = self.drained().await;
        let top = self.root();
        let below = top.child(ChildRole::Backing).ok_or_else(no_backing)?;
        check_committable(&top)?;
        check_reopens(&below)?;
        let layer = self.layer_below(&below);
        let base = self.exchange_backing(&below, &layer, false).await?;
        let options = CommitOptions { rate: 0, make_empty: true };
        let done = commit(&self.engine, &top, &base, &options, None).await;
        // It stays open for writing where that fails, which costs others the right to read it and nothing else.
        let _ = self.exchange_backing(&base, &layer, true).await;
        done
    }

    /// Whether there is a backing file that [`Local::commit`] could write to.
    pub fn has_backing(&self) -> bool {
        self.root().child(ChildRole::Backing).is_some()
    }

    /// Goes on in a new overlay over the image that was the root: an external snapshot. With `reuse`, `filename` is
    /// an empty overlay that exists.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] where there is a file of that name already, or none to be reused; what the host
    /// says. The drive then goes on as before.
    pub async fn take_overlay(&self, filename: &str, reuse: bool) -> Result<()> {
        let _drained = self.drained().await;
        self.require_medium()?;
        let below = self.root();
        self.check_overlay(filename, reuse)?;
        below.flush().await?;
        let ours = !text::to_path(filename).exists();
        let top = self.make_overlay(filename, &below, reuse).await.inspect_err(|_| {
            if ours {
                // Who cannot remove it can still use it with `reuse`.
                let _ = std::fs::remove_file(text::to_path(filename));
            }
        })?;
        let layer = self.how.replace(self.overlay_layer(filename));
        self.root.replace(top);
        self.facts.set_image(filename, "qcow2");
        // It stays open for writing where that fails, as after a commit.
        let _ = self.exchange_backing(&below, &layer, true).await;
        self.below.replace(Some(layer));
        Ok(())
    }

    fn check_overlay(&self, filename: &str, reuse: bool) -> Result<()> {
        if self.root().driver().read_only() {
            return Err(Error::new(Kind::ReadOnly, format!("Device '{}' is read only", self.facts.id)));
        }
        if self.facts.options.snapshot {
            let what =
                format!("'{}' writes to a temporary overlay, which no image can stand upon", self.facts.id);
            return Err(Error::new(Kind::Unsupported, what).remedy("run it without snapshot mode"));
        }
        if !Location::can_be_named(bottom(&self.root()).driver().format_name()) {
            let what = format!("'{}' is no file, and an image can only stand upon files", self.facts.id);
            return Err(Error::new(Kind::Unsupported, what));
        }
        let length = std::fs::metadata(text::to_path(filename)).map(|found| found.len());
        match length {
            Ok(1..) if !reuse => Err(refuse(filename, "there is a file of that name already")),
            _ => Ok(()),
        }
    }

    /// An overlay has none of the options that the drive's own image has.
    fn overlay_layer(&self, filename: &str) -> Layer {
        let options = OpenOptions {
            format: Some("qcow2".to_owned()),
            driver: Options::default(),
            lazy_refcounts: None,
            data_file: None,
            location: Some(Location::of_host(filename)),
            ..self.facts.options.clone()
        };
        Layer { filename: filename.to_owned(), options }
    }

    async fn make_overlay(&self, filename: &str, below: &Rc<Node>, reuse: bool) -> Result<Rc<Node>> {
        if !reuse {
            self.create_overlay(filename, below).await?;
        }
        self.open_overlay(filename, below).await
    }

    async fn create_overlay(&self, filename: &str, below: &Rc<Node>) -> Result<()> {
        let mut values = Template::new("qcow2", false)?.values(&Options::default())?;
        values.set("size", &below.size().to_string())?;
        values.set("backing_file", &name_from(filename, below.filename()))?;
        values.set("backing_fmt", below.driver().format_name())?;
        create(&self.engine, filename, &values, &self.facts.options.secrets).await
    }

    async fn open_overlay(&self, filename: &str, below: &Rc<Node>) -> Result<Rc<Node>> {
        let options = OpenOptions { read_only: false, ..self.facts.options.clone() };
        let file = FileDriver::open(&self.engine, Expected::Any, filename, &options)?;
        file.lock(Access { write: true, resize: true, share_writes: false })?;
        let file = Node::new(filename, Box::new(file));
        let top = open_over(&self.engine, file, below, filename, options.unmap).await?;
        match top.size() == below.size() {
            true => Ok(top),
            false => Err(refuse(filename, "the overlay has another size than the disk")),
        }
    }

    /// How the image below the root is opened: as the drive opened it, or as the root's header says.
    fn layer_below(&self, below: &Rc<Node>) -> Layer {
        if let Some(layer) = self.below.borrow().clone() {
            return layer;
        }
        let how = self.how.borrow().options.clone();
        let mut driver = how.driver.clone().take_group("backing.");
        let _ = (driver.take("driver"), driver.take("file.filename"));
        let options = OpenOptions {
            format: Some(below.driver().format_name().to_owned()),
            location: Some(match Location::can_be_named(bottom(below).driver().format_name()) {
                // An image named it.
                true => Location::File(below.filename().to_owned()),
                false => Location::of_host(below.filename()),
            }),
            driver,
            lazy_refcounts: None,
            data_file: None,
            ..how
        };
        Layer { filename: below.filename().to_owned(), options }
    }

    /// Opens `old`, the image below the root, in another mode and puts it in its place. Where that fails all stays
    /// as it was.
    async fn exchange_backing(&self, old: &Rc<Node>, layer: &Layer, read_only: bool) -> Result<Rc<Node>> {
        let top = self.root();
        let overlay = top.driver().overlay().ok_or_else(no_backing)?;
        old.close().await?;
        old.driver().set_locked(false)?;
        let opened = layer.open(&self.engine, read_only).await.and_then(|new| is_same(old, new));
        match opened {
            Ok(new) => {
                overlay.set_backing(new.clone());
                Ok(new)
            }
            Err(error) => {
                old.driver().set_locked(true).map_err(|_| unguarded(old))?;
                Err(error)
            }
        }
    }
}

/// The node of an image's protocol.
fn bottom(image: &Rc<Node>) -> Rc<Node> {
    let below = std::iter::successors(image.child(ChildRole::File), |node| node.child(ChildRole::File));
    below.last().unwrap_or_else(|| image.clone())
}

/// A commit opens the image below the top anew, under a guest that goes on.
fn check_reopens(below: &Rc<Node>) -> Result<()> {
    match bottom(below).driver().reopens_as_it_is() {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Unsupported,
            "a directory cannot take over what was written in snapshot mode",
        )
        .remedy("run it without -snapshot, with rw:")),
    }
}

/// An image that was opened again shows the same disk.
fn is_same(old: &Node, new: Rc<Node>) -> Result<Rc<Node>> {
    let facts = |node: &Node| (node.driver().format_name(), node.size());
    match facts(old) == facts(&new) {
        true => Ok(new),
        false => Err(refuse(old.filename(), "it is not the same image any more")),
    }
}

/// Somebody has locked the image while it was not locked here.
fn unguarded(image: &Node) -> Error {
    Error::new(Kind::Locked, "another program has begun to use the image below the disk")
        .path(image.filename())
        .remedy("end one of the two: nothing keeps the other from writing to it")
}

/// Snapshots in the top image read through to the backing file, which a commit changes.
fn check_committable(top: &Node) -> Result<()> {
    if top.driver().read_only() {
        return Err(Error::new(Kind::ReadOnly, "the image is read-only"));
    }
    match top.driver().snapshots().map(|snapshots| snapshots.list().len()) {
        None | Some(0) => Ok(()),
        Some(_) => Err(Error::new(Kind::Unsupported, "its snapshots would change with the backing file")
            .remedy("delete them first (delvm)")),
    }
}

fn no_backing() -> Error {
    Error::new(Kind::Unsupported, "Operation not supported")
}

fn refuse(filename: &str, why: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("'{filename}': {why}")).path(filename)
}

/// The name of `image` as `overlay` finds it: alone where both are in one folder, so that they can be moved together.
fn name_from(overlay: &str, image: &str) -> String {
    let (overlay, image) = (text::to_path(overlay), text::to_path(image));
    let folder = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).canonicalize().ok()
    };
    let name = image.file_name().map(PathBuf::from);
    let beside = folder(&overlay).is_some_and(|here| folder(&image) == Some(here));
    let whole = || std::path::absolute(&image).unwrap_or_else(|_| image.to_path_buf());
    let plain = name.filter(|name| beside && !name.to_string_lossy().contains(':'));
    text::from_os(plain.unwrap_or_else(whole).as_os_str())
}
