//! Internal snapshots of a disk whose metadata is all there, and a check of it, against `qemu-img snapshot` and
//! `qemu-img check` in alternating runs.
//!
//! `cargo bench --bench snapshots [-- --rounds 5] [-- --size 1T] [-- --dir FOLDER]`. The image is made by
//! `qemu-img create -o preallocation=metadata`, once for each program. A round checks the image, creates a snapshot,
//! one more of the unchanged disk, applies the first and deletes both. Seconds from opening the image to having it closed, all
//! flushed; medians of the rounds.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first thing that goes wrong")]

mod measure;

use cowvm::block::Result;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::graph::snapshots::{NewSnapshot, Selector};
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use measure::{median, option};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

/// What a round does: qemu-img's option for a snapshot and its name, or a check.
const STEPS: [(&str, &str); 6] =
    [("check", ""), ("-c", "one"), ("-c", "two"), ("-a", "one"), ("-d", "one"), ("-d", "two")];

fn main() {
    let rounds = option("--rounds").map_or(3, |n| n.parse().unwrap());
    let size = option("--size").unwrap_or_else(|| "1T".into());
    let folder = tempfile::tempdir_in(option("--dir").unwrap_or_else(|| "target".into())).unwrap();
    let [theirs, ours] = ["theirs", "ours"].map(|name| make_image(folder.path(), name, &size));
    let mut times = vec![(Vec::new(), Vec::new()); STEPS.len()];
    for _ in 0..rounds {
        for (step, (their_times, our_times)) in STEPS.iter().zip(&mut times) {
            their_times.push(run_qemu(&theirs, *step));
            our_times.push(run_cowvm(&ours, *step));
        }
        check(&ours);
    }
    println!("| {size}, preallocation=metadata | qemu-img s | cowvm s | times as fast |");
    println!("| --- | ---: | ---: | ---: |");
    for ((verb, name), (theirs, ours)) in STEPS.iter().zip(&mut times) {
        let (theirs, ours) = (median(theirs), median(ours));
        let what = if *verb == "check" { "check".into() } else { format!("snapshot {verb} {name}") };
        println!("| {what} | {theirs:.2} | {ours:.2} | {:.1} |", theirs / ours);
    }
}

fn make_image(folder: &Path, name: &str, size: &str) -> PathBuf {
    let path = folder.join(name);
    let words = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"];
    assert!(Command::new("qemu-img").args(words).arg(&path).arg(size).status().unwrap().success());
    path
}

fn run_qemu(image: &Path, (verb, name): (&str, &str)) -> f64 {
    let start = Instant::now();
    let words = if verb == "check" { vec!["check", "-q"] } else { vec!["snapshot", verb, name] };
    let status = Command::new("qemu-img").args(words).arg(image).status().unwrap();
    assert!(status.success());
    start.elapsed().as_secs_f64()
}

fn run_cowvm(image: &Path, (verb, name): (&str, &str)) -> f64 {
    let start = Instant::now();
    let engine = Engine::new(Backend::from_environment()).unwrap();
    let format = Some("qcow2".into());
    let (read_only, unmap) = (verb == "check", true);
    let options = OpenOptions { format, read_only, unmap, check: read_only, ..OpenOptions::default() };
    let work = async {
        let node = open(&engine, image.to_str().unwrap(), &options).await?;
        change(&node, verb, name).await?;
        node.flush().await?;
        node.close().await
    };
    engine.block_on(work).unwrap().unwrap();
    start.elapsed().as_secs_f64()
}

async fn change(node: &Rc<Node>, verb: &str, name: &str) -> Result<()> {
    if verb == "check" {
        let report = node.driver().checker().unwrap().check().await?;
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0));
        return Ok(());
    }
    let snapshots = node.driver().snapshots().unwrap();
    let which = Selector::Name(name.into());
    match verb {
        "-c" => {
            let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
            snapshots.create(&new).await.map(drop)
        }
        "-a" => snapshots.apply(&which).await,
        _ => snapshots.delete(&which).await,
    }
}

/// Whatever we did, qemu-img finds it sound.
fn check(image: &Path) {
    let output = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
