//! The options that an image may be opened with, by their names in QEMU.
//!
//! Those of the caches are in [`super::cache_options`], those of discarded space in [`super::discard_options`].
//! Here are the overlap checks: `overlap-check` (or `overlap-check.template`) is one of [`TEMPLATES`], and
//! `overlap-check.KIND` switches one of [`KINDS`] on or off besides. What can be switched on is checked; what costs
//! nothing ([`super::overlap`]) is checked whatever the options say: nobody is less safe than he asked to be.

use super::cache_options::CacheOptions;
use super::discard_options::DiscardOptions;
use crate::block::{Error, Result};
use crate::util::keyval::Options;

/// Each has all checks of the one before it; only the last has the L2 tables of snapshots.
const TEMPLATES: [&str; 4] = ["none", "constant", "cached", "all"];
/// Kinds of metadata that are checked always.
const KINDS: [&str; 8] = [
    "main-header",
    "active-l1",
    "active-l2",
    "refcount-table",
    "refcount-block",
    "snapshot-table",
    "inactive-l1",
    "bitmap-directory",
];

/// Options of an open image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// How much metadata is kept in memory.
    pub caches: CacheOptions,
    /// What becomes of discarded space.
    pub discards: DiscardOptions,
    /// Writes are kept from the L2 tables of snapshots too.
    pub checks_inactive_l2: bool,
}

impl ImageOptions {
    /// Takes them out of the options of an image that was opened with `discard=unmap`, or not.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::block::Kind::InvalidArgument) in QEMU's words for values that make no sense.
    pub fn take(options: &mut Options, unmap: bool) -> Result<ImageOptions> {
        Ok(ImageOptions {
            caches: CacheOptions::take(options)?,
            discards: DiscardOptions::take(options, unmap)?,
            checks_inactive_l2: take_overlap_check(options)?,
        })
    }
}

/// Whether L2 tables of snapshots are to be checked.
fn take_overlap_check(options: &mut Options) -> Result<bool> {
    let (short, long) = (options.take("overlap-check"), options.take("overlap-check.template"));
    if let (Some(short), Some(long)) = (&short, &long)
        && short != long
    {
        return Err(Error::invalid_argument(format!(
            "Conflicting values for qcow2 options 'overlap-check' ('{short}') and 'overlap-check.template' ('{long}')"
        )));
    }
    let template = short.or(long).unwrap_or_else(|| "cached".to_owned());
    if !TEMPLATES.contains(&template.as_str()) {
        let allowed = TEMPLATES.join(", ");
        return Err(Error::invalid_argument(format!(
            "Unsupported value '{template}' for qcow2 option 'overlap-check'. Allowed are any of the following: {allowed}"
        )));
    }
    for kind in KINDS {
        take_kind(options, kind)?;
    }
    Ok(take_kind(options, "inactive-l2")?.unwrap_or(template == "all"))
}

fn take_kind(options: &mut Options, kind: &str) -> Result<Option<bool>> {
    options
        .take_switch(&format!("overlap-check.{kind}"))
        .map_err(|error| Error::invalid_argument(error.to_string()))
}
