//! Builds initramfs archives: a static busybox, an init, kernel modules, and host programs with their libraries.
//!
//! The archive is not compressed: unpacking costs an emulated machine more than reading.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::output;

/// A folder that becomes an initramfs.
pub(crate) struct Initramfs {
    root: TempDir,
}

impl Initramfs {
    /// With busybox, the file `init` as the first process, and the folders that an init mounts things on.
    pub(crate) fn new(init: &Path) -> Self {
        let archive = Self { root: TempDir::new().expect("a temporary folder") };
        for folder in ["bin", "dev", "mnt", "proc", "sys", "tmp", "work"] {
            fs::create_dir(archive.root.path().join(folder)).expect("a folder of the initramfs");
        }
        archive.executable(&find_program("busybox"), "bin/busybox");
        archive.executable(init, "init");
        archive
    }

    /// Copies all files of the folder `from` to the folder `to` of the archive.
    pub(crate) fn folder(self, from: &Path, to: &str) -> Self {
        let entries = fs::read_dir(from)
            .unwrap_or_else(|error| panic!("{} is missing ({error}): run tests/setup first", from.display()));
        for entry in entries {
            let path = entry.expect("an entry of a folder").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
            self.file(&path, &format!("{to}/{name}"));
        }
        self
    }

    /// Copies the host's program `name` into /sbin, and the shared libraries that it needs to where they are.
    ///
    /// Where busybox has an applet of that name its shell takes the applet, unless it is called by its path.
    pub(crate) fn program(self, name: &str) -> Self {
        let program = find_program(name);
        self.program_at(&program, &format!("sbin/{name}"))
    }

    /// The same for a program that is at `program` on the host and shall be at `to` in the archive.
    pub(crate) fn program_at(self, program: &Path, to: &str) -> Self {
        self.executable(program, to);
        for library in
            output(Command::new("ldd").arg(program)).split_whitespace().filter(|w| w.starts_with('/'))
        {
            self.executable(Path::new(library), library.trim_start_matches('/'));
        }
        self
    }

    /// Writes the archive (cpio, "newc") to `archive`.
    pub(crate) fn write(&self, archive: &Path) {
        let script = "find . | cpio --quiet -o -H newc -R 0:0 > \"$0\"";
        output(Command::new("sh").args(["-c", script]).arg(archive).current_dir(self.root.path()));
    }

    fn file(&self, from: &Path, to: &str) -> PathBuf {
        let to = self.root.path().join(to);
        fs::create_dir_all(to.parent().expect("a path below the root")).expect("a folder of the initramfs");
        fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        to
    }

    fn executable(&self, from: &Path, to: &str) {
        let to = self.file(from, to);
        fs::set_permissions(to, Permissions::from_mode(0o755)).expect("permissions of a file of ours");
    }
}

/// Where the host has the program `name`; sbin is looked at too, which is not in every user's PATH.
fn find_program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|folder| Path::new(folder).join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("the program {name} is missing: run tests/setup first"))
}
