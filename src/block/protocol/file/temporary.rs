//! Files without a name: they are gone when the process is, however it ends.

use super::FileDriver;
use crate::block::aio::Engine;
use crate::block::options::{CacheMode, OpenOptions};
use crate::block::{Error, Result};
use std::fs::{File, OpenOptions as HostOpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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
        let file = unnamed(&folder).map_err(|error| {
            let what = format!("Could not make a temporary file in '{}'", folder.display());
            Error::from_io(error).context(what).path(&folder).remedy("name another folder with TMPDIR=")
        })?;
        let options = OpenOptions { cache: CacheMode::UNSAFE, read_only: false, ..OpenOptions::default() };
        FileDriver::of(engine, filename, &options, file, None)
    }
}

/// A file that never has a name, or where the file system cannot do that, loses it at once.
fn unnamed(folder: &Path) -> io::Result<File> {
    let mut host = HostOpenOptions::new();
    host.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    match host.open(folder) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            Ok(tempfile::NamedTempFile::new_in(folder)?.into_file())
        }
        made => made,
    }
}
