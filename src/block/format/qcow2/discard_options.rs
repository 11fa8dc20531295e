//! What becomes of clusters that fall out of use, and of their space on the host: options by their names in QEMU.
//!
//! | option | on: | default |
//! | --- | --- | --- |
//! | `pass-discard-request` | what the guest discards, or zeroes by requests that may unmap, is given back | as `discard=unmap` |
//! | `pass-discard-snapshot` | what only snapshots that go, or the disk that one replaces, have used, is given back | on |
//! | `pass-discard-other` | tables that were replaced, and bitmaps, are given back | off |
//! | `discard-no-unref` | a cluster that is discarded stays the guest's: it reads as zeros and keeps its place | off |
//!
//! Given back means: to the host, as a hole in the file. Space that is not given back is free all the same, and the
//! image itself uses it again. Clusters that are shared with snapshots, and compressed ones, never keep their place.

use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;

/// What the user says of discarded space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardOptions {
    /// Clusters keep their place.
    pub no_unref: bool,
    /// Give back what the guest gives up.
    pub request: bool,
    /// Give back what snapshots have used.
    pub snapshot: bool,
    /// Give back old tables.
    pub other: bool,
}

impl Default for DiscardOptions {
    fn default() -> DiscardOptions {
        DiscardOptions { no_unref: false, request: true, snapshot: true, other: false }
    }
}

impl DiscardOptions {
    /// Takes them out of the options of an image that was opened with `discard=unmap`, or not.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words for a value that is no switch.
    pub fn take(options: &mut Options, unmap: bool) -> Result<DiscardOptions> {
        let mut switch = |name, default| match options.take_switch(name) {
            Ok(value) => Ok(value.unwrap_or(default)),
            Err(error) => Err(Error::new(Kind::InvalidArgument, error.to_string())),
        };
        Ok(DiscardOptions {
            no_unref: switch("discard-no-unref", false)?,
            request: switch("pass-discard-request", unmap)?,
            snapshot: switch("pass-discard-snapshot", true)?,
            other: switch("pass-discard-other", false)?,
        })
    }

    /// Refuses what an image of this version cannot do.
    pub(super) fn check(&self, is_v3: bool) -> Result<()> {
        if self.no_unref && !is_v3 {
            let what = "discard-no-unref is only supported since qcow2 version 3";
            return Err(Error::new(Kind::InvalidArgument, what).remedy("leave out discard-no-unref=on"));
        }
        Ok(())
    }
}
