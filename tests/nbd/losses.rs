//! What our client promises of changes that a server acknowledges and then loses, because nobody had flushed them.

use crate::forgetful_server::{Disk, Forgetful};
use crate::harness::{BACKENDS, Image, seed};
use crate::restart::{BLOCK, check, content, options};
use crate::script::Script;
use cowvm::block::aio::Backend;
use cowvm::block::options::{CacheMode, OpenOptions};
use cowvm::util::nbd::export;
use cowvm::util::nbd::transmission::Headers;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const BLOCKS: usize = 128;
const WRITE_BACK: CacheMode = CacheMode { direct: false, writeback: true, no_flush: false };
const WRITE_THROUGH: CacheMode = CacheMode { direct: false, writeback: false, no_flush: false };
const UNSAFE: CacheMode = CacheMode { direct: false, writeback: true, no_flush: true };

fn script(headers: Headers, more: u16) -> Script {
    Script { headers, flags: Script::FLAGS | more, size: (BLOCKS * BLOCK) as u64 }
}

/// A server in a folder of its own, and a client of it.
struct Export {
    disk: Arc<Mutex<Disk>>,
    image: Image,
    _folder: tempfile::TempDir,
}

fn export(backend: Backend, server: Forgetful, cache: CacheMode) -> Export {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let disk = server.start(socket.clone());
    let name = format!("nbd:unix:{}", socket.display());
    let options = OpenOptions { unmap: true, cache, ..options(&name, "reconnect-delay=60") };
    Export { disk, image: Image::try_open(backend, &name, &options).unwrap(), _folder: folder }
}

/// Random requests, and what they make of each block.
struct Load {
    export: Export,
    rng: StdRng,
    /// Of each block: its versions in their order, and whether they are data.
    history: Vec<Vec<(u64, bool)>>,
    version: u64,
    /// All changes up to this version have been flushed.
    covered: Arc<AtomicU64>,
}

enum What {
    Read,
    Write(u64),
    Zeroes,
    Discard,
    Flush,
}

impl Load {
    fn new(export: Export, seed: u64) -> Load {
        let covered = Arc::new(AtomicU64::new(0));
        let known = covered.clone();
        let is_new = move |block: &[u8]| version_of(block) > known.load(Ordering::SeqCst);
        export.disk.lock().unwrap().inspect = Some(Box::new(move |bytes: &[u8]| {
            assert!(bytes.chunks(BLOCK).all(&is_new), "a change was made again that a flush had covered");
        }));
        let rng = StdRng::seed_from_u64(seed);
        Load { export, rng, history: vec![vec![(0, false)]; BLOCKS], version: 0, covered }
    }

    /// Requests that do not touch each other, of all kinds, all at a time.
    fn batch(&mut self) {
        let (ended, mut steps, mut at) = (self.version, Vec::new(), self.rng.random_range(0..8));
        while at < BLOCKS {
            let blocks = at..BLOCKS.min(at + self.rng.random_range(1..5));
            at = blocks.end + self.rng.random_range(0..16);
            steps.push((self.choose(&blocks), blocks));
        }
        let runs = steps.iter().map(|(what, blocks)| self.run(what, blocks, ended));
        self.export.image.engine.block_on(join_all(runs)).unwrap();
    }

    fn choose(&mut self, blocks: &Range<usize>) -> What {
        let what = match self.rng.random_range(0..20) {
            0..5 => return What::Read,
            5 => return What::Flush,
            6..8 => What::Zeroes,
            8..10 => What::Discard,
            _ => What::Write(self.version + 1),
        };
        self.version += 1;
        let entry = (self.version, matches!(what, What::Write(_)));
        self.history[blocks.clone()].iter_mut().for_each(|versions| versions.push(entry));
        what
    }

    /// Does it; all changes up to version `ended` have ended before.
    async fn run(&self, what: &What, blocks: &Range<usize>, ended: u64) {
        let (node, offset, len) = (&self.export.image.node, blocks.start * BLOCK, blocks.len() * BLOCK);
        let offset = offset as u64;
        match what {
            What::Read => {
                let bytes = node.read_bytes(offset, len).await.unwrap();
                blocks
                    .clone()
                    .zip(bytes.chunks(BLOCK))
                    .for_each(|(block, bytes)| self.is_newest(block, bytes));
            }
            What::Write(version) => {
                let bytes: Vec<u8> = blocks.clone().flat_map(|block| content(*version, block)).collect();
                node.write_bytes(offset, &bytes).await.unwrap();
            }
            What::Zeroes => node.write_zeroes(offset, len as u64, true).await.unwrap(),
            What::Discard => node.discard(offset, len as u64).await.unwrap(),
            What::Flush => {
                node.flush().await.unwrap();
                self.is_durable(ended);
            }
        }
    }

