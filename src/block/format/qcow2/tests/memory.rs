//! A file in memory, as a protocol driver that lets other tasks in between; and disks over it, with a log of what
//! reached it and requests that fail on demand.
//!
//! ```text
//!   qcow2 ─▶ blkdebug ─▶ log_writes ─▶ memory
//! ```

use super::window::Window;
use crate::block::aio::{Backend, Engine};
use crate::block::crypto::Key;
use crate::block::filter::blkdebug::{Fault, Faults, RequestKind};
use crate::block::filter::log_writes::{GARBAGE, Log};
use crate::block::filter::{BlkDebug, LogWrites};
use crate::block::format::qcow2::driver::Qcow2;
use crate::block::format::qcow2::{CacheOptions, CreateOptions, Image, ImageOptions, Unlock, create};
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::rc::Rc;

/// Longest file, in bytes.
const MOST: u64 = 256 << 20;

#[derive(Default)]
pub(super) struct State {
    pub(super) bytes: RefCell<Vec<u8>>,
    pub(super) read_only: Cell<bool>,
    /// How many reads there were.
    pub(super) reads: Cell<u64>,
}

pub(super) struct MemoryFile {
    engine: Rc<Engine>,
    state: Rc<State>,
}

impl MemoryFile {
    pub(super) fn node(engine: &Rc<Engine>, state: &Rc<State>) -> Rc<Node> {
        Node::new("memory", Box::new(MemoryFile { engine: engine.clone(), state: state.clone() }))
    }

    fn store(&self, offset: u64, data: &[u8]) {
        let mut bytes = self.state.bytes.borrow_mut();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
    }
}

#[async_trait(?Send)]
impl Driver for MemoryFile {
    fn format_name(&self) -> &'static str {
        "memory"
    }

    fn size(&self) -> u64 {
        self.state.bytes.borrow().len() as u64
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }

    fn limits(&self) -> Limits {
        Limits { growable: true, ..Limits::ANY }
    }

    fn read_only(&self) -> bool {
        self.state.read_only.get()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.engine.yield_now().await;
        self.state.reads.set(self.state.reads.get() + 1);
        let bytes = self.state.bytes.borrow();
        into.copy_from(0, &bytes[offset as usize..offset as usize + into.len()]);
        Ok(())
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.engine.yield_now().await;
        if offset > MOST {
            return Err(Error::new(Kind::NoSpace, "the file is as large as it may get"));
        }
        self.store(offset, &from.to_vec());
        self.engine.yield_now().await;
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<()> {
        self.store(offset, &vec![0; len as usize]);
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.engine.yield_now().await;
        // Garbage: whoever still reads it shall notice.
        let len = len.min(self.size().saturating_sub(offset));
        self.store(offset, &vec![GARBAGE; len as usize]);
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.engine.yield_now().await;
        Ok(())
    }

    async fn block_status(&self, _offset: u64, len: u64) -> Result<BlockStatus> {
        let (zero, mapped) = (false, None);
        Ok(BlockStatus { len, allocated: true, data: true, zero, compressed: false, mapped, recurse: false })
    }

    async fn truncate(&self, size: u64, _preallocation: Preallocation) -> Result<()> {
        self.state.bytes.borrow_mut().resize(size as usize, 0);
        Ok(())
    }
}

/// A disk in memory and the engine that runs it.
pub(super) struct Disk {
    pub(super) engine: Rc<Engine>,
    pub(super) state: Rc<State>,
    /// What the driver did to the file since the disk was made.
    pub(super) log: Rc<Log>,
    /// What the file does to the driver.
    pub(super) faults: Rc<Faults>,
    file: Rc<Node>,
    pub(super) backing: Option<Rc<Node>>,
    pub(super) node: Rc<Node>,
    options: ImageOptions,
}

impl Disk {
    pub(super) fn create(backend: Backend, options: &CreateOptions, backing: Option<Vec<u8>>) -> Disk {
        let engine = Engine::new(backend).unwrap();
        let state = Rc::new(State::default());
        let file = MemoryFile::node(&engine, &state);
        let data = options.data_file.as_ref().map(|_| Window::node(&file));
        engine.block_on(create(&engine, &file, data.as_ref(), options)).unwrap().unwrap();
        Disk::open(engine, state, backing)
    }

    /// Opens the bytes of an image that something else made.
    pub(super) fn from_bytes(backend: Backend, bytes: Vec<u8>, backing: Option<Vec<u8>>) -> Disk {
        let state = State { bytes: RefCell::new(bytes), ..State::default() };
        Disk::open(Engine::new(backend).unwrap(), Rc::new(state), backing)
    }

    fn open(engine: Rc<Engine>, state: Rc<State>, backing: Option<Vec<u8>>) -> Disk {
        Disk::open_with(engine, state, backing, Faults::new([])).unwrap()
    }

