//! The differential test: command lines by the hundred, each run by the real qemu-img and by ours under that
//! name, in equal folders. Exit status, both outputs and every file that either of them left must agree.
//!
//! ```text
//!   rows ──┐ expand             ┌─▶ a/ ours ──┐
//!   headers├────────▶ Case ─────┤             ├─▶ judge ─▶ differences, minus the deliberate ones
//!   random ┘                    └─▶ b/ real ──┘
//! ```
//!
//! A new command needs rows in [`rows`] and options in [`random`]; lines of commands that the tool's help does
//! not list are left out.

mod deliberate;
mod expand;
mod fixture;
mod headers;
mod judge;
mod pair;
mod random;
mod rows;

use fixture::Fixture;
use pair::Pair;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A command line, and what is done to the image `p` before it runs.
#[derive(Clone, Debug)]
struct Case {
    line: String,
    patch: Option<Patch>,
}

/// Bytes of an image that are changed.
#[derive(Clone, Debug)]
struct Patch {
    offset: usize,
    bytes: Vec<u8>,
}

impl From<String> for Case {
    fn from(line: String) -> Case {
        Case { line, patch: None }
    }
}

/// Runs all cases, on as many threads as there are processors; returns what differs.
fn differences(cases: &[Case]) -> Vec<String> {
    let fixture = Fixture::make();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut pair = Pair::new(&fixture);
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let told = pair.run(case);
                    if !told.is_empty() {
                        found.lock().unwrap().push(told);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort();
    found
}

/// Whether the tool has the command of a line; what is no command at all is run too.
fn is_there(commands: &BTreeSet<String>, case: &Case) -> bool {
    let word = case.line.split(' ').next().unwrap_or_default();
    !rows::COMMANDS.contains(&word) || commands.contains(word)
}

fn run_all(cases: Vec<Case>, at_least: usize) {
    let commands = pair::commands();
    let cases: Vec<Case> = cases.into_iter().filter(|case| is_there(&commands, case)).collect();
    let found = differences(&cases);
    println!("{} command lines, {} differ", cases.len(), found.len());
    assert!(cases.len() >= at_least, "only {} command lines", cases.len());
    assert!(found.is_empty(), "{} of {} command lines differ\n{}", found.len(), cases.len(), found.concat());
}

#[test]
fn tables_of_command_lines_run_alike() {
    run_all(rows::cases(), 400);
}

#[test]
fn images_with_damaged_headers_are_judged_alike() {
    run_all(headers::cases(), 200);
}

#[test]
fn random_command_lines_run_alike() {
    run_all(random::cases(), 100);
}

#[test]
fn deliberate_differences_are_in_the_manual() {
    let manual = include_str!("../../../docs/imgtool.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for difference in deliberate::LIST {
        assert!(manual.contains(difference.reason), "docs/imgtool.md does not say: {}", difference.reason);
    }
}
