//! The disks' part of VM snapshots, with faults at every request to the host: an error, or the death of the process
//! for all disks at once. The machine is a stand-in: RAM that says which generation it is, and one section.
//!
//! ```text
//!   drive hda: qcow2 ─▶ Shared ─┐
//!   drive hdb: qcow2 ─▶ Shared ─┴─ one Fuse: lets so many changes and flushes pass
//! ```

use super::*;
use crate::block::aio::Engine;
use crate::block::drive::Drive;
use crate::block::format::qcow2::{CreateOptions, Image, create};
use crate::block::graph::snapshots::Selector;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::{OpenOptions, Preallocation};
use crate::block::{self, Iov};
use crate::vm::layout::Layout;
use crate::vmstate::Bytes;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Mutex;
use vm_memory::{Bytes as _, GuestAddress};

const DISK: usize = 256 << 10;
const MEMORY: u64 = 2 << 20;

/// What is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// One request.
    Error,
    /// It and all that follow.
    Death,
}

/// Counts down to the request that fails.
#[derive(Default)]
struct Fuse {
    left: Option<u64>,
    death: bool,
    blown: bool,
}

type Host = Arc<Mutex<Fuse>>;
type File = Arc<Mutex<Vec<u8>>>;

/// A file in memory that all threads see.
struct Shared {
    file: File,
    host: Host,
}

impl Shared {
    fn pass(&self) -> block::Result<()> {
        let mut fuse = self.host.lock().unwrap();
        let fails = match &mut fuse.left {
            None => false,
            Some(0) => fuse.death || !fuse.blown,
            Some(left) => {
                *left -= 1;
                false
            }
        };
        fuse.blown |= fails;
        match fails {
            true => Err(block::Error::from_io(std::io::Error::from_raw_os_error(libc::ENOSPC))),
            false => Ok(()),
        }
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let mut bytes = self.file.lock().unwrap();
        let end = offset as usize + data.len();
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[offset as usize..end].copy_from_slice(data);
    }
}

#[async_trait(?Send)]
impl Driver for Shared {
    fn format_name(&self) -> &'static str {
        "memory"
    }
    fn size(&self) -> u64 {
        self.file.lock().unwrap().len() as u64
    }
    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }
    fn limits(&self) -> Limits {
        Limits { request_alignment: 1, memory_alignment: 1, max_transfer: 1 << 30, growable: true }
    }
    fn read_only(&self) -> bool {
        false
    }
    async fn read(&self, offset: u64, into: &Iov) -> block::Result<()> {
        into.copy_from(0, &self.file.lock().unwrap()[offset as usize..][..into.len()]);
        Ok(())
    }
    async fn write(&self, offset: u64, from: &Iov) -> block::Result<()> {
        self.pass()?;
        self.put(offset, &from.to_vec());
        Ok(())
    }
    async fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> block::Result<()> {
        self.pass()?;
        self.put(offset, &vec![0; len as usize]);
        Ok(())
    }
    async fn discard(&self, offset: u64, len: u64) -> block::Result<()> {
        self.pass()?;
        let len = len.min(self.size().saturating_sub(offset));
        self.put(offset, &vec![0xdd; len as usize]);
        Ok(())
    }
    async fn flush(&self) -> block::Result<()> {
        self.pass()
    }
    async fn block_status(&self, _offset: u64, len: u64) -> block::Result<BlockStatus> {
        let mapped = None;
        Ok(BlockStatus {
            len,
            allocated: true,
            data: true,
            zero: false,
            compressed: false,
            mapped,
            recurse: false,
        })
    }
    async fn truncate(&self, size: u64, _preallocation: Preallocation) -> block::Result<()> {
        self.pass()?;
        self.file.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }
}

/// Which generation everything is of: each snapshot's RAM and disks, and the live disks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    snapshots: BTreeMap<String, Vec<u8>>,
    live: Vec<u8>,
}

fn state(snapshots: &[(&str, u8)], live: u8) -> State {
    let all = |&(name, generation): &(&str, u8)| (name.to_owned(), vec![generation; 3]);
    State { snapshots: snapshots.iter().map(all).collect(), live: vec![live; 2] }
}

