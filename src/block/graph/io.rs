//! The one pipeline that every request passes on its way into a driver: bounds, alignment with
//! read-modify-write, splitting, zeros past the end, the flush that a clean node does not need.
//!
//! Drivers contain none of this. A request that fits as it is goes straight through.

use super::event::Event;
use super::node::Node;
use crate::block::{AlignedBytes, Buffer, Error, Iov, Kind, Result};
use std::ops::Range;
use tracing::trace;

/// How much is written at once where zeros must be written as data.
const ZERO_CHUNK: u64 = 1 << 20;

impl Node {
    /// Reads `into.len()` bytes; what lies past the end reads as zeros.
    pub async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        trace!(name: "block_read", node = ?self, offset, len = into.len());
        if self.fits(offset, into, self.size()) {
            return self.driver.read(offset, into).await;
        }
        Box::pin(self.read_split(offset, into)).await
    }

    /// Reads `len` bytes into memory of our own. `len` must have been checked against a limit.
    pub async fn read_bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let buffer = Buffer::new(len);
        let iov = buffer.iov(len);
        self.read(offset, &iov).await?;
        Ok(iov.to_vec())
    }

    /// Reads `len` bytes into the beginning of `memory`, or new memory where that is too short, for another thread.
    pub async fn read_memory(
        &self,
        offset: u64,
        len: usize,
        mut memory: AlignedBytes,
    ) -> Result<AlignedBytes> {
        memory.first(len);
        let buffer = Buffer::from(memory);
        self.read(offset, &buffer.iov(len)).await?;
        buffer.into_bytes()
    }

    /// Writes `from.len()` bytes.
    pub async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        trace!(name: "block_write", node = ?self, offset, len = from.len());
        let limits = self.driver.limits();
        self.check_writable(offset, from.len() as u64)?;
        let _change = self.changing();
        self.driver.debug_event(Event::Pwritev);
        let done = if limits.request_alignment == 1 && self.fits(offset, from, u64::MAX) {
            self.driver.write(offset, from).await
        } else {
            Box::pin(self.write_split(offset, from)).await
        };
        self.driver.debug_event(Event::PwritevDone);
        done
    }

    /// Writes a copy of `bytes`.
    pub async fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write(offset, &Buffer::from_bytes(bytes).iov(bytes.len())).await
    }

    /// Writes whole clusters compressed, as [`Driver::write_compressed`](super::Driver::write_compressed).
    pub async fn write_compressed(&self, offset: u64, from: &Iov) -> Result<()> {
        trace!(name: "block_write_compressed", node = ?self, offset, len = from.len());
        self.check_writable(offset, from.len() as u64)?;
        let _change = self.changing();
        self.driver.write_compressed(offset, from).await
    }

    /// Makes a range read as zeros, giving back its space if `may_unmap` and the driver can.
    pub async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        trace!(name: "block_write_zeroes", node = ?self, offset, len, may_unmap);
        self.check_writable(offset, len)?;
        let _change = self.changing();
        self.driver.debug_event(Event::PwritevZero);
        let inner = self.aligned_inside(offset..offset + len);
        if inner.is_empty() {
            return self.write_zero_data(offset, len).await;
        }
        self.write_zero_data(offset, inner.start - offset).await?;
        let guard = self.writes.lock(inner.clone(), false).await;
        let done = self.driver.write_zeroes(inner.start, inner.end - inner.start, may_unmap).await;
        drop(guard);
        match done {
            Err(error) if error.kind() == Kind::Unsupported => {
                self.write_zero_data(inner.start, inner.end - inner.start).await?;
            }
            other => other?,
        }
        self.write_zero_data(inner.end, offset + len - inner.end).await
    }

    /// As [`Node::write_zeroes`], but only if the driver has a way that is cheaper than to write zeros.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it has none for this range.
    pub async fn write_zeroes_fast(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_writable(offset, len)?;
        let range = offset..offset + len;
        if self.aligned_inside(range.clone()) != range {
            return Err(Error::new(Kind::Unsupported, "only whole blocks can be zeroed fast"));
        }
        let _change = self.changing();
        let _guard = self.writes.lock(range, false).await;
        self.driver.write_zeroes(offset, len, may_unmap).await
    }

    /// Tells that a range is no longer needed; a hint, so parts smaller than the driver's alignment are kept.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.give_back(offset, len, false).await
    }

    /// As [`Node::discard`], but the range reads as before or as zeros afterwards, and as nothing else: in a crash
    /// too.
    pub async fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.give_back(offset, len, true).await
    }

    async fn give_back(&self, offset: u64, len: u64, leave_zeros: bool) -> Result<()> {
        trace!(name: "block_discard", node = ?self, offset, len);
        self.check_writable(offset, len)?;
        let inner = self.aligned_inside(offset..offset + len);
        if inner.is_empty() {
            return Ok(());
        }
        let _change = self.changing();
        let _guard = self.writes.lock(inner.clone(), false).await;
        let len = inner.end - inner.start;
        let done = match leave_zeros {
            true => self.driver.write_zeroes(inner.start, len, true).await,
            false => self.driver.discard(inner.start, len).await,
        };
        match done {
            Err(error) if error.kind() == Kind::Unsupported => Ok(()),
            other => other,
        }
    }

    /// Makes all completed writes durable.
    pub async fn flush(&self) -> Result<()> {
        let changes = self.changes.get();
        if self.flushed.get() == changes {
            return Ok(());
        }
        trace!(name: "block_flush", node = ?self);
        self.driver.flush().await?;
        self.flushed.set(self.flushed.get().max(changes));
        Ok(())
    }

    /// Whether the driver takes the request as it is.
    fn fits(&self, offset: u64, iov: &Iov, end: u64) -> bool {
        let limits = self.driver.limits();
        let len = iov.len() as u64;
        let mask = u64::from(limits.request_alignment) - 1;
        len > 0
            && len <= u64::from(limits.max_transfer)
            && offset.checked_add(len).is_some_and(|last| last <= end)
            && (offset | len) & mask == 0
            && (limits.memory_alignment == 1 || iov.is_aligned(limits.memory_alignment as usize))
    }

    fn check_writable(&self, offset: u64, len: u64) -> Result<()> {
        if self.driver.read_only() {
            return Err(Error::new(Kind::ReadOnly, "the image is read-only").path(self.filename()));
        }
        let end = if self.driver.limits().growable { i64::MAX as u64 } else { self.size() };
        match offset.checked_add(len) {
            Some(last) if last <= end => Ok(()),
            _ => Err(Error::new(Kind::OutOfRange, "write past the end of the image").path(self.filename())),
        }
    }

    /// The aligned part of a range.
    fn aligned_inside(&self, range: Range<u64>) -> Range<u64> {
        let align = u64::from(self.driver.limits().request_alignment);
        let start = range.start.next_multiple_of(align);
        // The last block of an image whose size is not aligned belongs to it as a whole.
        let end = if range.end == self.size() { range.end } else { range.end / align * align };
        start..end.max(start)
    }

    async fn read_split(&self, offset: u64, into: &Iov) -> Result<()> {
        let have = self.size().saturating_sub(offset).min(into.len() as u64) as usize;
        into.fill(have, into.len() - have, 0);
        let max = self.driver.limits().max_transfer as usize;
        let mut done = 0;
        while done < have {
            // Pieces end at multiples of the limit, so that all but the first start aligned.
            let at = offset + done as u64;
            let len = (have - done).min(max - (at % max as u64) as usize);
            let part = into.slice(done, len);
            if self.fits(at, &part, u64::MAX) {
                self.driver.read(at, &part).await?;
            } else {
                self.read_bounced(at, &part).await?;
            }
            done += len;
        }
        Ok(())
    }

    /// Reads the aligned blocks around a request into a buffer and copies out of it.
    async fn read_bounced(&self, offset: u64, into: &Iov) -> Result<()> {
        let block = self.block_range(offset, into.len() as u64);
        let len = (block.end - block.start) as usize;
        let bounce = Buffer::new(len);
        self.driver.read(block.start, &bounce.iov(len)).await?;
        into.copy_from_iov(0, &bounce.iov(len).slice((offset - block.start) as usize, into.len()));
        Ok(())
    }

    async fn write_split(&self, offset: u64, from: &Iov) -> Result<()> {
        let max = self.driver.limits().max_transfer as usize;
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let len = (from.len() - done).min(max - (at % max as u64) as usize);
            self.write_part(at, &from.slice(done, len)).await?;
            done += len;
        }
        Ok(())
    }

    /// Writes at most the driver's limit, through a buffer where memory or range are not aligned.
    async fn write_part(&self, offset: u64, from: &Iov) -> Result<()> {
        let len = from.len() as u64;
        let block = self.block_range(offset, len);
        let whole = block == (offset..offset + len);
        let _guard = self.writes.lock(block.clone(), !whole).await;
        if self.fits(offset, from, u64::MAX) {
            return self.driver.write(offset, from).await;
        }
        let size = (block.end - block.start) as usize;
        let bounce = Buffer::new(size).iov(size);
        if !whole {
            self.read_around(&block, offset..offset + len, &bounce).await?;
        }
        bounce.copy_from_iov((offset - block.start) as usize, from);
        self.driver.write(block.start, &bounce).await
    }

    /// Fills the blocks at both ends of `block` that a write of `inner` covers only in part.
    async fn read_around(&self, block: &Range<u64>, inner: Range<u64>, bounce: &Iov) -> Result<()> {
        let align = u64::from(self.driver.limits().request_alignment);
        let mut ends = vec![(block.start, Event::PwritevRmwHead, Event::PwritevRmwAfterHead)];
        if block.end - block.start > align {
            ends.push((block.end - align, Event::PwritevRmwTail, Event::PwritevRmwAfterTail));
        }
        for (at, before, after) in ends {
            let covered = inner.start <= at && at + align <= inner.end;
            if !covered && at < self.size() {
                let part = bounce.slice((at - block.start) as usize, align as usize);
                self.driver.debug_event(before);
                self.driver.read(at, &part).await?;
                self.driver.debug_event(after);
            }
        }
        Ok(())
    }

    /// A range widened to whole blocks.
    fn block_range(&self, offset: u64, len: u64) -> Range<u64> {
        let align = u64::from(self.driver.limits().request_alignment);
        offset / align * align..(offset + len).next_multiple_of(align)
    }

    async fn write_zero_data(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let chunk = len.min(ZERO_CHUNK) as usize;
        let zeros = Buffer::new(chunk).iov(chunk);
        let mut done = 0;
        while done < len {
            let part = zeros.slice(0, (len - done).min(ZERO_CHUNK) as usize);
            Box::pin(self.write_split(offset + done, &part)).await?;
            done += part.len() as u64;
        }
        Ok(())
    }
}
