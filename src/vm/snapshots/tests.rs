//! The disks' part of VM snapshots, with faults at every request to the host: an error, a disk that fails from then
//! on, or the death of the process for all disks at once. The machine is a stand-in: RAM that says which generation it
//! is, and one section.
//!
//! ```text
//!   drive hda: qcow2 ─▶ Shared ─┐
//!   drive hdb: qcow2 ─▶ Shared ─┴─ one Fuse: lets so many changes and flushes pass
//! ```

mod host;

use super::*;
use crate::block;
use crate::block::aio::Engine;
use crate::block::drive::Drive;
use crate::block::format::qcow2::{CreateOptions, Image, create};
use crate::block::graph::Node;
use crate::block::graph::snapshots::Selector;
use crate::block::options::OpenOptions;
use crate::vm::layout::Layout;
use crate::vmstate::Bytes;
use host::{Fault, File, Fuse, Host, node};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Mutex;
use vm_memory::{Bytes as _, GuestAddress};

const DISK: usize = 256 << 10;
const MEMORY: u64 = 2 << 20;

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
    /// The last load has left disks of different moments.
    torn: Cell<bool>,
}

impl World {
    fn new() -> World {
        let files: Vec<File> = (0..2).map(|_| File::default()).collect();
        let host = Host::default();
        for file in &files {
            let engine = Engine::new(crate::block::aio::Backend::Threads).unwrap();
            let node = node(file, &host, 0);
            let options = CreateOptions { size: DISK as u64, cluster_size: 4096, ..CreateOptions::default() };
            engine.block_on(create(&engine, &node, None, &options)).unwrap().unwrap();
        }
        World::open(files, host)
    }

    fn open(files: Vec<File>, host: Host) -> World {
        let drives: Vec<_> = [0, 1].map(|disk| drive(disk, &files[disk], &host)).into();
        recovery::recover(&drives).unwrap();
        let disks = Disks::of(&drives).unwrap();
        World { host, files, drives, disks, torn: Cell::new(false) }
    }

    /// Another process, of which a fault is known already.
    fn copy(&self) -> World {
        let copy = |file: &File| Arc::new(Mutex::new(file.lock().unwrap().clone()));
        World::open(self.files.iter().map(copy).collect(), Host::default())
    }

    fn arm(&self, after: u64, fault: Fault) {
        *self.host.lock().unwrap() = Fuse { fault: Some((after, fault)), blown: false };
    }

    /// The process is gone; another one opens the files.
    fn next_process(self) -> World {
        World::open(self.end(), Host::default())
    }

    /// The process is gone; the files.
    fn end(self) -> Vec<File> {
        for drive in &self.drives {
            let _ = drive.close();
        }
        self.files
    }

    /// The guest writes all over its disks.
    fn write(&self, generation: u8) {
        for drive in &self.drives {
            drive.call(move |local| fill(local, generation)).flatten().unwrap();
        }
    }

    fn save(&self, tag: &str, generation: u8) -> Result<()> {
        let saved = self.save_paused(tag, generation);
        let saved = saved.and_then(|(new, held)| self.disks.store(&new, held).map(drop));
        if saved.is_err() {
            let _ = ram::discard(&self.disks.first);
        }
        saved
    }

    /// What comes before the guest goes on.
    fn save_paused(&self, tag: &str, generation: u8) -> Result<(NewSnapshot, Held)> {
        let new = NewSnapshot { name: tag.into(), date: now(), vm_clock_nsec: 5, ..NewSnapshot::default() };
        let section = Section::new("machine", 1, &Bytes(vec![generation])).unwrap();
        prepare(&self.disks, MEMORY)?;
        Ok((write_state(&self.disks, new, &[section], &ram(generation))?, self.disks.hold()?))
    }

