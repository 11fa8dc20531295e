//! Filling a disk from several threads: bytes go straight to the host file, and the driver says where they belong.
//!
//! ```text
//!   driver's thread   take_room ──▶ Room ┐                          ┌─▶ show: from here on the disk has them
//!   pool thread                          └─▶ bytes to the host file ┘
//! ```
//! Only for a disk that nobody else reads or writes meanwhile. Room that is never shown leaks.

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

/// A driver whose disk can be filled so.
#[async_trait(?Send)]
pub trait Filling {
    /// Bytes that are given a place together, and at multiples of which ranges begin. They end so too, or with the
    /// disk.
    fn grain(&self) -> u64;

    /// A place of the disk has its place in the file, whatever was written there before; room for it is there.
    /// Otherwise bytes may stand anywhere, and only ranges without any can be filled.
    fn is_in_place(&self) -> bool;

    /// Takes room for up to `len` bytes (whole grains), which are meant for the disk at `at` on.
    ///
    /// # Errors
    /// When the file cannot grow so far.
    async fn take_room(&self, at: u64, len: u64) -> Result<Room>;

    /// The `len` bytes of the disk from `at` on (whole grains) now stand at `place` of a room.
    ///
    /// # Errors
    /// When the tables that tell of it cannot be read.
    async fn show(&self, at: u64, len: u64, place: u64) -> Result<()>;

    /// Gives back room that nothing was shown in.
    fn give_back(&self, room: Room);

    /// What makes grains smaller, where the format can store them so.
    fn packer(&self) -> Option<Packer> {
        None
    }

    /// Stores a grain that was made smaller.
    ///
    /// # Errors
    /// What the host says.
    async fn write_packed(&self, at: u64, packed: &[u8]) -> Result<()>;
}
