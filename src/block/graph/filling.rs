//! Filling a disk from several threads: bytes go straight to the host file, and the driver says where they belong.
//!
//! ```text
//!   driver's thread   take_room ──▶ Room ┐                          ┌─▶ show: from here on the disk has them
//!   pool thread                          └─▶ bytes to the host file ┘
//! ```
//! Bytes go where the disk has them already, or to new room. Only for ranges that nobody else writes meanwhile. Room that
//! is never shown leaks.

use crate::block::Result;
use crate::block::aio::BulkFile;
use async_trait::async_trait;
use std::sync::Arc;

/// Makes one cluster smaller; `None` where that cannot be done.
pub type Packer = Arc<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync>;

/// A place in a host file that new bytes of a disk can be written to.
#[derive(Clone, Debug)]
pub struct Room {
    /// The file.
    pub file: BulkFile,
    /// Where the room begins.
    pub offset: u64,
    /// Its bytes, whole grains.
    pub len: u64,
    /// What is not written reads as zeros.
    pub untouched: bool,
}

/// What a range of a disk has in the file.
#[derive(Debug)]
pub enum Held {
    /// Its places, in order, all of which may be overwritten.
    Own(Vec<Room>),
    /// Nothing: it needs room.
    Nothing,
    /// Bytes that are shared, or stand otherwise than as they are, or nothing in part: only requests can change it.
    Other,
}

/// A driver whose disk can be filled so: where it has its bytes.
#[async_trait(?Send)]
pub trait Filling {
    /// Bytes that are given a place together, and at multiples of which ranges begin. They end so too, or with the
    /// disk.
    fn grain(&self) -> u64;

    /// What the `len` bytes of the disk from `at` on have; their own places may be written to from now on.
    ///
    /// # Errors
    /// When the tables that tell of it cannot be read.
    async fn held(&self, at: u64, len: u64) -> Result<Held>;

    /// How ranges that have nothing get room; `None` where all hold their own places.
    fn new_room(&self) -> Option<&dyn NewRoom> {
        None
    }
}

/// A driver that gives room to ranges of its disk that have nothing.
#[async_trait(?Send)]
pub trait NewRoom: Filling {
    /// Takes room for up to `len` bytes (whole grains).
    ///
    /// # Errors
    /// When the file cannot grow so far.
    async fn take_room(&self, len: u64) -> Result<Room>;

    /// The `len` bytes of the disk from `at` on (whole grains) now stand at `place` of a room that was taken.
    ///
    /// # Errors
    /// When the tables that tell of it cannot be read.
    async fn show(&self, at: u64, len: u64, place: u64) -> Result<()>;

    /// Gives back room that was taken, and in which nothing was shown.
    fn give_back(&self, room: Room);

    /// What makes grains smaller.
    fn packer(&self) -> Packer;

    /// Stores a grain that was made smaller.
    ///
    /// # Errors
    /// What the host says.
    async fn write_packed(&self, at: u64, packed: &[u8]) -> Result<()>;
}