/// Disks whose files outlive the processes that use them.
struct World {
    host: Host,
    files: Vec<File>,
    drives: Vec<Arc<Drive>>,
    disks: Disks,
}

impl World {
    fn new() -> World {
        let files: Vec<File> = (0..2).map(|_| File::default()).collect();
        let host = Host::default();
        for file in &files {
            let engine = Engine::new(crate::block::aio::Backend::Threads).unwrap();
            let node = node(file, &host);
            let options = CreateOptions { size: DISK as u64, cluster_size: 4096, ..CreateOptions::default() };
            engine.block_on(create(&engine, &node, None, &options)).unwrap().unwrap();
        }
        World::open(files, host)
    }

    fn open(files: Vec<File>, host: Host) -> World {
        let drives: Vec<_> =
            files.iter().zip(["hda", "hdb"]).map(|(file, id)| drive(id, file, &host)).collect();
        let disks = Disks::of(&drives).unwrap();
        disks.recover().unwrap();
        World { host, files, drives, disks }
    }

    /// Another process, of which a fault is known already.
    fn copy(&self) -> World {
        let copy = |file: &File| Arc::new(Mutex::new(file.lock().unwrap().clone()));
        World::open(self.files.iter().map(copy).collect(), Host::default())
    }

    fn arm(&self, after: u64, fault: Fault) {
        *self.host.lock().unwrap() = Fuse { left: Some(after), death: fault == Fault::Death, blown: false };
    }

    /// The process is gone; another one opens the files.
    fn next_process(self) -> World {
        for drive in &self.drives {
            let _ = drive.close();
        }
        World::open(self.files, Host::default())
    }

    /// The guest writes all over its disks.
    fn write(&self, generation: u8) {
        for drive in &self.drives {
            let job = move |local: Rc<block::drive::Local>| async move {
                let buffer = block::Buffer::from_bytes(&[generation; DISK]);
                local.write(0, &buffer.iov(DISK)).await?;
                local.flush().await
            };
            drive.call(job).flatten().unwrap();
        }
    }

    fn save(&self, tag: &str, generation: u8) -> Result<()> {
        let date = now();
        let new = NewSnapshot { name: tag.into(), date, vm_clock_nsec: 5, ..NewSnapshot::default() };
        let section = Section::new("machine", 1, &Bytes(vec![generation])).unwrap();
        let saved = save(&self.disks, new, &[section], &ram(generation)).map(drop);
        if saved.is_err() {
            let _ = ram::discard(&self.disks.first);
        }
        saved
    }

    fn load(&self, tag: &str) -> Result<()> {
        let snapshot = self.disks.require(tag)?;
        fetch(&self.disks, &snapshot, &ram(0))?;
        self.disks.apply(&snapshot).map_err(|Failed { error, torn }| {
            assert!(!torn || self.host.lock().unwrap().death);
            error
        })
    }

    /// All that can be seen, after a check of both images.
    fn state(&self) -> State {
        self.drives.iter().for_each(is_sound);
        let list = self.disks.list().unwrap();
        let snapshots =
            list.complete.iter().map(|snapshot| (snapshot.name.clone(), self.generations(snapshot)));
        State {
            snapshots: snapshots.collect(),
            live: self.drives.iter().map(|drive| generation_of(drive, None)).collect(),
        }
    }

    /// Of a snapshot's RAM, and of its disks.
    fn generations(&self, snapshot: &SnapshotInfo) -> Vec<u8> {
        let (sections, memory) = fetch(&self.disks, snapshot, &ram(0)).unwrap();
        let mut bytes = vec![0; MEMORY as usize];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let generation = bytes[GRAIN_IN_USE] & 0x7f;
        assert!(bytes == content(generation));
        assert_eq!(sections[0].read::<Bytes>().unwrap(), Bytes(vec![generation]));
        let mut all = vec![generation];
        for drive in &self.drives {
            all.push(generation_of(drive, Some((snapshot.name.clone(), snapshot.date))));
        }
        all
    }
}

