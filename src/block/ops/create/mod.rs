//! Making a new image of any format: its options, what is written to the file, and when the file gets its name.
//!
//! ```text
//!   Template ─ values ─▶ Recipe: all of it makes sense ─▶ files that are emptied, or drafts ─▶ header, tables
//!                                                              └──────── NewImage ────────────────┘
//! ```
//! Nothing on the host is touched before all values make sense.

mod image;
mod options;
mod recipe;

pub use image::NewImage;
pub use options::{CREATABLE, CreateOption, Template, ValueKind, Values, is_known_format};
pub(super) use recipe::stream_options;

use crate::block::Result;
use crate::block::aio::Engine;
use crate::block::secret::Secrets;
use std::rc::Rc;

/// Makes an image; an existing file of that name is replaced. Passphrases come from `secrets`.
///
/// # Errors
/// In qemu-img's words. What was there is there then, and nothing else, as [`NewImage`] tells.
pub async fn create(engine: &Rc<Engine>, filename: &str, values: &Values, secrets: &Secrets) -> Result<()> {
    NewImage::make(engine, filename, values, secrets).await?.publish(engine).await
}