    /// A disk whose file may fail from the beginning.
    pub(super) fn open_with(
        engine: Rc<Engine>,
        state: Rc<State>,
        backing: Option<Vec<u8>>,
        faults: Rc<Faults>,
    ) -> Result<Disk> {
        let backing = backing.map(|bytes| {
            let state = State { bytes: RefCell::new(bytes), read_only: Cell::new(true), ..State::default() };
            MemoryFile::node(&engine, &Rc::new(state))
        });
        let log = Rc::new(Log::default());
        let logged = LogWrites::new(MemoryFile::node(&engine, &state), log.clone());
        let failing = BlkDebug::new(Node::new("log", Box::new(logged)), faults.clone());
        let file = Node::new("faults", Box::new(failing));
        let node = open_file(&engine, &file, backing.clone(), false)?;
        Ok(Disk { engine, state, log, faults, file, backing, node, options: ImageOptions::default() })
    }

    pub(super) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.engine.block_on(future).unwrap()
    }

    pub(super) fn close(&self) {
        self.run(self.node.flush()).unwrap();
        self.run(self.node.close()).unwrap();
    }

    pub(super) fn reopen(&mut self) {
        self.close();
        let driver = driver_of_file(&self.engine, &self.file, self.backing.clone(), false, self.options);
        self.node = Node::new("disk", Box::new(driver.unwrap()));
    }

    /// From now on the driver keeps that much in memory.
    pub(super) fn reopen_with(&mut self, caches: CacheOptions) {
        self.options.caches = caches;
        self.reopen();
    }

    /// From the write or flush after the next `skip` on, they all fail.
    pub(super) fn fail_after(&self, skip: u64, errno: i32) {
        let kinds = [RequestKind::ALLOCATING, &[RequestKind::Flush]].concat();
        self.faults.replace([Fault { kinds, once: false, ..Fault::nth(skip, errno) }.into()]);
    }

    /// Nothing fails any more.
    pub(super) fn recover(&self) {
        self.faults.replace([]);
    }

    pub(super) fn read_all(&self) -> Vec<u8> {
        self.run(self.node.read_bytes(0, self.node.size() as usize)).unwrap()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state.bytes.borrow().clone()
    }
}

/// A driver over the file.
pub(super) fn driver(
    engine: &Rc<Engine>,
    state: &Rc<State>,
    backing: Option<Rc<Node>>,
    read_only: bool,
) -> Result<Rc<Qcow2>> {
    driver_with(engine, state, backing, read_only, ImageOptions::default())
}

/// A driver over the file with options.
pub(super) fn driver_with(
    engine: &Rc<Engine>,
    state: &Rc<State>,
    backing: Option<Rc<Node>>,
    read_only: bool,
    options: ImageOptions,
) -> Result<Rc<Qcow2>> {
    driver_of_file(engine, &MemoryFile::node(engine, state), backing, read_only, options)
}

fn driver_of_file(
    engine: &Rc<Engine>,
    file: &Rc<Node>,
    backing: Option<Rc<Node>>,
    read_only: bool,
    options: ImageOptions,
) -> Result<Rc<Qcow2>> {
    let mut image = engine.block_on(Image::read(file)).unwrap()?;
    engine.block_on(image.unlock(engine, &with_key())).unwrap()?;
    if !read_only {
        image = engine.block_on(image.made_right(engine)).unwrap()?;
    }
    image.set_options(options)?;
    if image.needs_data_file() {
        image.set_data_file(Window::node(file));
    }
    image.into_qcow2(engine, backing, read_only)
}

/// The passphrase of all encrypted images of the tests.
pub(super) const PASSPHRASE: &str = "abc";

/// What opens any image of the tests.
pub(super) fn with_key() -> Unlock {
    Unlock { passphrase: Some(Key::from(PASSPHRASE.as_bytes().to_vec())), ..Unlock::default() }
}

/// How QEMU's tools are told of an image and of its key, if it needs one.
pub(super) fn described(image: &str) -> String {
    format!(
        "--object secret,id=s,data={PASSPHRASE} --image-opts \
         driver=qcow2,file.filename={image},encrypt.key-secret=s"
    )
}

pub(super) fn open(
    engine: &Rc<Engine>,
    state: &Rc<State>,
    backing: Option<Rc<Node>>,
    read_only: bool,
) -> Result<Rc<Node>> {
    open_file(engine, &MemoryFile::node(engine, state), backing, read_only)
}

fn open_file(
    engine: &Rc<Engine>,
    file: &Rc<Node>,
    backing: Option<Rc<Node>>,
    read_only: bool,
) -> Result<Rc<Node>> {
    let driver = driver_of_file(engine, file, backing, read_only, ImageOptions::default())?;
    Ok(Node::new("disk", Box::new(driver)))
}

/// A folder for the real qemu-img.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs a program; the line is split at spaces, `'a b'` is one word.
    pub(super) fn try_run(&self, line: &str) -> Output {
        let mut words = Vec::new();
        for (at, part) in line.split('\'').enumerate() {
            match at % 2 {
                0 => words.extend(part.split_whitespace()),
                _ => words.push(part),
            }
        }
        Command::new(words[0]).args(&words[1..]).current_dir(self.0.path()).output().unwrap()
    }

    pub(super) fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{line}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// What the real qemu-img reads from the image.
    pub(super) fn content(&self, image: &str, options: &str) -> Vec<u8> {
        self.run(&format!("qemu-img convert {options} -O raw {} content.raw", described(image)));
        self.read("content.raw")
    }
}
