//! The header in the first cluster (specification: "Header"): parsed and checked as a whole before anything
//! that it claims is allocated or followed; changed in place, field by field, afterwards.
//!
//! ```text
//!   0 magic  4 version  8 backing name offset  16 its length  20 cluster_bits  24 size  32 crypt_method
//!   36 L1 entries  40 L1 offset  48 refcount table offset  56 its clusters  60 snapshots  64 their offset
//!   72 incompatible  80 compatible  88 autoclear  96 refcount_order  100 header_length  104 compression_type
//! ```

use super::extensions::{self, BACKING_FORMAT, Extension, be32, be64};
use super::geometry::{ENTRY, Geometry, HOST_END, HostOffset};
use crate::block::graph::Node;
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

/// "QFI\xfb".
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header that we know, padding included.
pub(super) const HEADER_LEN: usize = 112;
const V2_LEN: u32 = 72;
const V3_LEN: u32 = 104;

/// Incompatible: refcounts may be wrong.
pub(super) const DIRTY: u64 = 1;
/// Incompatible: do not write.
pub(super) const CORRUPT: u64 = 1 << 1;
/// Compatible: refcounts may be updated late.
pub(super) const LAZY_REFCOUNTS: u64 = 1;
/// Names of incompatible bits 2 to 4, for images that do not name them themselves.
const LATER_FEATURES: [&str; 3] = ["external data file", "compression type", "extended L2 entries"];

/// Offset of the incompatible feature bits.
pub(super) const AT_INCOMPATIBLE: u64 = 72;
/// Offset of the autoclear feature bits.
pub(super) const AT_AUTOCLEAR: u64 = 88;
/// Offset of the refcount table's offset, which its length in clusters follows.
pub(super) const AT_REFCOUNT_TABLE: u64 = 48;
/// Offset of size, crypt_method, L1 entries and L1 offset, which follow one another.
pub(super) const AT_SIZE: u64 = 24;

/// Limits that QEMU sets too.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
pub(super) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
pub(super) const MAX_SNAPSHOTS: u32 = 65536;
pub(super) const MAX_BACKING_NAME: usize = 1023;
pub(super) const MIN_CLUSTER_BITS: u32 = 9;
pub(super) const MAX_CLUSTER_BITS: u32 = 21;

/// A parsed and checked header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) geometry: Geometry,
    pub(super) size: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: HostOffset,
    pub(super) refcount_table_offset: HostOffset,
    pub(super) refcount_table_clusters: u32,
    pub(super) snapshot_count: u32,
    pub(super) snapshots_offset: HostOffset,
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) extensions: Vec<Extension>,
    pub(super) backing_file: Option<String>,
}

impl Header {
    /// Reads the header and its extensions from an image file.
    ///
    /// # Errors
    /// [`Kind::InvalidFormat`] for what is no qcow2 image or breaks a rule, [`Kind::Unsupported`] for features
    /// that this build does not have, by name.
    pub(super) async fn read(file: &Rc<Node>) -> Result<Header> {
        let fixed = file.read_bytes(0, HEADER_LEN).await?;
        let cluster_bits = check_start(&fixed)?;
        let cluster = file.read_bytes(0, 1 << cluster_bits).await?;
        Header::parse(&cluster)
    }

    /// Parses the first cluster.
    fn parse(cluster: &[u8]) -> Result<Header> {
        let field32 = |at: usize| cluster.get(at..at + 4).map_or(0, be32);
        let field64 = |at: usize| cluster.get(at..at + 8).map_or(0, be64);
        let version = field32(4);
        let v3 = version >= 3;
        let v3_field = |at| if v3 { field64(at) } else { 0 };
        let header_len = header_length(v3, field32(100), cluster.len())?;
        let refcount_order = if v3 { field32(96) } else { 4 };
        if refcount_order > 6 {
            return Err(invalid("Reference count entry width too large; may not exceed 64 bits"));
        }
        let name = backing_name(cluster, field64(8), field32(16))?;
        let extensions_end = if field64(8) == 0 { cluster.len() } else { field64(8) as usize };
        let area =
            cluster.get(header_len..extensions_end).ok_or_else(|| invalid("Invalid backing file offset"))?;
        let header = Header {
            version,
            geometry: Geometry { cluster_bits: field32(20), refcount_order },
            size: field64(24),
            l1_entries: field32(36),
            l1_offset: HostOffset(field64(40)),
            refcount_table_offset: HostOffset(field64(48)),
            refcount_table_clusters: field32(56),
            snapshot_count: field32(60),
            snapshots_offset: HostOffset(field64(64)),
            incompatible: v3_field(72),
            compatible: v3_field(80),
            autoclear: v3_field(88),
            extensions: extensions::parse(area)?,
            backing_file: name,
        };
        header.check_features(field32(32), if header_len > V3_LEN as usize { cluster[104] } else { 0 })?;
        header.check_tables()?;
        Ok(header)
    }

