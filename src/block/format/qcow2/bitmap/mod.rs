//! Persistent dirty bitmaps: which parts of the disk were written, for backups.
//!
//! ```text
//!   header extension ─▶ directory ─▶ table of each bitmap ─▶ clusters of bits      on disk (directory)
//!                                                             │  ▲
//!                                          first change: load ▼  │ close: store    in memory (list, bits, chunks)
//! ```
//! What the file holds is right, or marked as in use, at every instant:
//!
//! 1. before the first change of the disk the bits of all enabled bitmaps are loaded and the bitmaps marked as in
//!    use, durably (`track`);
//! 2. each change is noted in memory before it happens;
//! 3. when the image is closed new bits, new tables and a new directory are written to new clusters, and one
//!    change of the header switches to them (`store`).
//!
//! Whoever dies between leaves bitmaps that are in use, which nobody will trust. Bitmaps that are not enabled
//! never change with the disk, so they stay as they are. What cannot be read is left in use, too: the guest goes
//! on, and the next backup is a full one.
//!
//! Operations (`edit`) end in the same switch of the header: the old bitmaps or the new ones.

mod bits;
mod chunks;
mod directory;
mod edit;
mod list;
mod load;
mod store;
mod track;

pub(super) use directory::BITMAPS_VALID;
pub(super) use list::BitmapList;
