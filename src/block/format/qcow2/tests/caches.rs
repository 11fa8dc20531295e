//! Options of the caches: what is accepted and refused, and that memory stays within them.

use super::memory::{State, driver, driver_with};
use crate::block::aio::{Backend, Engine};
use crate::block::format::qcow2::cache_options::Cleaning;
use crate::block::format::qcow2::driver::Qcow2;
use crate::block::format::qcow2::{CacheOptions, CreateOptions, ImageOptions, create};
use crate::block::graph::Driver;
use crate::block::options::Preallocation;
use crate::block::{Buffer, Result};
use crate::util::keyval::Options;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A disk of 64 MiB whose tables all exist.
fn disk(cluster_size: u64) -> (Rc<Engine>, Rc<State>) {
    let engine = Engine::new(Backend::Auto).unwrap();
    let state = Rc::new(State::default());
    let file = super::memory::MemoryFile::node(&engine, &state);
    let preallocation = Preallocation::Metadata;
    let options = CreateOptions { size: 64 << 20, cluster_size, preallocation, ..CreateOptions::default() };
    engine.block_on(create(&engine, &file, None, &options)).unwrap().unwrap();
    (engine, state)
}

fn opened(engine: &Rc<Engine>, state: &Rc<State>, text: &str) -> Result<Rc<Qcow2>> {
    let mut options = Options::parse(text, None);
    let caches = CacheOptions::take(&mut options)?;
    assert!(options.pairs().is_empty());
    driver_with(engine, state, None, true, ImageOptions { caches, ..ImageOptions::default() })
}

fn read_everywhere(engine: &Engine, disk: &Rc<Qcow2>, most: usize) {
    let buffer = Buffer::new(512);
    for at in (0..64 << 20).step_by(16 << 10) {
        engine.block_on(disk.read(at, &buffer.iov(512))).unwrap().unwrap();
        assert!(disk.l2.len() <= most);
    }
}

#[test]
fn a_small_cache_never_holds_more_pieces_than_it_may() {
    let (engine, state) = disk(512);
    for (text, most) in
        [("l2-cache-size=0", 2), ("l2-cache-size=4k", 8), ("cache-size=6k,refcount-cache-size=2k", 8)]
    {
        let disk = opened(&engine, &state, text).unwrap();
        read_everywhere(&engine, &disk, most);
        assert_eq!(disk.l2.len(), most, "{text}");
    }
}

#[test]
fn what_was_not_used_for_an_interval_leaves_memory() {
    let (engine, state) = disk(512);
    let disk = driver(&engine, &state, None, true).unwrap();
    read_everywhere(&engine, &disk, 4096);
    assert_eq!(disk.l2.len(), 2048);
    disk.drop_unused();
    engine.block_on(disk.read(0, &Buffer::new(512).iov(512))).unwrap().unwrap();
    disk.drop_unused();
    assert_eq!(disk.l2.len(), 1);
}

#[test]
fn an_interval_begins_where_the_last_one_ended_and_none_never_ends() {
    let (begin, second) = (Instant::now(), Duration::from_secs(1));
    let cleaning = Cleaning::new(Some(2 * second), begin);
    let due = |seconds: u32| cleaning.is_due(begin + seconds * second);
    assert_eq!([0, 1, 2, 3, 5, 6, 7].map(due), [false, false, true, false, true, false, true]);
    assert!(!Cleaning::new(None, begin).is_due(begin + 1_000_000 * second));
}

#[test]
fn sizes_are_refused_in_qemus_words() {
    let (engine, state) = disk(65536);
    let entry = "L2 cache entry size must be a power of two between 512 and the cluster size (65536)";
    let all = "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time";
    for (text, message) in [
        ("cache-size=1M,l2-cache-size=2M", "l2-cache-size may not exceed cache-size"),
        ("cache-size=1M,refcount-cache-size=2M", "refcount-cache-size may not exceed cache-size"),
        ("cache-size=4M,l2-cache-size=1M,refcount-cache-size=1M", all),
        ("l2-cache-entry-size=0", entry),
        ("l2-cache-entry-size=256", entry),
        ("l2-cache-entry-size=3000", entry),
        ("l2-cache-entry-size=128k", entry),
        ("refcount-cache-size=128T", "Refcount cache size too big"),
        ("cache-size=9E", "Refcount cache size too big"),
        ("cache-size=9E,refcount-cache-size=1", "L2 cache size too big"),
        ("cache-clean-interval=4294967296", "Cache clean interval too big"),
        ("cache-clean-interval=-1", "Cache clean interval too big"),
        ("cache-clean-interval=x", "Parameter 'cache-clean-interval' expects a number"),
        ("l2-cache-size=x", "Parameter 'l2-cache-size' expects a non-negative number below 2^64"),
        ("l2-cache-size=16E", "Value '16E' is out of range for parameter 'l2-cache-size'"),
    ] {
        let refusal = opened(&engine, &state, text).err().map(|error| error.message().to_owned());
        assert_eq!(refusal.as_deref(), Some(message), "{text}");
    }
}

#[test]
fn sizes_are_accepted_as_qemu_accepts_them() {
    let (engine, state) = disk(65536);
    for text in [
        "l2-cache-size=0",
        "l2-cache-size=1k",
        "l2-cache-size=9E",
        "l2-cache-entry-size=512,l2-cache-size=9E",
        "l2-cache-entry-size=65536",
        "refcount-cache-size=1",
        "cache-size=0",
        "cache-size=1",
        "cache-size=1M,l2-cache-size=1M",
        "cache-clean-interval=0",
        "cache-clean-interval=4294967295",
    ] {
        let disk = opened(&engine, &state, text).unwrap();
        engine.block_on(disk.read(0, &Buffer::new(512).iov(512))).unwrap().unwrap();
    }
}
