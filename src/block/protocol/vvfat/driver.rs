//! The driver: requests of the guest, between the disk that is made and the engine that reads host files.
//!
//! Requests share the gate; a flush has it alone, so that what it reads is one state of the disk. It runs on a thread
//! of the pool, since it waits for the host; nobody else touches the volume meanwhile. What the guest discards is of no
//! use: its file system says by its FAT what it no longer needs.

use super::fitting::Wish;
use super::geometry::SECTOR;
use super::options::FatOptions;
use super::sync::sync;
use super::tree::Id;
use super::view::{From as Source, Piece};
use super::volume::Volume;
use crate::block::aio::{Engine, HostFile};
use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits, Node};
use crate::block::options::OpenOptions;
use crate::block::{Error, Iov, Kind, Result};
use crate::util::text;
use async_lock::RwLock;
use async_trait::async_trait;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest request, in bytes: what is not in files is made in memory.
const MAX_TRANSFER: u32 = 1 << 20;
/// How far the allocation status is looked for, in bytes: some ten thousand files at most.
const STATUS_LEN: u64 = 64 << 20;
/// Most host files that are open for reading; each takes two descriptors.
const MAX_OPEN: usize = 32;

/// A host file that is open for reading.
struct Opened {
    id: Id,
    file: Rc<HostFile>,
    /// To look whether it changed.
    handle: File,
}

/// A directory shown as a disk.
pub struct Vvfat {
    engine: Rc<Engine>,
    name: String,
    volume: Arc<Mutex<Volume>>,
    size: u64,
    /// Where the guest's writes go, if it may write.
    overlay: Option<HostFile>,
    durable: bool,
    gate: RwLock<()>,
    /// The one that was read last is the last.
    open: RefCell<Vec<Opened>>,
}

impl Vvfat {
    /// Makes the disk that `fat` asks for. It is writable if both `fat` and `options` say so.
    ///
    /// # Errors
    /// When the directory cannot be read, or does not fit; in qemu-img's words.
    pub async fn open(engine: &Rc<Engine>, fat: &FatOptions, options: &OpenOptions) -> Result<Vvfat> {
        let writable = fat.writable && !options.read_only;
        let wish = Wish { fat_type: fat.fat_type, floppy: fat.floppy, writable };
        let (directory, label) = (text::to_path(&fat.directory).into_owned(), fat.label_bytes());
        let made = engine.offload(move || Volume::new(&directory, wish, label)).await;
        let volume = made.map_err(|error| explained(error, fat))?;
        let file = volume.overlay.as_ref().map(|overlay| overlay.file().try_clone()).transpose()?;
        let vvfat = Vvfat {
            engine: engine.clone(),
            name: fat.name(),
            size: volume.layout.total * SECTOR,
            volume: Arc::new(Mutex::new(volume)),
            overlay: file.map(|file| HostFile::new(engine, file.into(), false)),
            durable: !options.cache.no_flush,
            gate: RwLock::new(()),
            open: RefCell::default(),
        };
        vvfat.say_notices();
        Ok(vvfat)
    }

    fn volume(&self) -> MutexGuard<'_, Volume> {
        self.volume.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_notices(&self) {
        for notice in self.volume().notices.take() {
            text::say(&format!("WARNING: {}: {notice}", self.name));
        }
    }

    /// The host file of a node, open for reading. The user is told if it changed.
    fn host_file(&self, id: Id) -> io::Result<Rc<HostFile>> {
        let mut open = self.open.borrow_mut();
        let cached = open.iter().position(|opened| opened.id == id).map(|at| open.remove(at));
        let opened = match cached.filter(|opened| self.is_there(opened)) {
            Some(opened) => opened,
            None => {
                let handle = self.volume().open(id)?;
                let file = Rc::new(HostFile::new(&self.engine, handle.try_clone()?.into(), false));
                if open.len() == MAX_OPEN {
                    open.remove(0);
                }
                Opened { id, file, handle }
            }
        };
        let file = opened.file.clone();
        open.push(opened);
        Ok(file)
    }

    /// Whether an open file still has a name: else it was replaced or deleted, and what is there now counts. The user is
    /// told if it changed.
    fn is_there(&self, opened: &Opened) -> bool {
        let found = opened.handle.metadata().ok().filter(|found| found.nlink() > 0);
        found.inspect(|found| self.volume().notice(opened.id, found)).is_some()
    }

    fn failed(&self, error: Error) -> Error {
        error.path(&self.name)
    }

    async fn read_source(&self, from: Source, disk: u64, into: &Iov) -> Result<()> {
        let done = match from {
            Source::Zeros => {
                into.fill(0, into.len(), 0);
                Ok(())
            }
            Source::Memory(bytes) => {
                into.copy_from(0, &bytes);
                Ok(())
            }
            Source::Overlay => match &self.overlay {
                Some(overlay) => overlay.read(disk, into).await,
                None => Ok(()),
            },
            Source::Host(id, offset) => self.read_host(id, offset, into).await,
            Source::Whole(id) => self.read_host(id, 0, into).await,
        };
        done.map_err(|error| self.failed(Error::from_io(error)))
    }

