//! Directories as FAT disks, in QEMU's tools and in ours, in alternating runs: making the disk, reading all of it, reading a
//! part of it, each in the page cache.
//!
//! `cargo bench --bench fat [-- --files 20000] [-- --rounds 5] [-- --only convert] [-- --dir DIR]`. The tree is one that
//! both can show: folders of 100 files of 0 to 8,000 bytes, a cluster of QEMU's disk each, some with long names, on
//! 504 MiB of FAT16. Outputs are removed before every run. Medians of the rounds.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

mod measure;

use measure::command::{Cost, cost};
use measure::{in_turn, median, option};
use std::path::{Path, PathBuf};

/// Files of a folder.
const FOLDER: usize = 100;
/// What a command makes.
const OUTPUT: &str = "out";

/// A command line that both tools run.
const CASES: &[(&str, &str)] = &[
    ("info", "info fat:tree"),
    ("convert raw", "convert -O raw fat:tree out"),
    ("convert qcow2", "convert -O qcow2 fat:tree out"),
    ("dd, the first 32 MiB", "dd -O raw bs=64k count=512 if=fat:tree of=out"),
    ("measure", "measure -O qcow2 fat:tree"),
];

fn main() {
    let rounds = option("--rounds").map_or(5, |n| n.parse().unwrap());
    let files = option("--files").map_or(20_000, |n| n.parse().unwrap());
    let only = option("--only").unwrap_or_default();
    let place = PathBuf::from(option("--dir").unwrap_or_else(|| "target".into()));
    let folder = tempfile::tempdir_in(place).unwrap();
    make_tree(&folder.path().join("tree"), files);
    println!("| fat: of {files} files | qemu-img s | cowvm s | times as fast | qemu-img MiB | cowvm MiB |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, line) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        compare(name, line, folder.path(), rounds);
    }
}

fn make_tree(tree: &Path, files: usize) {
    for number in 0..files {
        let folder = tree.join(format!("folder{:03}", number / FOLDER));
        if number % FOLDER == 0 {
            std::fs::create_dir_all(&folder).unwrap();
        }
        let name = match number % 4 {
            0 => format!("A longer name, number {number}.text"),
            _ => format!("F{number}.TXT"),
        };
        let content = format!("{number:08}").repeat(number * 37 % 1001);
        std::fs::write(folder.join(name), content).unwrap();
    }
}

fn compare(name: &str, line: &str, folder: &Path, rounds: usize) {
    let tools: [&[&str]; 2] = [&["qemu-img"], &[env!("CARGO_BIN_EXE_cowvm"), "imgtool"]];
    let costs = in_turn(rounds, tools.len(), |who| {
        let _ = std::fs::remove_file(folder.join(OUTPUT));
        cost(tools[who], line, folder, 1)
    });
    let middle =
        |of: fn(&Cost) -> f64| [0, 1].map(|who| median(&mut costs[who].iter().map(of).collect::<Vec<_>>()));
    let ([theirs, ours], memory) = (middle(|cost| cost.seconds), middle(|cost| cost.memory));
    let ratio = theirs / ours;
    println!("| {name} | {theirs:.3} | {ours:.3} | {ratio:.2} | {:.0} | {:.0} |", memory[0], memory[1]);
}
