//! The image as an overlay: naming another backing file, and giving up what the image itself has.
//!
//! ```text
//!   header ─▶ L1 ─▶ L2 tables ─▶ clusters      emptied:   header ─▶ L1' of nothing
//!        └──▶ "base.img"                                       └──▶ "base.img"
//! ```
//! Both are one switch of the header. That a longer one is atomic too, names of features, which nobody needs, make way
//! for the name of the file. An image that was emptied is then made short: all that is left are tables, which
//! a second switch of the same kind puts into the clusters that came free at its start, and the file is cut behind
//! them. To whoever dies in between, that is space and nothing else.

use super::driver::{Access, Qcow2};
use super::extensions::{BACKING_FORMAT, Extension, FEATURE_NAMES};
use super::geometry::HostOffset;
use super::header::{DATA_FILE_RAW, Header, MAX_BACKING_NAME};
use super::switch::SECTOR;
use super::trees::Plan;
use crate::block::graph::overlay::{BackingName, Overlay};
use crate::block::{Error, Kind, Result};
use crate::util::text;
use async_trait::async_trait;

#[async_trait(?Send)]
impl Overlay for Qcow2 {
    async fn change_backing(&self, backing: Option<&BackingName>) -> Result<()> {
        self.check_backing_name(backing)?;
        self.prepare_change().await?;
        self.close_all().await?;
        self.change_header_durably(|header| name_backing(header, backing)).await?;
        self.access.set(Access::Ended);
        Ok(())
    }

    async fn make_empty(&self) -> Result<()> {
        let removed = self.active.l1.borrow().clone();
        self.switch_to_nothing(removed).await?;
        if self.has_data_file() {
            self.discard_data(HostOffset(0), self.size.get()).await;
        }
        // The image is empty. Space that cannot be given back now is free within the file.
        match self.move_down().await {
            Err(error) if error.kind() == Kind::Corrupt => Err(error),
            _ => Ok(()),
        }
    }
}

impl Qcow2 {
    fn check_backing_name(&self, backing: Option<&BackingName>) -> Result<()> {
        let Some(name) = backing else { return Ok(()) };
        let refuse = |remedy: &str| Err(Error::new(Kind::InvalidArgument, "Invalid argument").remedy(remedy));
        if text::to_bytes(&name.file).len() > MAX_BACKING_NAME {
            return refuse("the name of a backing file has 1023 bytes at most");
        }
        if self.header.borrow().autoclear & DATA_FILE_RAW != 0 {
            return refuse(
                "an image whose data file is raw has no backing file: qemu-img amend -o data_file_raw=off",
            );
        }
        Ok(())
    }

    /// Switches to a live disk that refers to nothing; `removed` are the references that go.
    async fn switch_to_nothing(&self, removed: Vec<u64>) -> Result<()> {
        let size = self.size.get();
        let plan = Plan {
            removed,
            added: Vec::new(),
            live: vec![0; self.geometry.l1_entries_for(size) as usize],
            size,
            kept: self.snapshots.borrow().clone(),
            dropped: Vec::new(),
            new: None,
            punch: true,
        };
        self.switch_trees(plan).await
    }

    /// Moves the tables of an empty image down, and cuts the file behind the last cluster in use.
    async fn move_down(&self) -> Result<()> {
        self.switch_to_nothing(Vec::new()).await?;
        self.cut_file().await
    }
}

fn name_backing(header: &mut Header, backing: Option<&BackingName>) {
    header.backing_file = backing.map(|backing| backing.file.clone());
    header.extensions.retain(|extension| extension.magic != BACKING_FORMAT);
    if let Some(format) = backing.and_then(|backing| backing.format.as_ref()) {
        header.extensions.insert(0, Extension::text(BACKING_FORMAT, format));
    }
    if header.clone().encode().map_or(usize::MAX, |bytes| bytes.len()) > SECTOR {
        header.extensions.retain(|extension| extension.magic != FEATURE_NAMES);
    }
}