    async fn read_host(&self, id: Id, offset: u64, into: &Iov) -> io::Result<()> {
        let file = self.host_file(id);
        self.say_notices();
        file?.read(offset, into).await
    }

    /// Reads whole files: a thread of the pool opens one after the other, while others do so for other requests. Who reads
    /// all of a file at once does not come back soon, so none stays open.
    async fn read_together(&self, files: Vec<(Id, Iov)>) -> Result<()> {
        let (root, wanted) = {
            let volume = self.volume();
            let wanted = files.iter().map(|(id, into)| (volume.tree.path(*id), into.len()));
            (volume.root.clone(), wanted.collect::<Vec<_>>())
        };
        let read =
            move || -> Vec<_> { wanted.iter().map(|(path, len)| root.read_start(path, *len)).collect() };
        let mut done = Ok(());
        for ((id, into), got) in files.into_iter().zip(self.engine.offload(read).await) {
            match self.volume().noticed(id, got) {
                Ok(bytes) => drop(into.copy_from(0, &bytes)),
                Err(error) => done = Err(self.failed(Error::from_io(error))),
            }
        }
        self.say_notices();
        done
    }

    /// Carries over what the guest wrote.
    async fn carry_over(&self) -> Result<()> {
        let _alone = self.gate.write().await;
        self.open.borrow_mut().clear();
        let (volume, durable) = (self.volume.clone(), self.durable);
        let work = move || sync(&mut volume.lock().unwrap_or_else(PoisonError::into_inner), durable);
        let done = self.engine.offload(work).await;
        self.say_notices();
        done.map_err(|error| self.failed(error))
    }
}

/// In qemu-img's words, if it was the directory that could not be read.
fn explained(error: Error, fat: &FatOptions) -> Error {
    match error.kind() {
        Kind::Io | Kind::ReadOnly => {
            let reason = error.message().to_owned();
            error.replaced(format!("Could not read directory {}", fat.directory)).remedy(reason)
        }
        _ => error,
    }
    .path(&fat.directory)
}

#[async_trait(?Send)]
impl Driver for Vvfat {
    fn format_name(&self) -> &'static str {
        "vvfat"
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        Vec::new()
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: SECTOR as u32,
            memory_alignment: 1,
            max_transfer: MAX_TRANSFER,
            growable: false,
        }
    }

    fn read_only(&self) -> bool {
        self.overlay.is_none()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        let _shared = self.gate.read().await;
        let pieces = self.volume().pieces(offset / SECTOR..(offset + into.len() as u64) / SECTOR);
        let is_whole = |piece: &Piece| matches!(piece.from, Source::Whole(_));
        let together = pieces.iter().filter(|piece| is_whole(piece)).count() > 1;
        let (mut done, mut files) = (0, Vec::new());
        for piece in pieces {
            let part = into.slice(done, piece.len);
            match piece.from {
                Source::Whole(id) if together => files.push((id, part)),
                from => self.read_source(from, offset + done as u64, &part).await?,
            }
            done += piece.len;
        }
        if files.is_empty() { Ok(()) } else { self.read_together(files).await }
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        let _shared = self.gate.read().await;
        let Some(file) = &self.overlay else {
            return Err(Error::new(Kind::ReadOnly, "the image is read-only"));
        };
        file.write(offset, from).await.map_err(|error| self.failed(Error::from_io(error)))?;
        if let Some(overlay) = &mut self.volume().overlay {
            overlay.wrote(offset / SECTOR..(offset + from.len() as u64) / SECTOR);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        match self.read_only() {
            true => Ok(()),
            false => self.carry_over().await,
        }
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let _shared = self.gate.read().await;
        let end = offset + len.min(STATUS_LEN);
        let (zero, count) = self.volume().extent(offset / SECTOR..end.div_ceil(SECTOR));
        Ok(BlockStatus {
            data: !zero,
            zero,
            ..BlockStatus::of_data((count * SECTOR - offset % SECTOR).min(len))
        })
    }

    /// The clusters of files are given out when it is opened.
    fn reopens_as_it_is(&self) -> bool {
        false
    }

    async fn close(&self) -> Result<()> {
        if self.read_only() {
            return Ok(());
        }
        self.carry_over().await?;
        let emptied = self.volume().empty_refuges();
        self.say_notices();
        emptied.map_err(|error| self.failed(Error::from_io(error)))?;
        match &self.volume().pending {
            None => Ok(()),
            Some(why) => {
                let message = format!("what the guest wrote last did not reach the directory: {why}");
                Err(Error::new(Kind::Corrupt, message)
                    .path(&self.name)
                    .remedy("unmount FAT disks in the guest before it ends"))
            }
        }
    }
}
