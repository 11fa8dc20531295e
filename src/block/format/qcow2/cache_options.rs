//! How much metadata of an image is kept in memory, and for how long: options by their names in QEMU.
//!
//! | option | means | default |
//! | --- | --- | --- |
//! | `l2-cache-size` | bytes of L2 tables, never more than there are | 32 MiB |
//! | `refcount-cache-size` | bytes of refcount blocks | 256 KiB, or 4 blocks where that is more |
//! | `cache-size` | bytes of both: what one does not take, the other does | |
//! | `l2-cache-entry-size` | bytes of an L2 slice, which is read and dropped as one | 4 KiB, or a cluster |
//! | `cache-clean-interval` | seconds after which what was not used is dropped, 0 for never | 600 |
//!
//! No size is too small: [`MIN_SLICES`] and [`MIN_BLOCKS`] are kept in any case.

use super::geometry::{Geometry, Slices};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use crate::util::size::{SizeError, parse_size};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The L2 cache covers the whole disk up to this many bytes of tables.
const L2_BYTES: u64 = 32 << 20;
/// Bytes of refcount blocks.
const REFCOUNT_BYTES: u64 = 256 << 10;
/// L2 slices in memory, at least.
const MIN_SLICES: usize = 2;
/// Refcount blocks in memory, at least: enough where the L2 cache covers the disk.
pub(super) const MIN_BLOCKS: usize = 4;
/// Bytes of an L2 slice, where the table is not smaller.
const SLICE: u64 = 4096;
/// The smallest slice, in bytes.
const MIN_SLICE: u64 = 512;
/// Most pieces of a cache, as in QEMU.
const MAX_PIECES: u64 = i32::MAX as u64;
/// Seconds between two looks for what is not used.
const INTERVAL: u64 = 600;

/// What the user says of the caches of an image; `None` leaves it to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of L2 tables.
    pub l2_cache_size: Option<u64>,
    /// Bytes of refcount blocks.
    pub refcount_cache_size: Option<u64>,
    /// Bytes of both.
    pub cache_size: Option<u64>,
    /// Bytes of an L2 slice.
    pub l2_cache_entry_size: Option<u64>,
    /// Seconds after which what was not used is dropped; 0 is never.
    pub cache_clean_interval: Option<u64>,
}

/// How many pieces the caches hold.
pub(super) struct Capacities {
    pub(super) slices: usize,
    pub(super) blocks: usize,
}

impl CacheOptions {
    /// Takes the options of the caches out of those of an image.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words for a value that is no number.
    pub fn take(options: &mut Options) -> Result<CacheOptions> {
        let mut size = |name| options.take(name).map(|value| size(name, &value)).transpose();
        Ok(CacheOptions {
            l2_cache_size: size("l2-cache-size")?,
            refcount_cache_size: size("refcount-cache-size")?,
            cache_size: size("cache-size")?,
            l2_cache_entry_size: size("l2-cache-entry-size")?,
            cache_clean_interval: options.take("cache-clean-interval").as_deref().map(seconds).transpose()?,
        })
    }

    /// Refuses what contradicts itself, or makes no sense for a disk of `size` bytes.
    pub(super) fn check(&self, geometry: Geometry, size: u64) -> Result<()> {
        self.check_sum()?;
        let cluster = geometry.cluster_size();
        let slice = self.slice_size(geometry);
        if !slice.is_power_of_two() || !(MIN_SLICE..=cluster).contains(&slice) {
            let rule = format!("a power of two between {MIN_SLICE} and the cluster size ({cluster})");
            return Err(invalid(format!("L2 cache entry size must be {rule}")));
        }
        let (tables, blocks) = self.bytes(geometry, size);
        if tables / slice > MAX_PIECES {
            return Err(invalid("L2 cache size too big"));
        }
        if blocks >> geometry.cluster_bits > MAX_PIECES {
            return Err(invalid("Refcount cache size too big"));
        }
        if self.cache_clean_interval > Some(u32::MAX.into()) {
            return Err(invalid("Cache clean interval too big"));
        }
        Ok(())
    }

