//! The `vvfat` protocol: a directory of the host, shown as a disk with a FAT file system (`fat:DIR`).
//!
//! ```text
//!   options ─▶ scan, listing ─▶ tree ─▶ fitting, geometry, boot, name, entry, made_fat
//!                              │                                making the disk: nothing is copied
//!   driver ──read──▶ view ────┴─▶ host file · overlay · made bytes  what a sector shows
//!     │
//!     ├──write─▶ overlay                                        a file without a name
//!     └──flush─▶ sync: changed or state ─▶ matching ─▶ keep, place, content, delete
//!                                                               what the guest did, done on the host
//! ```
//!
//! Two things hold whatever the guest writes: no name leads out of the directory (module `host`), and nothing is done
//! on the host before all of the disk makes sense (module `state`).

mod boot;
mod changed;
mod content;
mod delete;
mod driver;
mod entry;
mod fat;
mod fitting;
#[cfg(test)]
mod flushes;
mod geometry;
#[cfg(test)]
mod guest;
mod host;
mod keep;
#[cfg(test)]
mod killed;
mod leftovers;
mod listing;
mod made_fat;
mod matching;
mod name;
mod notices;
mod options;
mod overlay;
mod place;
mod runs;
mod scan;
mod sectors;
mod stamp;
mod state;
mod sync;
mod tree;
mod view;
mod volume;

pub use driver::Vvfat;
pub use geometry::FatType;
pub use options::FatOptions;