    fn load(&self, tag: &str) -> Result<()> {
        let snapshot = self.disks.require(tag)?;
        let (_, table) = read_head(&self.disks, &snapshot, MEMORY)?;
        ram::check(&self.disks.first, &snapshot.id, MEMORY, &table)?;
        self.disks.apply(&snapshot).map_err(|Failed { error, torn }| {
            self.torn.set(torn);
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
        let (sections, table) = read_head(&self.disks, snapshot, MEMORY).unwrap();
        // Of another generation: nothing of it stays.
        let memory = ram(9);
        ram::load(&self.disks.first, &snapshot.id, &memory, &table).unwrap();
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

async fn fill(local: Rc<block::drive::Local>, generation: u8) -> block::Result<()> {
    let buffer = block::Buffer::from_bytes(&[generation; DISK]);
    local.write(0, &buffer.iov(DISK)).await?;
    local.flush().await
}

fn drive(disk: usize, file: &File, host: &Host) -> Arc<Drive> {
    let (file, host) = (file.clone(), host.clone());
    let open = move |engine: &Rc<Engine>| {
        let file = node(&file, &host, disk);
        let image = engine.block_on(Image::read(&file))??;
        let image = engine.block_on(image.made_right(engine))??;
        Ok(Node::new("disk", image.into_driver(engine, None, false)?))
    };
    Drive::over(["hda", "hdb"][disk], OpenOptions::default(), open).unwrap()
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
    for fault in [Fault::Error, Fault::Lasting(0), Fault::Lasting(1), Fault::Death] {
        // A disk that goes on failing is tried at every third request.
        for after in (0..).step_by(if matches!(fault, Fault::Lasting(_)) { 3 } else { 1 }) {
            let world = base.copy();
            world.arm(after, fault);
            let done = operation(&world);
            let blown = world.host.lock().unwrap().blown;
            assert!(!world.torn.get() || fault != Fault::Error, "{fault:?} after {after}: torn");
            if fault == Fault::Error {
                *world.host.lock().unwrap() = Fuse::default();
                let expected = if done.is_ok() { new } else { &old };
                assert_eq!(world.state(), *expected, "{fault:?} after {after}: {done:?}");
                if let Err(error) = &done {
                    assert!(error.to_string().contains("No space left on device"), "{error}");
                }
            }
            if !world.torn.get() && done.is_err() && fault != Fault::Death {
                let live: Vec<u8> = world.drives.iter().map(|drive| generation_of(drive, None)).collect();
                assert_eq!(live, old.live, "{fault:?} after {after}: the guest goes on");
            }
            let world = world.next_process();
            let found = world.state();
            let told = if done.is_ok() { found == *new } else { found == old };
            // A process that dies tells nobody, and what a disk that fails still has is anybody's guess; but what was
            // told as done must be so.
            let either = done.is_err() && fault != Fault::Error && found == *new;
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
fn what_the_guest_writes_before_its_snapshot_is_durable_waits_and_is_not_in_it() {
    let world = base();
    let (new, held) = world.save_paused("c", 3).unwrap();
    let (written, all) = std::sync::mpsc::channel();
    for drive in &world.drives {
        let written = written.clone();
        let write = |local| async move { written.send(fill(local, 4).await).unwrap() };
        drive.spawn(write).unwrap();
        // The drive has begun with it.
        drive.call(|_| async {}).unwrap();
    }
    assert!(all.try_recv().is_err(), "a write that did not wait");
    world.disks.store(&new, held).unwrap();
    world.drives.iter().for_each(|_| all.recv().unwrap().unwrap());
    assert_eq!(world.state(), state(&[("a", 1), ("b", 2), ("c", 3)], 4));
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
fn no_machine_starts_on_a_part_of_the_disks_of_a_load_that_died() {
    let base = base();
    let mut refused = [0, 0];
    for after in 0.. {
        let world = base.copy();
        world.arm(after, Fault::Death);
        let done = world.load("a");
        let files = world.end();
        for (disk, file) in files.iter().enumerate() {
            let before = file.lock().unwrap().clone();
            let alone = drive(disk, &Arc::new(Mutex::new(before.clone())), &Host::default());
            let list = alone.call(|local| async move { local.root().driver().snapshots().unwrap().list() });
            let has_undo = list.unwrap().iter().any(|snapshot| recovery::is_undo(&snapshot.name));
            let started = recovery::recover(std::slice::from_ref(&alone));
            assert_eq!(started.is_err(), has_undo, "disk {disk} after {after}: {started:?}");
            refused[disk] += usize::from(has_undo);
        }
        World::open(files, Host::default()).state();
        if done.is_ok() {
            break;
        }
    }
    assert!(refused.iter().all(|count| *count > 3), "{refused:?}");
    let name = recovery::undo_of_first(2);
    assert!(base.disks.check_new(&name).is_err() && base.disks.check_new("mine").is_ok());
}
