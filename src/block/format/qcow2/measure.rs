//! How large the file of an image gets, before there is one.
//!
//! ```text
//!   header | refcount table, refcount blocks | L1 table, L2 tables | LUKS header | data       whole clusters each
//! ```
//! Refcount blocks count themselves and their table: their number is the least that is enough for all.

use super::create::CreateOptions;
use super::encrypt::EncryptOptions;
use super::geometry::{ENTRY, Geometry};
use super::header::MAX_L1_BYTES;
use crate::block::graph::bitmaps::BitmapInfo;
use crate::block::{Error, Kind, Result};

/// Bytes of an entry of the bitmap directory, before its name.
const BITMAP_ENTRY: u64 = 24;
/// Names of bitmaps are filled up to multiples of this, in bytes.
const BITMAP_NAME_ALIGN: u64 = 8;

impl CreateOptions {
    /// Bytes of the file without data, tables for all of the disk included.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for options that make no image.
    pub fn metadata_size(&self) -> Result<u64> {
        let geometry = self.check()?;
        let data = geometry.clusters_for(self.size);
        let l2 = self.size.div_ceil(geometry.l2_reach());
        if l2 * ENTRY > MAX_L1_BYTES {
            let message = "The image size is too large (try using a larger cluster size)";
            return Err(Error::new(Kind::InvalidArgument, message));
        }
        let key_slots = geometry.clusters_for(self.encryption_header());
        let tables = 1 + geometry.clusters_for(l2 * ENTRY) + l2 + key_slots;
        Ok((tables + refcount_clusters(geometry, tables + data)) << geometry.cluster_bits)
    }

    /// Bytes of the data's LUKS header, if there is one.
    fn encryption_header(&self) -> u64 {
        match &self.encryption {
            Some(EncryptOptions::Luks(luks, _)) => luks.payload(),
            Some(EncryptOptions::Aes(_)) | None => 0,
        }
    }

    /// Bytes that copies of `bitmaps` take, each of them filled.
    ///
    /// # Errors
    /// As [`CreateOptions::metadata_size`].
    pub fn bitmaps_size(&self, bitmaps: &[BitmapInfo]) -> Result<u64> {
        let geometry = self.check()?;
        let (mut clusters, mut directory) = (0, 0);
        for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.inconsistent) {
            let bits = self.size.div_ceil(bitmap.granularity);
            let data = geometry.clusters_for(bits.div_ceil(8));
            clusters += data + geometry.clusters_for(data * ENTRY);
            directory += (BITMAP_ENTRY + bitmap.name.len() as u64).next_multiple_of(BITMAP_NAME_ALIGN);
        }
        Ok((clusters + geometry.clusters_for(directory)) << geometry.cluster_bits)
    }
}

/// Clusters of refcount blocks and their table, for `counted` other clusters.
fn refcount_clusters(geometry: Geometry, counted: u64) -> u64 {
    let mut own = 0;
    loop {
        let blocks = (counted + own).div_ceil(geometry.block_entries());
        let needed = blocks + geometry.clusters_for(blocks * ENTRY);
        if needed == own {
            return own;
        }
        own = needed;
    }
}
