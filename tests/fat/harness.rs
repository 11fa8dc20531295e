//! A FAT disk of a directory, and a copy of it in a file that mtools and fsck.fat can work on.
//!
//! What they change in the copy is written to the disk sector by sector, as a guest would.

use crate::disk::{Disk, said};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const SECTOR: usize = 512;
/// How much of the disk is looked at at once.
const CHUNK: usize = 1 << 20;

/// A directory, the disk that shows it, and the copy of the disk.
pub(crate) struct Bench {
    scratch: tempfile::TempDir,
    pub(crate) disk: Disk,
    /// Where the volume begins in the copy, in bytes.
    pub(crate) start: u64,
}

/// Files by path below a directory; `None` for directories.
pub(crate) type Contents = BTreeMap<String, Option<Vec<u8>>>;

impl Bench {
    /// Shows what `fill` puts into a directory; `words` are those between `fat:` and the name.
    pub(crate) fn new(words: &str, writable: bool, fill: impl FnOnce(&Path)) -> Bench {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("host")).unwrap();
        fill(&scratch.path().join("host"));
        let disk = Disk::open(words, &scratch.path().join("host"), writable);
        let start = if words.contains("floppy") { 0 } else { 63 * SECTOR as u64 };
        let bench = Bench { scratch, disk, start };
        bench.copy_disk();
        bench
    }

    pub(crate) fn host(&self) -> PathBuf {
        self.scratch.path().join("host")
    }

    /// The disk alone, and the folder to keep until it is closed.
    pub(crate) fn into_parts(self) -> (tempfile::TempDir, Disk) {
        (self.scratch, self.disk)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.scratch.path().join("image")
    }

    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Copies the disk; what is zeros becomes a hole.
    pub(crate) fn copy_disk(&self) {
        let file = File::create(self.image()).unwrap();
        file.set_len(self.disk.size()).unwrap();
        let mut at = 0;
        while at < self.disk.size() {
            let (len, zeros) = self.disk.zeros(at, self.disk.size() - at);
            let len = if zeros { len } else { len.min(CHUNK as u64) };
            if !zeros {
                file.write_all_at(&self.disk.read(at, len as usize), at).unwrap();
            }
            at += len;
        }
    }

    /// Runs a program of mtools on the volume in the copy; its output if it succeeded.
    pub(crate) fn mtools(&self, program: &str, args: &[&str]) -> Option<String> {
        let image = format!("{}@@{}", self.image().display(), self.start);
        let done = Command::new(program)
            .arg("-i")
            .arg(image)
            .args(args)
            .env("MTOOLS_SKIP_CHECK", "1")
            .env("LC_ALL", "C.UTF-8")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// What fsck.fat has to say against the volume in the copy.
    pub(crate) fn fsck(&self) -> Option<String> {
        let volume = self.scratch("volume");
        let (from, to) = (File::open(self.image()).unwrap(), File::create(&volume).unwrap());
        to.set_len(self.disk.size() - self.start).unwrap();
        for (start, end) in data(&from).into_iter().filter(|(_, end)| *end > self.start) {
            let start = start.max(self.start);
            let mut bytes = vec![0; (end - start) as usize];
            from.read_exact_at(&mut bytes, start).unwrap();
            to.write_all_at(&bytes, start - self.start).unwrap();
        }
        let done = Command::new("fsck.fat").arg("-n").arg(&volume).env("PATH", path()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        // Two lines: the version, the count of files.
        (!done.status.success() || said.lines().count() > 2).then_some(said)
    }

    /// All that mtools finds in the copy.
    pub(crate) fn seen(&self) -> Contents {
        let to = self.scratch("seen");
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).unwrap();
        // It fails if there is nothing to copy.
        let _ = self.mtools("mcopy", &["-s", "-n", "-Q", "::*", to.to_str().unwrap()]);
        let _ = self.mtools("mcopy", &["-s", "-n", "-Q", "::.*", to.to_str().unwrap()]);
        contents(&to)
    }

    /// The sectors of the copy that are not those of the disk.
    pub(crate) fn changed(&self) -> Vec<u64> {
        let file = File::open(self.image()).unwrap();
        let mut changed = Vec::new();
        for (start, end) in data(&file) {
            for at in (start..end).step_by(CHUNK) {
                let len = CHUNK.min((end - at) as usize);
                let mut new = vec![0; len];
                file.read_exact_at(&mut new, at).unwrap();
                let old = self.disk.read(at, len);
                let sectors = new.chunks(SECTOR).zip(old.chunks(SECTOR)).enumerate();
                changed.extend(sectors.filter(|(_, (a, b))| a != b).map(|(i, _)| at + (i * SECTOR) as u64));
            }
        }
        changed
    }

    /// Writes sectors of the copy to the disk.
    pub(crate) fn write(&self, sectors: &[u64]) {
        let file = File::open(self.image()).unwrap();
        for at in sectors {
            let mut bytes = vec![0; SECTOR];
            file.read_exact_at(&mut bytes, *at).unwrap();
            self.disk.write(*at, &bytes);
        }
    }

    /// Writes all that changed in any order, with a flush somewhere between, and a flush.
    pub(crate) fn carry_over(&self, random: &mut StdRng) -> Result<(), String> {
        let mut changed = self.changed();
        changed.shuffle(random);
        let (first, rest) = changed.split_at(changed.len() / 2);
        self.write(first);
        // What is there now may make sense or not.
        let _ = self.disk.flush();
        self.write(rest);
        said(self.disk.flush())
    }
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// The parts of a file that are no holes.
fn data(file: &File) -> Vec<(u64, u64)> {
    let (mut parts, mut at) = (Vec::new(), 0);
    loop {
        // SAFETY: plain system calls on an open descriptor.
        let (start, end) = unsafe {
            let start = libc::lseek(file.as_raw_fd(), at, libc::SEEK_DATA);
            (start, libc::lseek(file.as_raw_fd(), start.max(0), libc::SEEK_HOLE))
        };
        if start < 0 {
            return parts;
        }
        parts.push((start as u64, end as u64));
        at = end;
    }
}

/// All that is in a directory.
pub(crate) fn contents(directory: &Path) -> Contents {
    let mut all = Contents::new();
    let mut left = vec![(directory.to_owned(), String::new())];
    while let Some((path, prefix)) = left.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => {
                    left.push((entry.path(), format!("{name}/")));
                    all.insert(name, None);
                }
                kind if kind.is_file() => drop(all.insert(name, Some(fs::read(entry.path()).unwrap()))),
                _ => {}
            }
        }
    }
    all
}

/// Fails with the first difference.
pub(crate) fn assert_same(found: &Contents, expected: &Contents, what: &str) {
    for (name, content) in expected {
        match found.get(name) {
            None => panic!("{what}: {name:?} is missing; found {:?}", found.keys().collect::<Vec<_>>()),
            Some(other) if other != content => {
                let at = |c: &Option<Vec<u8>>| c.as_ref().map(Vec::len);
                panic!("{what}: {name:?} differs: {:?} bytes, expected {:?}", at(other), at(content));
            }
            Some(_) => {}
        }
    }
    for name in found.keys() {
        assert!(expected.contains_key(name), "{what}: {name:?} should not be there");
    }
}
