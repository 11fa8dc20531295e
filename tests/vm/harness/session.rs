//! A session: a folder with disks and a shell script that boots guests from them.
//!
//! The folder holds, beside what the test puts in:
//!
//! ```text
//! vmlinuz, initrd   the inner guest: Debian's kernel; busybox with the scripts of tests/vm/guest/
//! boot.sh           the shell functions `boot`, `start`, `wait_for` … that scripts use
//! run               the script; its last word to us is the file `passed`
//! NAME.log          the console of the guest NAME
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::initramfs::Initramfs;
use super::process::{output, status_and_output};
use super::site::{Site, project};

/// What the outer machine wants for itself, in MiB.
const OUTER_MEMORY: u32 = 1024;

/// A folder in which a script runs guests.
pub(crate) struct Session {
    /// Where the script will run.
    pub(crate) site: Site,
    folder: TempDir,
}

impl Session {
    /// With the kernel and the initramfs of the inner guests in it.
    pub(crate) fn new() -> Self {
        let session = Self { site: Site::choose(), folder: TempDir::new().expect("a temporary folder") };
        let kernel = project(".cache/linux/vmlinuz");
        fs::copy(&kernel, session.path("vmlinuz"))
            .unwrap_or_else(|error| panic!("{}: {error}; run tests/setup first", kernel.display()));
        fs::copy(project("tests/vm/outer/boot.sh"), session.path("boot.sh")).expect("boot.sh");
        Initramfs::new(&project("tests/vm/guest/init"))
            .folder(&project(".cache/linux/modules"), "modules")
            .folder(&project("tests/vm/guest"), "guest")
            .program("mke2fs")
            .program("blkdiscard")
            .write(&session.path("initrd"));
        session
    }

    /// The path of the session's file `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `script` where Linux can be booted, with guests of at most `guest_memory` MiB at a time, and
    /// panics with all logs when a command of it fails.
    pub(crate) fn run(&self, guest_memory: u32, script: &str) {
        fs::write(self.path("run"), format!(". ./boot.sh\n{script}\necho yes > passed\n"))
            .expect("the script");
        let logs = TempDir::new().expect("a temporary folder");
        let log = logs.path().join("log");
        self.site.run(self.folder.path(), guest_memory + OUTER_MEMORY, &log);
        assert!(
            self.path("passed").exists(),
            "{:?}: the script failed\n{}{}",
            self.site,
            tail(&log),
            self.consoles()
        );
    }

    /// Whether the session's file `name` has no leaks and no errors in the eyes of qemu-img.
    pub(crate) fn assert_image_is_clean(&self, name: &str) {
        self.qemu_img(&["check", "-q", name]);
    }

    /// Runs qemu-img in the session's folder; it must succeed. Returns what it printed.
    pub(crate) fn qemu_img(&self, arguments: &[&str]) -> String {
        output(Command::new("qemu-img").args(arguments).current_dir(self.folder.path()))
    }

    /// The exit code of `qemu-img check`, with its words: 0 is clean, 3 is leaking, 2 is corrupt.
    pub(crate) fn check(&self, name: &str) -> (Option<i32>, String) {
        let (status, text) =
            status_and_output(Command::new("qemu-img").args(["check", name]).current_dir(self.folder.path()));
        (status.code(), text)
    }

    /// What the guest `name` wrote to its console, with plain line ends.
    pub(crate) fn console(&self, name: &str) -> String {
        let path = self.path(&format!("{name}.log"));
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// What the guest `name` said after the word `key` at the start of a line.
    pub(crate) fn said(&self, name: &str, key: &str) -> Vec<String> {
        let console = self.console(name);
        let after_key = |line: &str| Some(line.strip_prefix(key)?.strip_prefix(' ')?.to_owned());
        console.lines().filter_map(after_key).collect()
    }

    fn consoles(&self) -> String {
        let entries = fs::read_dir(self.folder.path()).expect("the session's folder");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let logs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| tail(&path)).collect()
    }
}

/// The last lines of the file, under its name.
fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\r', "");
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(60)..].join("\n");
    format!("--- {} ---\n{last}\n", path.file_name().unwrap_or_default().to_string_lossy())
}
