//! A FAT disk opened through the block layer, for tests that do one thing after another.

use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use cowvm::block::{Error, Result};
use std::path::Path;
use std::rc::Rc;

pub(crate) struct Disk {
    engine: Rc<Engine>,
    node: Rc<Node>,
}

impl Disk {
    /// Opens `fat:WORDS:DIRECTORY`.
    pub(crate) fn open(words: &str, directory: &Path, writable: bool) -> Disk {
        let words = [words, if writable { "rw" } else { "" }].map(|word| match word {
            "" => String::new(),
            word => format!("{word}:"),
        });
        let name = format!("fat:{}{}", words.concat(), directory.display());
        let options = OpenOptions { read_only: !writable, ..OpenOptions::default() };
        Disk::named(&name, &options).unwrap()
    }

    pub(crate) fn named(name: &str, options: &OpenOptions) -> Result<Disk> {
        let engine = Engine::new(Backend::from_environment()).unwrap();
        let node = engine.block_on(open(&engine, name, options)).unwrap()?;
        Ok(Disk { engine, node })
    }

    pub(crate) fn size(&self) -> u64 {
        self.node.size()
    }

    pub(crate) fn try_read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        self.engine.block_on(self.node.read_bytes(at, len)).unwrap()
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        self.try_read(at, len).unwrap()
    }

    pub(crate) fn try_write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.engine.block_on(self.node.write_bytes(at, bytes)).unwrap()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.try_write(at, bytes).unwrap();
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.engine.block_on(self.node.flush()).unwrap()
    }

    pub(crate) fn close(self) -> Result<()> {
        self.engine.block_on(self.node.close()).unwrap()
    }

    /// How many bytes from `at` on are the same kind, and whether they are known to be zeros.
    pub(crate) fn zeros(&self, at: u64, len: u64) -> (u64, bool) {
        let status = self.engine.block_on(self.node.block_status(at, len)).unwrap().unwrap();
        (status.len, status.zero)
    }
}

/// What an error says, for comparisons.
pub(crate) fn said(done: Result<()>) -> std::result::Result<(), String> {
    done.map_err(|error: Error| error.to_string())
}
