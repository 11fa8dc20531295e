//! Files without a name: they are gone when the process is, however it ends.

use super::FileDriver;
use crate::block::aio::Engine;
use crate::block::options::{CacheMode, OpenOptions};
use crate::block::{Error, Result};
use std::path::PathBuf;
use std::rc::Rc;

/// The folder for temporary files that may become large; /tmp is often in memory.
const FOLDER: &str = "/var/tmp";

impl FileDriver {
    /// An empty file that only this process can open, in `$TMPDIR` or /var/tmp. `filename` names it in messages.
    ///
    /// # Errors
    /// With the folder, where no file can be made there.
    pub fn temporary(engine: &Rc<Engine>, filename: &str) -> Result<FileDriver> {
        let folder = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
        let folder = folder.map_or_else(|| PathBuf::from(FOLDER), PathBuf::from);
        // O_TMPFILE, or a new file of mode 0600 that is unlinked at once.
        let file = tempfile::tempfile_in(&folder).map_err(|error| {
            let what = format!("Could not make a temporary file in '{}'", folder.display());
            Error::from_io(error).context(what).path(&folder).remedy("name another folder with TMPDIR=")
        })?;
        let options =
            OpenOptions { cache: CacheMode::UNSAFE, read_only: false, ..OpenOptions::default() };
        FileDriver::of(engine, filename, &options, file)
    }
}
