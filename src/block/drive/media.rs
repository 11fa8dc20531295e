//! Drives whose medium can be exchanged.
//!
//! ```text
//!   no medium       root: Empty, of which every request fails
//!   change_medium   drain ─▶ old one: write back, give up its locks ─▶ open the new one ─▶ root
//!   eject           drain ─▶ write back ─▶ Empty
//!   host's drive    once a second, a look: the disc is gone ─▶ Empty; one is there ─▶ opened by its name again
//! ```
//! Requests in flight are finished before a medium goes, and those that wait meanwhile fail: none reaches a medium that
//! it was not meant for. A new medium that cannot be opened leaves the old one in.

use super::empty::{no_medium, no_root};
use super::layers::{Graph, Layer, open_root};
use super::{Drive, Local};
use crate::block::graph::driver::{HostTray, Look};
use crate::block::graph::{ChildRole, Node};
use crate::block::options::{OpenOptions, Removable};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use crate::util::text;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How often a drive of the host is asked what is in it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A medium to put in.
#[derive(Clone, Debug)]
pub struct Medium {
    /// The image.
    pub filename: String,
    /// Its format; `None` probes.
    pub format: Option<String>,
    /// Whether it is write-protected; `None` as the one before.
    pub read_only: Option<bool>,
}

/// What a removable drive is like, for those who ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tray {
    /// The kind of drive. Only a CD-ROM drive has a door.
    pub kind: Removable,
    /// The door is open.
    pub open: bool,
    /// A medium is in.
    pub inserted: bool,
}

/// Whoever wants to know that a door was opened (`true`) or closed. Called from the drive's thread; it must not wait.
pub type TrayListener = Box<dyn Fn(&str, bool) + Send + Sync>;

/// The same as every thread may see it.
pub(super) struct TrayState {
    kind: Removable,
    open: AtomicBool,
    inserted: AtomicBool,
    listener: OnceLock<TrayListener>,
}

impl TrayState {
    pub(super) fn new(kind: Removable) -> TrayState {
        let (open, inserted) = (AtomicBool::new(false), AtomicBool::new(false));
        TrayState { kind, open, inserted, listener: OnceLock::new() }
    }

    /// Opens or closes the door, where there is one and it is not so already.
    fn move_door(&self, drive: &str, open: bool) {
        let moved = self.kind == Removable::Cdrom && self.open.swap(open, Ordering::AcqRel) != open;
        if let (true, Some(listener)) = (moved, self.listener.get()) {
            listener(drive, open);
        }
    }
}

impl Drive {
    /// What it is like, if its medium can be exchanged.
    pub fn tray(&self) -> Option<Tray> {
        let of = |tray: &TrayState| Tray {
            kind: tray.kind,
            open: tray.open.load(Ordering::Acquire),
            inserted: tray.inserted.load(Ordering::Acquire),
        };
        self.facts.tray.as_ref().map(of)
    }

    /// Has `listener` called when the door moves. Only the first that is set counts.
    pub fn listen_for_tray(&self, listener: TrayListener) {
        if let Some(tray) = &self.facts.tray {
            // There is one machine around a drive.
            let _ = tray.listener.set(listener);
        }
    }

    /// From now on media are noticed that come and go in a drive of the host; `changed` is called each time.
    ///
    /// # Errors
    /// Only when the drive is closed.
    pub fn watch_medium(&self, changed: impl Fn() + Send + 'static) -> Result<()> {
        self.spawn(|local| async move {
            loop {
                local.engine.sleep(LOOK_EVERY).await;
                if local.follow_host().await {
                    changed();
                }
            }
        })
    }
}

impl Local {
    /// Puts another medium in, in the place of any that is there.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the drive has none, what the old medium says when it is written back, what opening
    /// the new one says. The old one stays then.
    pub async fn change_medium(&self, medium: &Medium) -> Result<()> {
        let tray = self.removable()?;
        let how = self.how_to_open(medium, tray.kind)?;
        let _drained = self.drained().await;
        let old = self.root();
        // The new one may be the same image: then it must be whole before it is opened.
        let was_written = !old.driver().read_only();
        if was_written {
            write_back(&old).await?;
        }
        old.driver().set_locked(false)?;
        match open_root(&self.engine, &how.filename, &how.options).await {
            Ok(new) => {
                tray.move_door(&self.facts.id, true);
                self.put_in(new);
                tray.move_door(&self.facts.id, false);
                if !was_written {
                    // It has nothing to lose.
                    let _ = old.close().await;
                }
                Ok(())
            }
            Err(error) => {
                self.keep(&old, was_written).await?;
                Err(error)
            }
        }
    }

    /// Goes on with the medium that was to be exchanged. One that was closed for that is opened again, if that can be:
    /// a connection would be gone. A temporary overlay has no name to be opened by.
    async fn keep(&self, old: &Rc<Node>, was_closed: bool) -> Result<()> {
        let how = self.how.borrow().clone();
        if was_closed
            && self.below.borrow().is_none()
            && let Ok(graph) = open_root(&self.engine, &how.filename, &how.options).await
        {
            self.put_in(graph);
            return Ok(());
        }
        old.driver().set_locked(true)
    }