    fn is_newest(&self, block: usize, bytes: &[u8]) {
        let (version, data) = self.history[block][self.history[block].len() - 1];
        check(bytes, if data { version } else { 0 }, block);
    }

    /// Whatever became of the server, each block has a version on the platter that is no older than `version`.
    fn is_durable(&self, version: u64) {
        self.covered.fetch_max(version, Ordering::SeqCst);
        let disk = self.export.disk.lock().unwrap();
        for (block, bytes) in disk.platter.chunks(BLOCK).enumerate() {
            let versions = &self.history[block];
            let oldest = versions.iter().rposition(|(of, _)| *of <= version).unwrap();
            let found = version_of(bytes);
            let fits = |&(of, data): &(u64, bool)| found == if data { of } else { 0 };
            assert!(versions[oldest..].iter().any(fits), "block {block} has version {found} after {version}");
        }
    }

    fn deaths(&self) -> usize {
        self.export.disk.lock().unwrap().deaths
    }
}

/// The version of the content of a block; 0 for zeros.
fn version_of(block: &[u8]) -> u64 {
    u64::from_le_bytes(block[..8].try_into().unwrap())
}

const DEATHS: usize = 8;

/// Lives of up to as many requests as the changes of some batches.
fn mortal(rng: &mut StdRng, headers: Headers, more: u16) -> Forgetful {
    let lives = (0..DEATHS).map(|_| rng.random_range(0..160)).collect();
    Forgetful { script: script(headers, more), lives, odds: 0.5, seed: rng.random() }
}

#[test]
fn what_was_flushed_is_never_lost_and_what_was_not_is_made_again_in_its_order() {
    let mut rng = StdRng::seed_from_u64(seed());
    // Mostly, a client waits for the next try to connect.
    std::thread::scope(|clients| {
        for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
            for backend in BACKENDS {
                let (server, seed) = (mortal(&mut rng, headers, 0), rng.random());
                clients.spawn(move || survives(Load::new(export(backend, server, WRITE_BACK), seed)));
            }
        }
    });
}

fn survives(mut load: Load) {
    while load.deaths() < DEATHS {
        load.batch();
    }
    load.export.image.flush();
    load.is_durable(load.version);
    for block in 0..BLOCKS {
        load.is_newest(block, &load.export.image.read((block * BLOCK) as u64, BLOCK));
    }
}

#[test]
fn what_a_write_through_client_was_told_is_durable_without_a_flush() {
    let mut rng = StdRng::seed_from_u64(seed());
    let server = mortal(&mut rng, Headers::Structured, export::FUA);
    let mut load = Load::new(export(Backend::Auto, server, WRITE_THROUGH), rng.random());
    while load.deaths() < DEATHS {
        load.batch();
        load.is_durable(load.version);
    }
}

/// As many changes as are kept for a replay and more: the client flushes by itself.
#[test]
fn what_a_server_could_lose_is_bounded() {
    let len = BLOCKS * BLOCK;
    let server = Forgetful { script: script(Headers::Structured, 0), lives: vec![200], odds: 0.0, seed: 0 };
    let Export { disk, image, _folder } = export(Backend::Auto, server, WRITE_BACK);
    for version in 1..300 {
        image.write(0, &content(version, 0).repeat(BLOCKS));
    }
    assert_eq!(image.read(0, len), content(299, 0).repeat(BLOCKS));
    let most = disk.lock().unwrap().most_unflushed;
    assert!((32 << 20..=64 << 20).contains(&most), "{most} bytes");
}

/// Writes one block, which the server forgets with its death; reads it then.
fn loses_one_write(flags: u16, cache: CacheMode) -> cowvm::block::Result<Vec<u8>> {
    let script = Script { flags, ..script(Headers::Structured, 0) };
    let server = Forgetful { script, lives: vec![1], odds: 0.0, seed: 0 };
    let Export { disk: _disk, image, _folder } = export(Backend::Auto, server, cache);
    image.write(0, &content(1, 0));
    image.engine.block_on(image.node.read_bytes(0, BLOCK)).unwrap()
}

#[test]
fn a_write_that_the_server_forgot_is_read_back() {
    assert_eq!(loses_one_write(Script::FLAGS, WRITE_BACK).unwrap(), content(1, 0));
}

#[test]
fn a_server_that_cannot_flush_is_believed_to_forget_nothing() {
    assert_eq!(loses_one_write(Script::FLAGS & !export::FLUSH, WRITE_BACK).unwrap(), vec![0; BLOCK]);
}

#[test]
fn where_flushes_mean_nothing_a_lost_connection_is_the_end() {
    let error = loses_one_write(Script::FLAGS, UNSAFE).unwrap_err();
    assert!(error.message().contains("writes that no flush had covered may be lost"), "{error}");
}
