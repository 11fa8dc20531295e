//! A server that dies and comes back under a client that verifies its data.

use crate::harness::{BACKENDS, Folder, Image, Server, seed};
use cowvm::block::Kind;
use cowvm::block::aio::Backend;
use cowvm::block::graph::{Connection, Node};
use cowvm::block::options::OpenOptions;
use cowvm::block::protocol::Location;
use cowvm::block::protocol::nbd::Target;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

pub(crate) const BLOCK: usize = 4096;
const BLOCKS: usize = 512;

/// Kills the server whenever `done` has gone on by some requests, and starts it again.
fn kill_again_and_again(
    folder: &Folder,
    server: Server,
    line: &str,
    done: &AtomicUsize,
    times: usize,
) -> Server {
    let mut server = server;
    for round in 1..=times {
        while done.load(Ordering::Relaxed) < round * 15 {
            std::thread::sleep(Duration::from_millis(1));
        }
        server.kill();
        server = folder.serve("ours/qemu-nbd", line);
    }
    server
}

/// Random writes, each block with its number and a version of its own, reads and flushes, many at a time.
fn survives(backend: Backend, image: &str, create: &str, times: usize) {
    let seed = seed();
    let folder = Arc::new(Folder::new());
    folder.run("qemu-img", create);
    let line = format!("-t -e 0 -f {image}");
    let server = folder.serve("ours/qemu-nbd", &line);
    let done = Arc::new(AtomicUsize::new(0));
    let (over, is_over) = mpsc::channel();
    let killer = {
        let (folder, done, line) = (folder.clone(), done.clone(), line.clone());
        std::thread::spawn(move || {
            let server = kill_again_and_again(&folder, server, &line, &done, times);
            over.send(()).unwrap();
            server
        })
    };
    let export = Image::open(backend, &folder.uri(""));
    let (mut rng, mut model) = (StdRng::seed_from_u64(seed), vec![0u64; BLOCKS]);
    let mut version = 0;
    while is_over.try_recv().is_err() {
        let blocks: BTreeSet<usize> = (0..16).map(|_| rng.random_range(0..BLOCKS)).collect();
        let batch: Vec<Step> = blocks
            .into_iter()
            .map(|block| match rng.random_range(0..8) {
                0..3 => Step::Read(block, model[block]),
                3 => Step::Flush,
                _ => {
                    version += 1;
                    model[block] = version;
                    Step::Write(block, version)
                }
            })
            .collect();
        let steps = batch.iter().map(|step| step.run(&export.node, &done));
        export.engine.block_on(join_all(steps)).unwrap();
    }
    export.flush();
    let server = killer.join().unwrap();
    for (block, &version) in model.iter().enumerate() {
        check(&export.read((block * BLOCK) as u64, BLOCK), version, block);
    }
    export.close();
    // A flush means what it says: nothing is lost now, whatever the server had in its caches.
    server.kill();
    let file = image.split_whitespace().last().unwrap();
    folder.run("qemu-img", &format!("convert -f {} -O raw {file} content", image.split(' ').next().unwrap()));
    let bytes = std::fs::read(folder.path("content")).unwrap();
    for (block, &version) in model.iter().enumerate() {
        check(&bytes[block * BLOCK..(block + 1) * BLOCK], version, block);
    }
}

/// What one of those does who use the export at the same time.
enum Step {
    Read(usize, u64),
    Write(usize, u64),
    Flush,
}