fn node(file: &File, host: &Host) -> Rc<Node> {
    Node::new("memory", Box::new(Shared { file: file.clone(), host: host.clone() }))
}

fn drive(id: &str, file: &File, host: &Host) -> Arc<Drive> {
    let (file, host) = (file.clone(), host.clone());
    let open = move |engine: &Rc<Engine>| {
        let file = node(&file, &host);
        let image = engine.block_on(Image::read(&file))??;
        let image = engine.block_on(image.made_right(engine))??;
        Ok(Node::new("disk", image.into_driver(engine, None, false)?))
    };
    Drive::over(id, OpenOptions::default(), open).unwrap()
}

/// A grain that is no zeros in every generation.
const GRAIN_IN_USE: usize = 1 << 20;

/// RAM of a generation: a few grains of it, not the same ones in all, and no bytes that disks have too.
fn content(generation: u8) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY as usize];
    bytes[GRAIN_IN_USE..][..70_000].fill(generation | 0x80);
    bytes[usize::from(generation) * 100_000..][..5].fill(generation | 0x80);
    bytes
}

fn ram(generation: u8) -> Arc<GuestMemory> {
    let memory = memory::allocate(&Layout::new(MEMORY, 36).unwrap()).unwrap();
    memory.write_slice(&content(generation), GuestAddress(0)).unwrap();
    memory
}

/// What the whole disk is filled with, live or in a snapshot.
fn generation_of(drive: &Arc<Drive>, snapshot: Option<(String, (u32, u32))>) -> u8 {
    let job = move |local: Rc<block::drive::Local>| async move {
        let root = local.root();
        let node = match snapshot {
            None => root,
            Some((name, date)) => {
                let snapshots = root.driver().snapshots().unwrap();
                let found = snapshots.list().into_iter().find(|of| of.name == name && of.date == date);
                snapshots.view(&Selector::Id(found.unwrap().id)).await?
            }
        };
        node.read_bytes(0, DISK).await
    };
    let bytes = drive.call(job).flatten().unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a disk of several generations");
    bytes[0]
}

fn is_sound(drive: &Arc<Drive>) {
    let job = |local: Rc<block::drive::Local>| async move {
        local.flush().await?;
        local.root().driver().checker().unwrap().check().await
    };
    let report = drive.call(job).flatten().unwrap();
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.messages);
}

/// Two snapshots, and a disk that went on.
fn base() -> World {
    let world = World::new();
    for (generation, tag) in [(1, "a"), (2, "b")] {
        world.write(generation);
        world.save(tag, generation).unwrap();
    }
    world.write(3);
    assert_eq!(world.state(), state(&[("a", 1), ("b", 2)], 3));
    world
}

/// Does `operation` with a fault at each request that it makes: what is there afterwards is old or new, and what it
/// answered is true.
fn sweep(new: &State, operation: impl Fn(&World) -> Result<()>) {
    let base = base();
    let old = base.state();
    let mut points = 0;
    for fault in [Fault::Error, Fault::Death] {
        for after in 0.. {
            let world = base.copy();
            world.arm(after, fault);
            let done = operation(&world);
            let blown = world.host.lock().unwrap().blown;
            if fault == Fault::Error {
                *world.host.lock().unwrap() = Fuse::default();
                let expected = if done.is_ok() { new } else { &old };
                assert_eq!(world.state(), *expected, "{fault:?} after {after}: {done:?}");
                if let Err(error) = &done {
                    assert!(error.to_string().contains("No space left on device"), "{error}");
                }
            }
            let world = world.next_process();
            let found = world.state();
            let told = if done.is_ok() { found == *new } else { found == old };
            // A process that dies tells nobody; but what it did tell must be so.
            let either = done.is_err() && fault == Fault::Death && found == *new;
            assert!(told || either, "{fault:?} after {after}: {done:?} and {found:?}");
            // And everything can be done again.
            assert!(operation(&world).is_ok() || found == *new, "{fault:?} after {after}");
            points += 1;
            if !blown {
                assert!(done.is_ok());
                break;
            }
        }
    }
    println!("{points} points");
    assert!(points > 20);
}