    /// Refuses by name what this build does not have.
    fn check_features(&self, crypt_method: u32, compression_type: u8) -> Result<()> {
        let unknown = self.incompatible & !(DIRTY | CORRUPT);
        if unknown != 0 {
            let names: Vec<String> =
                (0..64).filter(|bit| unknown >> bit & 1 == 1).map(|bit| self.name(bit)).collect();
            let message = format!("Unsupported qcow2 feature(s): {}", names.join(", "));
            return Err(Error::new(Kind::Unsupported, message));
        }
        if compression_type != 0 {
            return Err(invalid("Compression type bit must be set for this compression type"));
        }
        match crypt_method {
            0 => Ok(()),
            1 | 2 => Err(Error::new(Kind::Unsupported, "Encrypted qcow2 images are not supported")),
            other => Err(invalid(format!("Unsupported encryption method {other}"))),
        }
    }

    /// What users call an incompatible feature bit.
    fn name(&self, bit: u8) -> String {
        let known = usize::from(bit).checked_sub(2).and_then(|at| LATER_FEATURES.get(at));
        extensions::feature_name(&self.extensions, bit)
            .or_else(|| known.map(|&name| name.to_owned()))
            .unwrap_or_else(|| format!("Unknown incompatible feature: {:x}", 1u64 << bit))
    }

    /// Places and sizes of all tables.
    fn check_tables(&self) -> Result<()> {
        let refcount_table_bytes = u64::from(self.refcount_table_clusters) << self.geometry.cluster_bits;
        if self.refcount_table_clusters == 0 {
            return Err(invalid("Image does not contain a reference count table"));
        }
        let snapshots = u64::from(self.snapshot_count);
        let l1_bytes = u64::from(self.l1_entries) * ENTRY;
        self.check_table(
            self.refcount_table_offset,
            refcount_table_bytes,
            MAX_REFCOUNT_TABLE_BYTES,
            "Reference count table",
        )?;
        self.check_table(self.snapshots_offset, snapshots, u64::from(MAX_SNAPSHOTS), "Snapshot table")?;
        self.check_table(self.l1_offset, l1_bytes, MAX_L1_BYTES, "Active L1 table")?;
        if self.refcount_table_offset.0 == 0 || l1_bytes > 0 && self.l1_offset.0 == 0 {
            return Err(invalid("Table at offset 0"));
        }
        let needed = self.geometry.l1_entries_for(self.size);
        if needed * ENTRY > MAX_L1_BYTES || self.size > i64::MAX as u64 {
            return Err(Error::new(Kind::InvalidFormat, "Image is too big"));
        }
        if needed > u64::from(self.l1_entries) {
            return Err(invalid("L1 table is too small"));
        }
        Ok(())
    }

    fn check_table(&self, offset: HostOffset, len: u64, max: u64, name: &str) -> Result<()> {
        if len > max {
            return Err(invalid(format!("{name} too large")));
        }
        if !self.geometry.is_aligned(offset.0) || offset.0.checked_add(len).is_none_or(|end| end > HOST_END) {
            return Err(invalid(format!("{name} offset invalid")));
        }
        Ok(())
    }

    /// Whether the image has zero clusters, feature bits and wide refcounts.
    pub(super) fn is_v3(&self) -> bool {
        self.version >= 3
    }

    /// The backing file's format, where the header names it.
    pub(super) fn backing_format(&self) -> Option<String> {
        let extension = self.extensions.iter().find(|extension| extension.magic == BACKING_FORMAT)?;
        Some(String::from_utf8_lossy(&extension.data).into_owned())
    }
}

/// Magic, version and cluster size; returns cluster_bits.
fn check_start(fixed: &[u8]) -> Result<u32> {
    if fixed[..4] != MAGIC {
        return Err(invalid("Image is not in qcow2 format"));
    }
    let version = be32(&fixed[4..8]);
    if !(2..=3).contains(&version) {
        return Err(Error::new(Kind::Unsupported, format!("Unsupported qcow2 version {version}")));
    }
    let cluster_bits = be32(&fixed[20..24]);
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
        return Err(invalid(format!("Unsupported cluster size: 2^{cluster_bits}")));
    }
    Ok(cluster_bits)
}

fn header_length(v3: bool, field: u32, cluster: usize) -> Result<usize> {
    let len = if v3 { field } else { V2_LEN };
    if v3 && len < V3_LEN {
        return Err(invalid("qcow2 header too short"));
    }
    if len as usize > cluster {
        return Err(invalid("qcow2 header exceeds cluster size"));
    }
    Ok(len as usize)
}

/// The backing file's name, which must stand in the first cluster.
fn backing_name(cluster: &[u8], offset: u64, len: u32) -> Result<Option<String>> {
    if offset == 0 {
        return Ok(None);
    }
    let start = usize::try_from(offset).ok().filter(|&start| start <= cluster.len());
    let start = start.ok_or_else(|| invalid("Invalid backing file offset"))?;
    let len = len as usize;
    let name = cluster[start..].get(..len).filter(|_| len <= MAX_BACKING_NAME);
    let name = name.ok_or_else(|| invalid("Backing file name too long"))?;
    match std::str::from_utf8(name) {
        Ok(name) => Ok(Some(name.to_owned()).filter(|name| !name.is_empty())),
        Err(_) => Err(invalid("Backing file name is not valid UTF-8")),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidFormat, message)
}
