//! Reading tables for the check: past the caches, in large pieces where tables follow one another.

use crate::block::graph::Node;
use crate::block::{Buffer, Error, Kind, Result};
use std::ops::Range;
use std::rc::Rc;

/// Most bytes that are read at once.
const WINDOW: u64 = 1 << 20;

/// The file, as a sequence of tables.
pub(super) struct TableReader {
    file: Rc<Node>,
    buffer: Buffer,
    /// What the buffer holds.
    window: Range<u64>,
    /// Where the last table ended.
    next: u64,
    /// How much to read where the next table follows.
    ahead: u64,
}

impl TableReader {
    /// Nothing is read yet.
    pub(super) fn new(file: &Rc<Node>) -> TableReader {
        TableReader { file: file.clone(), buffer: Buffer::new(0), window: 0..0, next: 0, ahead: 0 }
    }

    /// The `len` bytes of a table. What lies past the end of the file is zeros.
    pub(super) async fn read(&mut self, offset: u64, len: u64) -> Result<&[u8]> {
        let end = offset.saturating_add(len);
        if offset < self.window.start || end > self.window.end {
            self.ahead = if offset == self.next { (2 * self.ahead).clamp(len, WINDOW.max(len)) } else { len };
            self.fill(offset, self.ahead.max(len)).await?;
        }
        self.next = end;
        let start = (offset - self.window.start) as usize;
        let bytes = self.buffer.bytes().and_then(|bytes| bytes.get(start..start + len as usize));
        bytes.ok_or_else(|| Error::new(Kind::Io, "a read is still under way"))
    }

    /// Forgets what was read: the file has changed.
    pub(super) fn forget(&mut self) {
        self.window = 0..0;
    }

    async fn fill(&mut self, offset: u64, len: u64) -> Result<()> {
        self.forget();
        if self.buffer.bytes().is_none_or(|bytes| (bytes.len() as u64) < len) {
            self.buffer = Buffer::new(len as usize);
        }
        self.file.read(offset, &self.buffer.iov(len as usize)).await?;
        self.window = offset..offset.saturating_add(len);
        Ok(())
    }
}

/// The 8-byte entries of a table.
pub(super) fn entries(table: &[u8]) -> impl Iterator<Item = u64> + Clone {
    table.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}
