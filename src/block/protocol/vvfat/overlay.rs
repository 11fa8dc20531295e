//! What the guest wrote: in a file without a name, each sector at its own place, and which sectors these are.
//!
//! The file is sparse and never larger than the disk. It goes away with the process; what is to stay must have become
//! host files by then.

use super::geometry::SECTOR;
use super::host::shown;
use super::sectors::SectorSet;
use crate::block::{Error, Kind, Result};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where large temporary files belong.
const PLACE: &str = "/var/tmp";

/// The sectors that the guest wrote.
pub(super) struct Overlay {
    file: Arc<File>,
    present: SectorSet,
    /// Written since the last [`Overlay::settle`].
    fresh: SectorSet,
}

impl Overlay {
    /// # Errors
    /// When the file cannot be made; with its place.
    pub(super) fn new() -> Result<Overlay> {
        let place = match std::env::var_os("TMPDIR") {
            Some(place) => PathBuf::from(place),
            None if Path::new(PLACE).is_dir() => PathBuf::from(PLACE),
            None => std::env::temp_dir(),
        };
        let file = tempfile::tempfile_in(&place).map_err(|error| {
            let what = format!("Could not make the temporary file of a FAT disk in {}", shown(&place));
            // Not the directory's own failure, which is told in other words.
            Error::new(Kind::NotFound, format!("{what}: {error}")).remedy("name another place with TMPDIR=")
        })?;
        Ok(Overlay { file: Arc::new(file), present: SectorSet::default(), fresh: SectorSet::default() })
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Which sectors it has.
    pub(super) fn present(&self) -> &SectorSet {
        &self.present
    }

    /// Which sectors the guest wrote lately.
    pub(super) fn fresh(&self) -> &SectorSet {
        &self.fresh
    }

    /// Notes that sectors of the file were written for the guest.
    pub(super) fn wrote(&mut self, sectors: Range<u64>) {
        self.present.insert(sectors.clone());
        self.fresh.insert(sectors);
    }

    /// Keeps the content of sectors that the guest did not write.
    pub(super) fn keep(&mut self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, sector * SECTOR)?;
        self.present.insert(sector..sector + bytes.len() as u64 / SECTOR);
        Ok(())
    }

    /// Notes that all is in the host's files.
    pub(super) fn settle(&mut self) {
        self.fresh.clear();
    }
}
