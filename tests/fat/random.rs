//! Random trees and random changes, judged by mtools and fsck.fat.

use crate::harness::{Bench, Contents, assert_same, contents};
use crate::seed::seed_or;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::Path;

/// Letters of names: those that only a long name has, and some of other scripts.
const LETTERS: &[char] =
    &['a', 'b', 'C', '1', '_', '.', ' ', '+', ',', '[', 'ő', 'Ж', '語', '-', '~', 'x', 'y'];

pub(crate) fn seed() -> u64 {
    seed_or(rand::random())
}

fn name(random: &mut StdRng) -> String {
    let len =
        if random.random_ratio(1, 10) { random.random_range(1..60) } else { random.random_range(1..14) };
    let name: String = (0..len).map(|_| LETTERS[random.random_range(0..LETTERS.len())]).collect();
    let name = name.trim_matches(['.', ' ']);
    if name.is_empty() { format!("n{}", random.random_range(0..1000)) } else { name.to_owned() }
}

fn bytes(random: &mut StdRng, most: usize) -> Vec<u8> {
    let len = match random.random_range(0..4) {
        0 => 0,
        1 => random.random_range(0..600),
        _ => random.random_range(0..most),
    };
    let mut bytes = vec![0; len];
    random.fill(&mut bytes[..]);
    bytes
}

/// Fills a directory with at most `left` files and directories.
fn fill(directory: &Path, random: &mut StdRng, depth: u32, most: usize) {
    for _ in 0..random.random_range(0..8) {
        let path = directory.join(name(random));
        if depth > 0 && random.random_ratio(1, 3) {
            if fs::create_dir(&path).is_ok() {
                fill(&path, random, depth - 1, most);
            }
        } else if !path.exists() {
            fs::write(&path, bytes(random, most)).unwrap();
        }
    }
}

/// What the disk should show: names that differ only in case get numbers.
fn without_twins(tree: Contents) -> Option<Contents> {
    let mut seen = std::collections::HashSet::new();
    tree.keys().all(|name| seen.insert(name.to_uppercase())).then_some(tree)
}

/// How many trees there are, and how many rounds of changes (some 20 each): a few, or, with `COWVM_SWEEP=full`, those of a
/// long campaign.
fn extent() -> (usize, u64) {
    match std::env::var("COWVM_SWEEP").as_deref() {
        Ok("full") => (315, 500),
        _ => (42, 8),
    }
}

#[test]
fn trees_read_by_mtools_are_the_hosts_and_fsck_finds_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    for round in 0..extent().0 {
        let words = ["12", "16", "32", "", "floppy", "floppy:12", "floppy:16"][round % 7];
        let most = if words.contains("floppy") { 4_000 } else { 60_000 };
        let bench = Bench::new(words, false, |host| fill(host, &mut random, 3, most));
        assert_eq!(bench.fsck(), None, "round {round}, {words:?}");
        if let Some(expected) = without_twins(contents(&bench.host())) {
            assert_same(&bench.seen(), &expected, &format!("round {round}, {words:?}"));
        }
    }
}

/// A change that a user of mtools makes; it may fail.
fn change(bench: &Bench, random: &mut StdRng) {
    let tree: Vec<(String, bool)> =
        bench.seen().into_iter().map(|(name, content)| (name, content.is_none())).collect();
    let any = |random: &mut StdRng| match tree.len() {
        0 => ("none".to_owned(), false),
        len => tree[random.random_range(0..len)].clone(),
    };
    let directory = |random: &mut StdRng| {
        let found: Vec<&String> = tree.iter().filter(|(_, is)| *is).map(|(name, _)| name).collect();
        match found.len() {
            0 => String::new(),
            len if random.random_ratio(2, 3) => format!("{}/", found[random.random_range(0..len)]),
            _ => String::new(),
        }
    };
    let escaped = |name: &str| format!("::{}", name.replace('[', "\\["));
    let place = |random: &mut StdRng| format!("{}{}", directory(random), name(random));
    match random.random_range(0..10) {
        0..3 => {
            let file = bench.scratch("new");
            fs::write(&file, bytes(random, 30_000)).unwrap();
            let target = if random.random() { place(random) } else { any(random).0 };
            bench.mtools("mcopy", &["-n", "-o", file.to_str().unwrap(), &format!("::{target}")]);
        }
        3 => drop(bench.mtools("mmd", &[&format!("::{}", place(random))])),
        4 => {
            let (name, is_directory) = any(random);
            bench.mtools(if is_directory { "mrd" } else { "mdel" }, &[&escaped(&name)]);
        }
        5 if random.random_ratio(1, 3) => drop(bench.mtools("mdeltree", &[&escaped(&any(random).0)])),
        5 | 6 => drop(bench.mtools("mren", &[&escaped(&any(random).0), &format!("::{}", place(random))])),
        7 => drop(bench.mtools("mmove", &[&escaped(&any(random).0), &format!("::{}", directory(random))])),
        8 => {
            let file = any(random);
            overwrite(bench, random, &file);
        }
        _ => drop(
            bench.mtools("mattrib", &[["+r", "-r"][random.random_range(0..2)], &escaped(&any(random).0)]),
        ),
    }
}

/// Overwrites a sector of a file where it is.
fn overwrite(bench: &Bench, random: &mut StdRng, (name, is_directory): &(String, bool)) {
    use std::os::unix::fs::FileExt;
    let Some(map) = bench.mtools("mshowfat", &[&format!("::{}", name.replace('[', "\\["))]) else { return };
    let Some(first) =
        map.split('<').nth(1).and_then(|part| part.split(['-', '>']).next()?.parse::<u64>().ok())
    else {
        return;
    };
    if *is_directory || first < 2 {
        return;
    }
    let file = fs::OpenOptions::new().read(true).write(true).open(bench.image()).unwrap();
    let mut boot = [0; 512];
    file.read_exact_at(&mut boot, bench.start).unwrap();
    let half = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
    let fat = if half(0x16) == 0 { half(0x24) } else { half(0x16) };
    let data = half(0x0e) + 2 * fat + half(0x11) / 16;
    let sector = data + (first - 2) * u64::from(boot[0x0d]);
    let mut new = [0; 300];
    random.fill(&mut new);
    file.write_all_at(&new, bench.start + sector * 512).unwrap();
}

#[test]
fn changes_by_mtools_become_the_hosts_at_each_flush() {
    let seed = seed();
    for round in 0..extent().1 {
        let mut random = StdRng::seed_from_u64(seed ^ round);
        let words = ["floppy", "32", "12", "16"][round as usize % 4];
        let bench = Bench::new(words, true, |host| fill(host, &mut random, 2, 9_000));
        for step in 0..8 {
            for _ in 0..random.random_range(1..5) {
                change(&bench, &mut random);
            }
            let done = bench.carry_over(&mut random);
            let what = format!("round {round}, step {step}, {words:?}");
            assert_eq!(done, Ok(()), "{what}");
            assert_same(&contents(&bench.host()), &bench.seen(), &what);
        }
        // mtools writes aliases now and then that fsck.fat does not like.
        let (expected, was_clean) = (bench.seen(), bench.fsck().is_none());
        bench.copy_disk();
        assert!(!was_clean || bench.fsck().is_none(), "round {round}");
        assert_same(&bench.seen(), &expected, &format!("round {round}, the disk"));
    }
}
