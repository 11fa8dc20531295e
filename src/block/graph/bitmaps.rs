//! Persistent dirty bitmaps: what a format that stores them can do with them.
//!
//! A bitmap notes which parts of the disk were written, in granules of a fixed size, so that a backup can copy
//! just those. While it is enabled every change of the disk is noted before it happens. All of this belongs to the
//! control path: no request is in flight on the node, but for [`Bitmaps::list`] and [`Bitmaps::dirty`].

use crate::block::Result;
use crate::block::graph::{ChildRole, Node};
use async_trait::async_trait;
use std::ops::Range;
use std::rc::Rc;

/// The first image of a backing chain, from its top, that has a bitmap of this name.
pub fn bitmap_holder(top: &Rc<Node>, name: &str) -> Option<Rc<Node>> {
    let mut chain = std::iter::successors(Some(top.clone()), |node| node.child(ChildRole::Backing));
    chain.find(|node| {
        let bitmaps = node.driver().bitmaps().map_or_else(Vec::new, |bitmaps| bitmaps.list());
        bitmaps.iter().any(|bitmap| bitmap.name == name)
    })
}

/// What there is to know of a bitmap without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name, unique within the image.
    pub name: String,
    /// Bytes of the disk that one bit stands for: a power of two from 512 to 2 GiB.
    pub granularity: u64,
    /// It notes changes of the disk.
    pub enabled: bool,
    /// The file does not have it right: someone is changing it, or died while doing so.
    pub in_use: bool,
    /// It is in use and nobody has its bits: all that can be done is to remove it.
    pub inconsistent: bool,
}

/// A format whose images hold bitmaps. A change is as a whole in the image, or not at all, whenever the process
/// dies; it is durable on return.
#[async_trait(?Send)]
pub trait Bitmaps {
    /// All bitmaps, in the order of the image.
    fn list(&self) -> Vec<BitmapInfo>;

    /// Whether the image's version of the format has room for any.
    fn have_room(&self) -> bool;

    /// Adds an empty bitmap. Without `granularity` it is the cluster size, but 4 KiB at least and 64 KiB at most.
    ///
    /// # Errors
    /// When there is one of this name, a limit of the format is exceeded, or the file has no room.
    async fn add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()>;

    /// Removes a bitmap, also an inconsistent one.
    ///
    /// # Errors
    /// When there is none of this name.
    async fn remove(&self, name: &str) -> Result<()>;

    /// Cleans all bits.
    ///
    /// # Errors
    /// When there is none of this name, or it is inconsistent.
    async fn clear(&self, name: &str) -> Result<()>;

    /// Starts or stops noting changes.
    ///
    /// # Errors
    /// When there is none of this name, or it is inconsistent.
    async fn set_enabled(&self, name: &str, enabled: bool) -> Result<()>;

    /// Adds what is dirty in the bitmap `from` of `source`, which may be of the same image. A granule that is dirty
    /// there in part is dirty here.
    ///
    /// # Errors
    /// When one of them does not exist or is inconsistent, or the disks are not of the same size.
    async fn merge(&self, name: &str, source: &dyn Bitmaps, from: &str) -> Result<()>;

    /// The first dirty ranges (bytes, whole granules, cut at the end of the disk) from `from` on, `limit` of them
    /// at most, in order and never touching.
    ///
    /// # Errors
    /// When there is none of this name, it is inconsistent, or cannot be read.
    async fn dirty(&self, name: &str, from: u64, limit: usize) -> Result<Vec<Range<u64>>>;

    /// Bytes of the disk that the bitmaps speak of.
    fn tracked_size(&self) -> u64;
}
