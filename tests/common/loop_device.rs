//! Loop devices: files of the host as disks, for tests that may make them.

use std::path::Path;
use std::process::Command;

/// A file as a block device, until the test forgets it.
pub(crate) struct LoopDevice(String);

impl LoopDevice {
    /// The device over `file`; `options` are losetup's. `None`, said aloud, where this host has no loop devices for
    /// us.
    pub(crate) fn of(file: &Path, options: &[&str]) -> Option<LoopDevice> {
        let made = Command::new("losetup").args(["--find", "--show"]).args(options).arg(file).output();
        match made {
            Ok(made) if made.status.success() => {
                Some(LoopDevice(String::from_utf8(made.stdout).unwrap().trim().to_owned()))
            }
            made => {
                let why = made.map(|made| String::from_utf8_lossy(&made.stderr).into_owned());
                eprintln!("skipped: no loop device: {why:?}");
                None
            }
        }
    }

    /// Its name, such as /dev/loop0.
    pub(crate) fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
