//! qcow2: copy-on-write images with refcounted clusters, versions 2 and 3.
//!
//! ```text
//!   header ─▶ L1 table ─▶ L2 tables ─▶ clusters        what the guest sees     (mapping)
//!        │                                  ▲
//!        ├──▶ refcount table ─▶ refcount blocks         who uses a cluster      (refcount)
//!        ├──▶ snapshot table ─▶ other L1 tables         older views             (snapshot)
//!        └──▶ bitmap directory ─▶ tables ─▶ bits         what was written         (bitmap)
//! ```
//!
//! | on disk | verbs |
//! | --- | --- |
//! | `header`, `extensions`, `entries`, `snapshot` | `read`, `write`, `zero`, `compressed` |
//! | `geometry`: offsets as types | `alloc`, `flush`, `switch`: the order on disk |
//! | `codec`: bytes of compressed clusters | |
//! | `cache`, `refcount`, `mapping`: tables in memory | `status`, `check`, `resize`, `shrink`, `amend`, `create` |
//! | `overlap`: where metadata is | `data`: the way to the guest's bytes; `withheld`: what goes back to the host |
//! | `shadow`, `trees`, `refcount_width`, `downgrade`: the next state | `overlay`, `snapshot_ops`, `snapshot_view`, `vm_state` |
//! | `encrypt`: the key of an image, its data | `image`: what is read at first; `driver`: the whole as a node |
//! | | `image_options`, `cache_options`, `discard_options`: what its user decides |

mod alloc;
mod amend;
mod bitmap;
mod cache;
mod cache_options;
mod check;
mod codec;
mod compressed;
pub mod create;
mod data;
mod discard_options;
mod downgrade;
mod driver;
pub mod encrypt;
mod entries;
mod extensions;
mod filling;
mod flush;
mod geometry;
mod header;
mod image;
mod image_options;
mod mapping;
mod measure;
mod overlap;
mod overlay;
mod read;
mod refcount;
mod refcount_width;
mod resize;
mod shadow;
mod shrink;
mod snapshot;
mod snapshot_ops;
mod snapshot_view;
mod status;
mod stream;
mod switch;
#[cfg(test)]
mod tests;
mod trees;
mod vm_state;
mod withheld;
mod write;
mod zero;

pub use cache_options::CacheOptions;
pub use codec::Codec;
pub use create::{CreateOptions, create};
pub use discard_options::DiscardOptions;
pub use encrypt::{EncryptOptions, Unlock};
pub use image::Image;
pub use image_options::ImageOptions;
pub use stream::write_metadata;