#[test]
fn a_new_snapshot_is_there_or_not_wherever_a_save_fails_or_dies() {
    sweep(&state(&[("a", 1), ("b", 2), ("c", 3)], 3), |world| world.save("c", 3));
}

#[test]
fn the_old_snapshot_or_the_new_one_is_there_wherever_a_replacing_save_fails_or_dies() {
    sweep(&state(&[("a", 3), ("b", 2)], 3), |world| world.save("a", 3));
}

#[test]
fn a_snapshot_is_there_or_gone_wherever_a_delete_fails_or_dies() {
    sweep(&state(&[("b", 2)], 3), |world| world.disks.delete("a"));
}

#[test]
fn all_disks_are_old_or_new_wherever_a_load_fails_or_dies() {
    sweep(&state(&[("a", 1), ("b", 2)], 1), |world| world.load("a"));
}

#[test]
fn every_byte_of_vm_state_that_is_altered_makes_a_load_fail_before_anything_changes() {
    let base = base();
    let snapshot = base.disks.require("a").unwrap();
    let (id, first) = (&snapshot.id, &base.disks.first);
    let head = ram::read(first, id, 0, HEAD_LEN).unwrap();
    let decoded = Head::decode(&head).unwrap();
    let sections = ram::read(first, id, SECTIONS_AT, decoded.bodies_len()).unwrap();
    let table = ram::read(first, id, TABLE_AT, Table::len_of(MEMORY)).unwrap();
    let grain = ram::read(first, id, crate::vmstate::RAM_AT + GRAIN_IN_USE as u64, 70_000).unwrap();
    let old = base.files[0].lock().unwrap().clone();
    let places =
        [(&head[..decoded.encode().len()], 1), (&sections[..], 1), (&table[..], 1), (&grain[..], 999)];
    for (bytes, step) in places {
        // All state of "a" was written before that of "b": the first place that has it.
        let cluster = &bytes[..bytes.len().min(4096)];
        let at = old.windows(cluster.len()).position(|window| window == cluster).unwrap();
        for index in (0..cluster.len()).step_by(step) {
            base.files[0].lock().unwrap()[at + index] ^= 0x40;
            assert!(base.load("a").is_err(), "byte {index} of {}", bytes.len());
            base.files[0].lock().unwrap()[at + index] ^= 0x40;
        }
    }
    assert!(*base.files[0].lock().unwrap() == old, "a refused load has written");
    base.load("a").unwrap();
}

#[test]
fn a_tag_wins_over_an_id_and_two_of_one_tag_are_none() {
    let world = World::new();
    world.write(1);
    for (generation, tag) in [(1, "2"), (2, "x"), (3, "y")] {
        world.save(tag, generation).unwrap();
    }
    assert_eq!(world.disks.require("2").unwrap().id, "1");
    assert_eq!(world.disks.require("3").unwrap().name, "y");
    let twice = NewSnapshot { name: "y".into(), ..NewSnapshot::default() };
    let job = move |local: Rc<block::drive::Local>| async move {
        local.root().driver().snapshots().unwrap().create(&twice).await
    };
    world.drives[0].call(job).flatten().unwrap();
    assert!(world.disks.require("y").unwrap_err().to_string().contains("several snapshots have the tag 'y'"));
    assert!(world.disks.delete("nope").unwrap_err().to_string().contains("there is no snapshot 'nope'"));
    let only = world.disks.require("4").unwrap_err().to_string();
    assert!(only.contains("does not exist in one or more devices"), "{only}");
    assert_eq!(world.disks.list().unwrap().partial.len(), 1);
}

#[test]
fn exchanged_memory_is_the_other_ones_and_back() {
    let (one, other) = (ram(1), ram(2));
    let read = |memory: &GuestMemory| {
        let mut bytes = vec![0; MEMORY as usize];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    };
    for (first, second) in [(2, 1), (1, 2)] {
        memory::exchange(&one, &other).unwrap();
        assert!(read(&one) == content(first) && read(&other) == content(second));
    }
}
