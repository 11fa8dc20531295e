//! Two folders with the same files, and both tools let loose in them.

use super::deliberate::Run;
use super::fixture::{Fixture, long_ago};
use super::{Case, deliberate, judge};
use crate::harness::Lab;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The image that patches change.
const PATCHED: &str = "p";
/// Commands that leave everything as it was when they fail.
const MAKERS: &[&str] = &["create", "convert", "dd"];
/// A tool that takes longer hangs, in seconds.
const LIMIT: &str = "120";

pub(super) struct Pair<'a> {
    fixture: &'a Fixture,
    lab: Lab,
    /// Files that differ from the fixture: all at first.
    changed: BTreeSet<String>,
}

impl<'a> Pair<'a> {
    pub(super) fn new(fixture: &'a Fixture) -> Pair<'a> {
        let lab = Lab::new();
        std::fs::create_dir(lab.twin("")).unwrap();
        let changed = fixture.files.iter().map(|(name, _)| name.clone()).collect();
        Pair { fixture, lab, changed }
    }

    /// Runs one line with both; returns what differs.
    pub(super) fn run(&mut self, case: &Case) -> String {
        self.restore();
        self.patch(case);
        let ours = start(&self.lab.tool(), case, &self.lab.path(""));
        let real = start(Path::new("qemu-img"), case, &self.lab.twin(""));
        let (ours, real) = (ours.wait_with_output().unwrap(), real.wait_with_output().unwrap());
        self.changed = self.find_changed();
        let mut told = String::new();
        let excused = deliberate::excuses(&Run {
            line: &case.line,
            real: &real,
            ours: &ours,
            patch: case.patch.as_ref(),
        });
        if !excused.status && ours.status != real.status {
            told += &format!("  exit status: real {}, ours {}\n", real.status, ours.status);
        }
        if !excused.stdout {
            let [real, ours] = [&real, &ours].map(|output| String::from_utf8_lossy(&output.stdout));
            told += &match excused.steps {
                true => difference("stdout", &judge::without_steps(&real), &judge::without_steps(&ours)),
                false => difference("stdout", &real, &ours),
            };
        }
        if !excused.stderr {
            let [real, ours] = [&real, &ours].map(|output| String::from_utf8_lossy(&output.stderr));
            told += &difference("stderr", &real, &ours);
        }
        if !excused.files {
            for name in &self.changed {
                told += &judge::files(name, &self.lab.path(name), &self.lab.twin(name), excused.allocation);
            }
        }
        if !ours.status.success() && MAKERS.contains(&case.line.split(' ').next().unwrap_or_default()) {
            told += &self.touched(case);
        }
        match (told.is_empty(), &case.patch) {
            (true, _) => told,
            (false, None) => format!("===== {}\n{told}", case.line),
            (false, Some(patch)) => {
                format!("===== {} (at {}: {:x?})\n{told}", case.line, patch.offset, patch.bytes)
            }
        }
    }

    /// Brings both folders back to the state of the fixture.
    fn restore(&mut self) {
        for name in std::mem::take(&mut self.changed) {
            let bytes = self.fixture.files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| bytes);
            for path in [self.lab.path(&name), self.lab.twin(&name)] {
                match bytes {
                    Some(bytes) => Fixture::write(&path, bytes),
                    None => remove(&path),
                }
            }
        }
    }

    fn patch(&self, case: &Case) {
        if case.patch.is_none() {
            return;
        }
        let bytes = self.before(PATCHED, case).unwrap();
        for path in [self.lab.path(PATCHED), self.lab.twin(PATCHED)] {
            Fixture::write(&path, &bytes);
        }
    }

    /// What a file held before the line was run; `None` if it was not there.
    fn before(&self, name: &str, case: &Case) -> Option<Vec<u8>> {
        let (_, bytes) = self.fixture.files.iter().find(|(file, _)| file == name)?;
        let mut bytes = bytes.clone();
        if let Some(patch) = case.patch.as_ref().filter(|_| name == PATCHED) {
            bytes[patch.offset..][..patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        Some(bytes)
    }

    /// Files of ours that are not as they were.
    fn touched(&self, case: &Case) -> String {
        let is_other = |name: &&String| std::fs::read(self.lab.path(name)).ok() != self.before(name, case);
        let touched = self.changed.iter().filter(is_other);
        touched.map(|name| format!("  {name}: not as it was, though ours failed\n")).collect()
    }

    /// Names of files that are new, gone or written in one folder or the other.
    fn find_changed(&self) -> BTreeSet<String> {
        let mut changed = BTreeSet::from([PATCHED.to_owned()]);
        for folder in [self.lab.path(""), self.lab.twin("")] {
            let mut seen = BTreeSet::new();
            scan(&folder, "", &mut seen, &mut changed);
            changed.extend(
                self.fixture.files.iter().map(|(name, _)| name).filter(|&name| !seen.contains(name)).cloned(),
            );
        }
        changed
    }
}

fn remove(path: &Path) {
    match path.is_dir() {
        true => std::fs::remove_dir_all(path).unwrap(),
        false => drop(std::fs::remove_file(path)),
    }
}

/// All files of a folder, and those that are not of long ago.
fn scan(folder: &Path, prefix: &str, seen: &mut BTreeSet<String>, changed: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            scan(&entry.path(), &format!("{name}/"), seen, changed);
        } else {
            if meta.modified().unwrap() != long_ago() {
                changed.insert(name.clone());
            }
            seen.insert(name);
        }
    }
}

fn start(program: &Path, case: &Case, folder: &Path) -> Child {
    Command::new("timeout")
        .arg(LIMIT)
        .arg(program)
        .args(crate::harness::words(&case.line))
        .current_dir(folder)
        .env("LC_ALL", "C")
        .env("TZ", "Asia/Kolkata")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn difference(what: &str, real: &str, ours: &str) -> String {
    let [real, ours] = [real, ours].map(judge::without_noise);
    if real == ours { String::new() } else { format!("  {what}:\n    real {real:?}\n    ours {ours:?}\n") }
}

/// The commands that the tool's help lists.
pub(super) fn commands() -> BTreeSet<String> {
    let lab = Lab::new();
    let Output { stdout, .. } = Command::new(lab.tool()).arg("--help").output().unwrap();
    let help = String::from_utf8(stdout).unwrap();
    help.lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}