impl Step {
    async fn run(&self, node: &Node, done: &AtomicUsize) {
        match *self {
            Step::Read(block, version) => {
                let bytes = node.read_bytes((block * BLOCK) as u64, BLOCK).await.unwrap();
                check(&bytes, version, block);
            }
            Step::Write(block, version) => {
                node.write_bytes((block * BLOCK) as u64, &content(version, block)).await.unwrap();
            }
            Step::Flush => node.flush().await.unwrap(),
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn content(version: u64, block: usize) -> Vec<u8> {
    let stamp = [version.to_le_bytes(), (block as u64).to_le_bytes()].concat();
    stamp.iter().copied().cycle().take(BLOCK).collect()
}

pub(crate) fn check(bytes: &[u8], version: u64, block: usize) {
    let expected = if version == 0 { vec![0; BLOCK] } else { content(version, block) };
    let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == expected, "block {block}: version {version} expected, {found} found");
}

#[test]
fn no_request_fails_and_no_byte_is_lost_when_the_server_of_a_raw_disk_dies_again_and_again() {
    survives(Backend::Auto, "raw disk", &format!("create -q -f raw disk {}", BLOCK * BLOCKS), 100);
}

/// A server of a qcow2 image has acknowledged writes whose metadata are lost with it: the client makes them again.
#[test]
fn no_request_fails_and_no_byte_is_lost_when_the_server_of_a_qcow2_image_dies_again_and_again() {
    for backend in BACKENDS {
        survives(backend, "qcow2 disk", &format!("create -q -f qcow2 disk {}", BLOCK * BLOCKS), 12);
    }
}

/// An outage is not the rest of one before: each is waited for as long as the first.
#[test]
fn a_server_that_dies_again_after_a_quiet_time_is_waited_for_again() {
    let folder = Folder::new();
    folder.run("qemu-img", "create -q -f raw disk 1M");
    let server = folder.serve("ours/qemu-nbd", "-t -e 0 -f raw disk");
    let image =
        Image::try_open(Backend::Auto, &folder.uri(""), &options(&folder.uri(""), "reconnect-delay=0.3"))
            .unwrap();
    let quiet = |time| image.engine.block_on(image.engine.sleep(Duration::from_millis(time))).unwrap();
    let state = || Connection::below(&image.node).unwrap();
    let until_it_is_lost = || {
        while state() == Connection::Up {
            quiet(1);
        }
    };
    server.kill();
    until_it_is_lost();
    let server = folder.serve("ours/qemu-nbd", "-t -e 0 -f raw disk");
    while state() != Connection::Up {
        quiet(1);
    }
    quiet(350);
    server.kill();
    until_it_is_lost();
    assert_eq!(state(), Connection::Waiting);
}

#[test]
fn an_export_that_can_do_more_or_less_of_what_nobody_uses_is_the_same() {
    let folder = Folder::new();
    folder.run("qemu-img", "create -q -f raw disk 1M");
    let server = folder.serve("qemu-nbd", "-t -r -e 4 -f raw disk");
    let reading = OpenOptions { read_only: true, ..options(&folder.uri(""), "reconnect-delay=20") };
    let image = Image::try_open(Backend::Auto, &folder.uri(""), &reading).unwrap();
    server.kill();
    let _other = folder.serve("qemu-nbd", "-t -e 1 -f raw disk");
    assert_eq!(image.read(0, 512), [0; 512]);
}

pub(crate) fn options(name: &str, more: &str) -> OpenOptions {
    let mut options = OpenOptions { format: Some("raw".into()), read_only: false, ..OpenOptions::default() };
    let target = Target::from_name(name).unwrap().unwrap();
    options.location = Some(Location::Nbd(target, cowvm::util::keyval::Options::parse(more, None)));
    options
}

#[test]
fn without_patience_requests_fail_as_soon_as_the_server_is_gone() {
    for backend in BACKENDS {
        let folder = Folder::new();
        folder.run("qemu-img", "create -q -f raw disk 1M");
        let server = folder.serve("qemu-nbd", "-t -f raw disk");
        let image = Image::try_open(backend, &folder.uri(""), &options(&folder.uri(""), "reconnect-delay=0"))
            .unwrap();
        server.kill();
        let read = image.engine.block_on(image.node.read_bytes(0, 512)).unwrap();
        let error = read.unwrap_err();
        assert_eq!(error.errno(), libc::EIO, "{error:?}");
        assert_eq!(error.file().unwrap().to_str().unwrap(), folder.uri(""));
    }
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for_if_that_is_wanted() {
    let folder = Arc::new(Folder::new());
    folder.run("qemu-img", "create -q -f raw disk 1M");
    let starter = folder.clone();
    let (go, wait) = mpsc::channel();
    let server = std::thread::spawn(move || {
        wait.recv().unwrap();
        starter.serve("qemu-nbd", "-t -e 0 -f raw disk")
    });
    let refused = Image::try_open(Backend::Auto, &folder.uri(""), &options(&folder.uri(""), ""));
    assert!(refused.err().unwrap().message().contains("Failed to connect"));
    go.send(()).unwrap();
    let image =
        Image::try_open(Backend::Auto, &folder.uri(""), &options(&folder.uri(""), "open-timeout=600"))
            .unwrap();
    assert_eq!(image.node.size(), 1 << 20);
    drop(server.join().unwrap());
}

#[test]
fn an_export_that_has_become_smaller_is_not_taken_for_the_same() {
    let folder = Folder::new();
    folder.run("qemu-img", "create -q -f raw disk 1M");
    folder.run("qemu-img", "create -q -f raw small 512k");
    let server = folder.serve("qemu-nbd", "-t -e 0 -f raw disk");
    let image =
        Image::try_open(Backend::Auto, &folder.uri(""), &options(&folder.uri(""), "reconnect-delay=1"))
            .unwrap();
    image.write(0, &[1; 512]);
    server.kill();
    let _other = folder.serve("qemu-nbd", "-t -e 0 -f raw small");
    let read = image.engine.block_on(image.node.read_bytes(0, 512)).unwrap();
    assert_eq!(read.unwrap_err().kind(), Kind::Io);
    assert_eq!(std::fs::read(folder.path("small")).unwrap(), vec![0; 512 << 10]);
}