    /// Takes the medium out, if there is one; a drive of the host opens its door. With `force` also one that cannot be
    /// written back.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the medium cannot be taken out; what the medium or the host's drive says. It
    /// stays in then.
    pub async fn eject(&self, force: bool) -> Result<()> {
        let tray = self.removable()?;
        let _drained = self.drained().await;
        let done = write_back(&self.root()).await;
        if !force {
            done?;
        }
        let host = self.host.borrow().clone();
        if let Some(host) = host {
            let opened = self.engine.offload(move || host.open()).await;
            opened.map_err(|error| Error::from_io(error).context("The host's drive does not open"))?;
        }
        self.take_out();
        tray.move_door(&self.facts.id, true);
        Ok(())
    }

    /// An error where the drive is empty.
    pub(super) fn require_medium(&self) -> Result<()> {
        match &self.facts.tray {
            Some(tray) if !tray.inserted.load(Ordering::Acquire) => Err(no_medium()),
            _ => Ok(()),
        }
    }

    /// Changes with every medium that is put in or taken out.
    pub fn medium(&self) -> u64 {
        self.medium.get()
    }

    fn removable(&self) -> Result<&TrayState> {
        let id = &self.facts.id;
        let refusal = || Error::new(Kind::Unsupported, format!("Device '{id}' is not removable"));
        self.facts.tray.as_ref().ok_or_else(refusal)
    }

    /// As the drive was opened, but for what belongs to the old medium.
    fn how_to_open(&self, medium: &Medium, kind: Removable) -> Result<Layer> {
        if kind == Removable::Cdrom && medium.read_only == Some(false) {
            let message = format!("Device '{}' is a CD-ROM drive: its media are read-only", self.facts.id);
            return Err(Error::new(Kind::ReadOnly, message).remedy("leave out read-write"));
        }
        let options = OpenOptions {
            format: medium.format.clone(),
            read_only: medium.read_only.unwrap_or(self.how.borrow().options.read_only),
            lazy_refcounts: None,
            data_file: None,
            location: None,
            driver: Options::default(),
            ..self.facts.options.clone()
        };
        Ok(Layer { filename: medium.filename.clone(), options })
    }

    /// `graph` is in the drive from now on. No request is in flight, or none was ever made.
    pub(super) fn put_in(&self, graph: Graph) {
        let host = tray_of(&graph.root);
        let is_empty =
            graph.root.driver().format_name().is_empty() || host.is_some() && graph.root.size() == 0;
        self.host.replace(host);
        self.how.replace(graph.how);
        self.show(if is_empty { no_root() } else { graph.root }, graph.below, !is_empty);
    }

    /// Nothing is in the drive from now on. What was there is remembered: a disc may come back.
    fn take_out(&self) {
        // A file that stays locked is let go of with the node.
        let _ = self.root().driver().set_locked(false);
        self.show(no_root(), None, false);
    }

    fn show(&self, root: Rc<Node>, below: Option<Layer>, inserted: bool) {
        let facts = &self.facts;
        let read_only =
            if inserted { root.driver().read_only() } else { self.how.borrow().options.read_only };
        facts.read_only.store(read_only, Ordering::Release);
        facts.set_image(root.filename(), root.driver().format_name());
        self.root.replace(root);
        self.below.replace(below);
        self.medium.set(self.medium.get() + 1);
        self.unreadable.set(false);
        if let Some(tray) = &facts.tray {
            tray.inserted.store(inserted, Ordering::Release);
        }
        self.note_size();
    }

    /// Looks at the host's drive, if the medium is in one; whether there is another medium now.
    pub(super) async fn follow_host(&self) -> bool {
        let Some(host) = self.host.borrow().clone() else { return false };
        let looking = host.clone();
        let look = self.engine.offload(move || looking.look()).await;
        let had = self.require_medium().is_ok();
        if look.medium == (had || self.unreadable.get()) && !look.changed {
            self.note_door(look);
            return false;
        }
        let _drained = self.drained().await;
        if !self.host.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now, &host)) {
            // Somebody was faster.
            return false;
        }
        // It is gone already: nothing can be written back.
        self.take_out();
        self.note_door(look);
        if look.medium {
            self.take_up_disc(host).await;
        }
        had || self.require_medium().is_ok()
    }

    fn note_door(&self, look: Look) {
        if let Some(tray) = &self.facts.tray {
            tray.move_door(&self.facts.id, look.open);
        }
    }

    /// Opens the disc that was put into the host's drive. One that cannot be read is as none, until it is exchanged.
    async fn take_up_disc(&self, host: Arc<dyn HostTray>) {
        let how = self.how.borrow().clone();
        match open_root(&self.engine, &how.filename, &how.options).await {
            Ok(graph) => {
                self.put_in(graph);
                // The one that was asked knows what it has told already.
                self.host.replace(Some(host));
            }
            Err(error) => {
                self.unreadable.set(true);
                text::say(&format!("WARNING: {}: the disc cannot be read: {error}", self.facts.id));
            }
        }
    }
}

/// The drive of the host that the bytes of `node` are in.
fn tray_of(node: &Node) -> Option<Arc<dyn HostTray>> {
    match node.driver().device() {
        Some(device) => device.tray,
        None => tray_of(&*node.child(ChildRole::File)?),
    }
}

async fn write_back(medium: &Node) -> Result<()> {
    medium.flush().await?;
    medium.close().await
}