    fn check_sum(&self) -> Result<()> {
        let Some(sum) = self.cache_size else { return Ok(()) };
        if self.l2_cache_size.is_some() && self.refcount_cache_size.is_some() {
            let what = "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time";
            return Err(invalid(what));
        }
        if self.l2_cache_size > Some(sum) {
            return Err(invalid("l2-cache-size may not exceed cache-size"));
        }
        if self.refcount_cache_size > Some(sum) {
            return Err(invalid("refcount-cache-size may not exceed cache-size"));
        }
        Ok(())
    }

    fn slice_size(&self, geometry: Geometry) -> u64 {
        self.l2_cache_entry_size.unwrap_or(geometry.cluster_size().min(SLICE))
    }

    /// How L2 tables are cut.
    pub(super) fn slices(&self, geometry: Geometry) -> Slices {
        Slices::new(geometry, self.slice_size(geometry))
    }

    /// Bytes of L2 tables and of refcount blocks that are kept of a disk of `size` bytes.
    fn bytes(&self, geometry: Geometry, size: u64) -> (u64, u64) {
        let all = geometry.l1_entries_for(size) << geometry.cluster_bits;
        let tables = all.min(self.l2_cache_size.unwrap_or(L2_BYTES));
        match (self.cache_size, self.l2_cache_size, self.refcount_cache_size) {
            (None, _, blocks) => (tables, blocks.unwrap_or(REFCOUNT_BYTES)),
            (Some(sum), None, Some(blocks)) => (sum.saturating_sub(blocks), blocks),
            (Some(sum), Some(_), _) => (tables, sum.saturating_sub(tables)),
            // The least of refcounts comes first, then the tables; refcounts get the rest.
            (Some(sum), None, None) => {
                let least = (MIN_BLOCKS as u64) << geometry.cluster_bits;
                let tables = tables.min(sum.saturating_sub(least));
                (tables, sum - tables)
            }
        }
    }

    /// How many pieces are kept of a disk of `size` bytes.
    pub(super) fn capacities(&self, geometry: Geometry, size: u64) -> Capacities {
        let (tables, blocks) = self.bytes(geometry, size);
        Capacities {
            slices: MIN_SLICES.max((tables / self.slice_size(geometry)) as usize),
            blocks: MIN_BLOCKS.max((blocks >> geometry.cluster_bits) as usize),
        }
    }

    /// After how long what was not used is dropped; `None` is never.
    pub(super) fn interval(&self) -> Option<Duration> {
        let seconds = self.cache_clean_interval.unwrap_or(INTERVAL);
        (seconds != 0).then(|| Duration::from_secs(seconds))
    }
}

/// When it is time to look for what is not used.
pub(super) struct Cleaning {
    interval: Option<Duration>,
    last: Cell<Instant>,
}

impl Cleaning {
    pub(super) fn new(interval: Option<Duration>, now: Instant) -> Cleaning {
        Cleaning { interval, last: Cell::new(now) }
    }

    /// Whether it is time; if so, the next interval begins.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let due =
            self.interval.is_some_and(|interval| now.saturating_duration_since(self.last.get()) >= interval);
        if due {
            self.last.set(now);
        }
        due
    }
}

fn size(name: &str, value: &str) -> Result<u64> {
    parse_size(value).map_err(|error| {
        invalid(match error {
            SizeError::Malformed => {
                format!("Parameter '{name}' expects a non-negative number below 2^64")
            }
            SizeError::OutOfRange => format!("Value '{value}' is out of range for parameter '{name}'"),
        })
    })
}

/// Reads a number; one below zero is too big, as in QEMU.
fn seconds(value: &str) -> Result<u64> {
    match value.parse::<i128>() {
        Ok(number) => Ok(u64::try_from(number).unwrap_or(u64::MAX)),
        Err(_) => Err(invalid("Parameter 'cache-clean-interval' expects a number")),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, message).remedy("leave the option out for a size that suits most disks")
}
