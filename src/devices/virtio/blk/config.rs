//! The block device's feature bits and configuration space (virtio 1.2, 5.2.3 and 5.2.4).
//!
//! ```text
//!   00 capacity (8)      08 size max (4)        0c segments max (4)       10 geometry (4)
//!   14 block size (4)    18 topology: physical exponent, alignment offset, minimum (2), optimum (4)
//!   20 write back (1)    22 queues (2)          24 discard: sectors max, segments max, alignment (4 each)
//!   30 write zeroes: sectors max, segments max (4 each)    38 may unmap (1)
//! ```

use super::{BlkOptions, QUEUE_SIZE};
use crate::devices::virtio::chain::MAX_BUFFER;

/// Bytes of a sector, the unit of the protocol whatever the block size.
pub(super) const SECTOR: u64 = 512;
/// Most segments of a discard or write-zeroes request.
pub(super) const MAX_SEGMENTS: u32 = 32;
/// Most sectors of such a segment: 2 GiB.
pub(super) const MAX_SEGMENT_SECTORS: u32 = 1 << 22;
/// Bytes of the configuration space.
const LEN: usize = 0x3c;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// The feature bits of a drive. Discards are offered whatever becomes of them: one that ignores them keeps a
/// promise too, and `fstrim` works everywhere.
pub(super) fn features(read_only: bool) -> u64 {
    let both = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;
    both | if read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
}

/// The configuration space of a drive of `size` bytes.
pub(super) fn bytes(size: u64, options: &BlkOptions) -> [u8; LEN] {
    let BlkOptions { logical_block_size: logical, physical_block_size: physical, .. } = *options;
    let mut out = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &(size / SECTOR).to_le_bytes());
    put(0x08, &MAX_BUFFER.to_le_bytes());
    // Two descriptors are for the header and the status.
    put(0x0c, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
    put(0x14, &logical.to_le_bytes());
    put(0x18, &[(physical / logical).trailing_zeros() as u8]);
    put(0x1a, &((physical / logical) as u16).to_le_bytes());
    put(0x22, &1u16.to_le_bytes());
    put(0x24, &MAX_SEGMENT_SECTORS.to_le_bytes());
    put(0x28, &MAX_SEGMENTS.to_le_bytes());
    put(0x2c, &(logical / SECTOR as u32).to_le_bytes());
    put(0x30, &MAX_SEGMENT_SECTORS.to_le_bytes());
    put(0x34, &MAX_SEGMENTS.to_le_bytes());
    put(0x38, &[1]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::bindings::virtio_blk as linux;

    #[test]
    fn the_fields_lie_where_linux_has_them() {
        let options =
            BlkOptions { logical_block_size: 4096, physical_block_size: 16384, ..Default::default() };
        let bytes = bytes(10 << 20, &options);
        assert_eq!(LEN, std::mem::offset_of!(linux::virtio_blk_config, max_secure_erase_sectors));
        let mut config = linux::virtio_blk_config::default();
        // SAFETY: the structure is packed, of integers only, and longer than what is copied into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut config).cast(), LEN) };
        assert_eq!({ config.capacity }, 20480);
        assert_eq!(({ config.size_max }, { config.seg_max }), (1 << 20, 254));
        assert_eq!({ config.blk_size }, 4096);
        assert_eq!((config.physical_block_exp, { config.min_io_size }), (2, 4));
        assert_eq!({ config.num_queues }, 1);
        assert_eq!(({ config.max_discard_sectors }, { config.max_discard_seg }), (1 << 22, 32));
        assert_eq!({ config.discard_sector_alignment }, 8);
        assert_eq!(({ config.max_write_zeroes_sectors }, { config.max_write_zeroes_seg }), (1 << 22, 32));
        assert_eq!(config.write_zeroes_may_unmap, 1);
    }

    #[test]
    fn read_only_drives_offer_nothing_that_writes() {
        let bit = |number: u32| 1 << number;
        assert_ne!(features(true) & bit(linux::VIRTIO_BLK_F_RO), 0);
        let writing = bit(linux::VIRTIO_BLK_F_DISCARD) | bit(linux::VIRTIO_BLK_F_WRITE_ZEROES);
        assert_eq!(features(true) & writing, 0);
        assert_eq!(features(false) & writing, writing);
    }
}
