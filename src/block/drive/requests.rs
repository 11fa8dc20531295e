//! The requests of devices.
//!
//! A request passes the gate, which a drained section holds shut, and is counted. It is for the medium that was in the
//! drive when it came.

use super::empty::no_medium;
use super::stats::Moment;
use super::{Local, Operation};
use crate::block::graph::status::{ChainStatus, chain_status};
use crate::block::options::DetectZeroes;
use crate::block::{Error, Iov, Kind, Result};
use async_lock::RwLockReadGuardArc;

/// How many bytes are looked through for zeros at once.
const LOOK_THROUGH: usize = 1 << 20;

impl Local {
    /// Reads `into.len()` bytes.
    pub async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.check_range(offset, into.len() as u64)?;
        let _entered = self.enter().await?;
        let since = Moment::now();
        let done = self.root().read(offset, into).await;
        self.facts.stats.count(Operation::Read, into.len() as u64, since, &done);
        done
    }

    /// Writes `from.len()` bytes; durable on return if the drive has no write cache.
    pub async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.check_range(offset, from.len() as u64)?;
        let _entered = self.enter().await?;
        let since = Moment::now();
        let done = self.write_now(offset, from).await;
        self.facts.stats.count(Operation::Write, from.len() as u64, since, &done);
        done
    }

    async fn write_now(&self, offset: u64, from: &Iov) -> Result<()> {
        let detect = self.facts.options.detect_zeroes;
        if detect != DetectZeroes::Off && self.is_zero(from).await {
            let may_unmap = detect == DetectZeroes::Unmap;
            self.root().write_zeroes(offset, from.len() as u64, may_unmap).await?;
        } else {
            self.root().write(offset, from).await?;
        }
        self.write_through().await
    }

    /// Makes a range read as zeros.
    pub async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await?;
        let since = Moment::now();
        let done = match self.root().write_zeroes(offset, len, may_unmap).await {
            Ok(()) => self.write_through().await,
            failed => failed,
        };
        self.facts.stats.count(Operation::Write, len, since, &done);
        done
    }

    /// As [`Local::write_zeroes`], but only if that is faster than writing zeros.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it is not; nothing was changed then.
    pub async fn write_zeroes_fast(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await?;
        let since = Moment::now();
        let done = match self.root().write_zeroes_fast(offset, len, may_unmap).await {
            Ok(()) => self.write_through().await,
            failed => failed,
        };
        self.facts.stats.count(Operation::Write, len, since, &done);
        done
    }

    /// Tells that a range is no longer needed. Ignored unless the drive was opened with `discard=unmap`.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        if !self.facts.options.unmap {
            return Ok(());
        }
        let _entered = self.enter().await?;
        let since = Moment::now();
        let done = self.root().discard(offset, len).await;
        self.facts.stats.count(Operation::Discard, len, since, &done);
        done
    }

    /// What the first bytes of a range are, as seen through the backing chain.
    ///
    /// # Errors
    /// As the drivers say.
    pub async fn status(&self, offset: u64, len: u64) -> Result<ChainStatus> {
        self.check_range(offset, len)?;
        let _entered = self.enter().await?;
        chain_status(&self.root(), offset, len).await
    }

    /// Makes all completed writes durable.
    pub async fn flush(&self) -> Result<()> {
        let _entered = self.enter().await?;
        let since = Moment::now();
        let done = self.root().flush().await;
        self.facts.stats.count(Operation::Flush, 0, since, &done);
        done
    }

    /// Whether there is nothing but zeros; other tasks run while much is looked through.
    async fn is_zero(&self, from: &Iov) -> bool {
        for at in (0..from.len()).step_by(LOOK_THROUGH) {
            if !from.slice(at, LOOK_THROUGH.min(from.len() - at)).is_zero() {
                return false;
            }
            if from.len() > LOOK_THROUGH {
                self.engine.yield_now().await;
            }
        }
        true
    }

    /// Waits for the end of a drained section. A request that had to wait while its medium was taken out is not for
    /// the next one.
    pub(super) async fn enter(&self) -> Result<RwLockReadGuardArc<()>> {
        let medium = self.medium.get();
        let guard = match self.gate.try_read_arc() {
            Some(guard) => guard,
            None => self.gate.read_arc().await,
        };
        self.require_medium()?;
        match self.medium.get() == medium {
            true => Ok(guard),
            false => Err(no_medium()),
        }
    }

    async fn write_through(&self) -> Result<()> {
        if self.facts.options.cache.writeback { Ok(()) } else { self.root().flush().await }
    }

    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        self.require_medium()?;
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => {
                Err(Error::new(Kind::OutOfRange, "request past the end of the disk")
                    .path(self.facts.filename()))
            }
        }
    }
}
