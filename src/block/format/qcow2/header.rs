//! The header in the first cluster (specification: "Header"): parsed and checked as a whole before anything
//! that it claims is allocated or followed. How it changes afterwards is in [`super::switch`].
//!
//! ```text
//!   0 magic  4 version  8 backing name offset  16 its length  20 cluster_bits  24 size  32 crypt_method
//!   36 L1 entries  40 L1 offset  48 refcount table offset  56 its clusters  60 snapshots  64 their offset
//!   72 incompatible  80 compatible  88 autoclear  96 refcount_order  100 header_length  104 compression_type
//! ```

use super::bitmap::BITMAPS_VALID;
use super::codec::Codec;
use super::encrypt;
use super::extensions::{self, BACKING_FORMAT, DATA_FILE, Extension, be32, be64};
use super::geometry::{ENTRY, Geometry, HOST_END, HostOffset};
use crate::block::graph::Node;
use crate::block::{Error, Kind, Result};
use crate::util::text;
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
/// Incompatible: the guest's data is in a file of its own.
pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible: clusters are not compressed as zlib does.
pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
/// Incompatible: L2 entries are extended.
pub(super) const EXTENDED_L2: u64 = 1 << 4;
/// What this build has of the incompatible features.
const SUPPORTED: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
/// Compatible: refcounts may be updated late.
pub(super) const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear: that file reads as the guest's disk.
pub(super) const DATA_FILE_RAW: u64 = 1 << 1;
/// Names of incompatible bits 2 to 4, for images that do not name them themselves.
const LATER_FEATURES: [&str; 3] = ["external data file", "compression type", "extended L2 entries"];

/// Limits that QEMU sets too.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
pub(super) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
pub(super) const MAX_SNAPSHOTS: u32 = 65536;
pub(super) const MAX_BACKING_NAME: usize = 1023;
/// Bytes of the smallest subcluster.
const MIN_SUBCLUSTER: u64 = 512;
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
    pub(super) crypt_method: u32,
    pub(super) compression_type: u8,
    /// Fields behind those that we know: kept as they are.
    pub(super) unknown_fields: Vec<u8>,
    pub(super) extensions: Vec<Extension>,
    pub(super) backing_file: Option<String>,
    /// Bytes of the header without extensions.
    pub(super) header_len: usize,
    /// Bytes of the first cluster that are in use.
    pub(super) used: usize,
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
        let has_type = header_len > V3_LEN as usize;
        let refcount_order = if v3 { field32(96) } else { 4 };
        if refcount_order > 6 {
            return Err(Error::invalid_format(
                "Reference count entry width too large; may not exceed 64 bits",
            ));
        }
        let name = backing_name(cluster, field64(8), field32(16))?;
        let extensions_end = if field64(8) == 0 { cluster.len() } else { field64(8) as usize };
        let area = cluster
            .get(header_len..extensions_end)
            .ok_or_else(|| Error::invalid_format("Invalid backing file offset"))?;
        let (extensions, extensions_len) = extensions::parse(area)?;
        let name_end = if field64(8) == 0 { 0 } else { extensions_end + field32(16) as usize };
        let header = Header {
            version,
            geometry: Geometry {
                cluster_bits: field32(20),
                refcount_order,
                extended_l2: v3_field(72) & EXTENDED_L2 != 0,
            },
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
            crypt_method: field32(32),
            compression_type: if has_type { cluster[104] } else { 0 },
            unknown_fields: cluster.get(HEADER_LEN..header_len).unwrap_or_default().to_vec(),
            extensions,
            backing_file: name,
            header_len,
            used: (header_len + extensions_len).max(name_end),
        };
        header.check_features()?;
        header.check_tables()?;
        Ok(header)
    }

    /// Refuses by name what this build does not have.
    fn check_features(&self) -> Result<()> {
        self.check_compression_type()?;
        let unknown = self.incompatible & !SUPPORTED;
        if unknown != 0 {
            return Err(self.refuse_features(unknown));
        }
        if self.autoclear & DATA_FILE_RAW != 0 && self.incompatible & EXTERNAL_DATA == 0 {
            return Err(Error::invalid_format("data-file-raw requires a data file"));
        }
        if self.geometry.subcluster_size() < MIN_SUBCLUSTER {
            let size = self.geometry.subcluster_size();
            return Err(Error::invalid_format(format!("Unsupported subcluster size: {size}")));
        }
        encrypt::luks_place(self).map(drop)
    }

    fn check_compression_type(&self) -> Result<()> {
        let bit = self.incompatible & COMPRESSION_TYPE != 0;
        match (Codec::from_byte(self.compression_type), bit) {
            (Some(Codec::Deflate), false) | (Some(Codec::Zstd), true) => Ok(()),
            (None, _) => Err(Error::new(
                Kind::Unsupported,
                format!("qcow2: unknown compression type: {}", self.compression_type),
            )),
            (Some(_), true) => {
                Err(Error::invalid_format("qcow2: Compression type incompatible feature bit must not be set"))
            }
            (Some(_), false) => {
                Err(Error::invalid_format("qcow2: Compression type incompatible feature bit must be set"))
            }
        }
    }

    /// How clusters are compressed.
    pub(super) fn codec(&self) -> Codec {
        // Checked when the header was read.
        Codec::from_byte(self.compression_type).unwrap_or_default()
    }

    /// Says which incompatible features are not known: by name, and all that have none as one number.
    fn refuse_features(&self, unknown: u64) -> Error {
        let (mut names, mut nameless) = (Vec::new(), 0u64);
        for bit in (0..64).filter(|bit| unknown >> bit & 1 == 1) {
            match self.name(bit) {
                Some(name) => names.push(name),
                None => nameless |= 1 << bit,
            }
        }
        if nameless != 0 {
            names.push(format!("Unknown incompatible feature: {nameless:x}"));
        }
        Error::new(Kind::Unsupported, format!("Unsupported qcow2 feature(s): {}", names.join(", ")))
    }

    /// What users call an incompatible feature bit.
    fn name(&self, bit: u8) -> Option<String> {
        let known = usize::from(bit).checked_sub(2).and_then(|at| LATER_FEATURES.get(at));
        extensions::feature_name(&self.extensions, bit).or_else(|| known.map(|&name| name.to_owned()))
    }

    /// Places and sizes of all tables.
    fn check_tables(&self) -> Result<()> {
        let refcount_table_bytes = u64::from(self.refcount_table_clusters) << self.geometry.cluster_bits;
        let l1_bytes = u64::from(self.l1_entries) * ENTRY;
        self.check_table(
            self.refcount_table_offset,
            refcount_table_bytes,
            MAX_REFCOUNT_TABLE_BYTES,
            "Reference count table",
        )?;
        self.check_table(self.l1_offset, l1_bytes, MAX_L1_BYTES, "Active L1 table")?;
        if l1_bytes > 0 && self.l1_offset.0 == 0 {
            return Err(Error::invalid_format("Table at offset 0"));
        }
        let needed = self.geometry.l1_entries_for(self.size);
        if self.size > i64::MAX as u64 {
            let message = "Could not refresh total sector count: File too large";
            return Err(Error::new(Kind::InvalidFormat, message));
        }
        if needed * ENTRY > MAX_L1_BYTES {
            return Err(Error::new(Kind::InvalidFormat, "Image is too big"));
        }
        if needed > u64::from(self.l1_entries) {
            return Err(Error::invalid_format("L1 table is too small"));
        }
        Ok(())
    }

    /// Refuses an image without refcounts. A repair makes some.
    pub(super) fn check_has_refcounts(&self) -> Result<()> {
        match (self.refcount_table_clusters, self.refcount_table_offset.0) {
            (0, _) => Err(Error::invalid_format("Image does not contain a reference count table")),
            (_, 0) => Err(Error::invalid_format("Table at offset 0")),
            _ => Ok(()),
        }
    }

    /// Refuses a snapshot table of `count` entries that cannot be where the header says.
    pub(super) fn check_snapshot_table(&self, count: u32) -> Result<()> {
        self.check_table(self.snapshots_offset, count.into(), MAX_SNAPSHOTS.into(), "Snapshot table")
    }

    fn check_table(&self, offset: HostOffset, len: u64, max: u64, name: &str) -> Result<()> {
        if len > max {
            return Err(Error::invalid_format(format!("{name} too large")));
        }
        if !self.geometry.is_aligned(offset.0) || offset.0.checked_add(len).is_none_or(|end| end > HOST_END) {
            return Err(Error::invalid_format(format!("{name} offset invalid")));
        }
        Ok(())
    }

    /// Lays the first cluster out anew. Returns it as far as it is in use.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if it does not fit into a cluster.
    pub(super) fn encode(&mut self) -> Result<Vec<u8>> {
        self.header_len = if self.is_v3() { HEADER_LEN + self.unknown_fields.len() } else { V2_LEN as usize };
        let mut bytes = vec![0; self.header_len.min(HEADER_LEN)];
        if self.is_v3() {
            bytes.extend(&self.unknown_fields);
        }
        bytes.extend(extensions::encode(&self.extensions));
        let name_at = if self.backing_file.is_some() { bytes.len() } else { 0 };
        bytes.extend(self.backing_file.iter().flat_map(|name| text::to_bytes(name).into_owned()));
        self.put_fields(&mut bytes, name_at as u64);
        self.used = bytes.len();
        if bytes.len() as u64 > self.geometry.cluster_size() {
            return Err(Error::new(Kind::NoSpace, "No space left on device"));
        }
        Ok(bytes)
    }

    /// The first cluster, as far as it is in use, of an image whose header was `old` and stood in `bytes`. What
    /// stands where is kept unless it must move.
    pub(super) fn rewrite(&mut self, old: &Header, bytes: &[u8]) -> Result<Vec<u8>> {
        let same_layout = self.version == old.version
            && self.compression_type == old.compression_type
            && self.extensions == old.extensions
            && self.backing_file == old.backing_file;
        if !same_layout {
            return self.encode();
        }
        let mut bytes = bytes.to_vec();
        let name_at = be64(&bytes[8..]);
        self.put_fields(&mut bytes, name_at);
        Ok(bytes)
    }

    /// Puts all fields that we know into `bytes`. The backing file's name stands at `name_at`.
    fn put_fields(&self, bytes: &mut [u8], name_at: u64) {
        let mut put = |at: usize, field: &[u8]| {
            if at + field.len() <= self.header_len {
                bytes[at..at + field.len()].copy_from_slice(field);
            }
        };
        let name_len = self.backing_file.as_ref().map_or(0, |name| text::to_bytes(name).len()) as u32;
        put(0, &MAGIC);
        put(4, &self.version.to_be_bytes());
        put(8, &name_at.to_be_bytes());
        put(16, &name_len.to_be_bytes());
        put(20, &self.geometry.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(32, &self.crypt_method.to_be_bytes());
        put(36, &self.l1_entries.to_be_bytes());
        put(40, &self.l1_offset.0.to_be_bytes());
        put(48, &self.refcount_table_offset.0.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        put(60, &self.snapshot_count.to_be_bytes());
        put(64, &self.snapshots_offset.0.to_be_bytes());
        put(72, &self.incompatible.to_be_bytes());
        put(80, &self.compatible.to_be_bytes());
        put(88, &self.autoclear.to_be_bytes());
        put(96, &self.geometry.refcount_order.to_be_bytes());
        put(100, &(self.header_len as u32).to_be_bytes());
        put(104, &[self.compression_type]);
    }

    /// Whether the image has zero clusters, feature bits and wide refcounts.
    pub(super) fn is_v3(&self) -> bool {
        self.version >= 3
    }

    /// Autoclear bits of what stays true whatever is done to the image here: all others are cleared before
    /// anything changes. A data file cannot read as the guest's disk where a backing file shows through, nor where it is
    /// encrypted.
    pub(super) fn upheld(&self) -> u64 {
        let raw = if self.backing_file.is_none() && self.crypt_method == 0 { DATA_FILE_RAW } else { 0 };
        let has_bitmaps = self.extensions.iter().any(|extension| extension.magic == extensions::BITMAPS);
        let bitmaps = if has_bitmaps { BITMAPS_VALID } else { 0 };
        self.autoclear & (raw | bitmaps)
    }

    /// The external data file's name, where the header names it.
    pub(super) fn data_file(&self) -> Option<String> {
        let extension = self.extensions.iter().find(|extension| extension.magic == DATA_FILE)?;
        let name = extension.data.split(|&byte| byte == 0).next()?;
        Some(text::from_bytes(name))
    }

    /// The backing file's format, where the header names it.
    pub(super) fn backing_format(&self) -> Option<String> {
        let extension = self.extensions.iter().find(|extension| extension.magic == BACKING_FORMAT)?;
        Some(text::from_bytes(&extension.data))
    }
}

/// Magic, version and cluster size; returns cluster_bits.
fn check_start(fixed: &[u8]) -> Result<u32> {
    if fixed[..4] != MAGIC {
        return Err(Error::invalid_format("Image is not in qcow2 format"));
    }
    let version = be32(&fixed[4..8]);
    if !(2..=3).contains(&version) {
        return Err(Error::new(Kind::Unsupported, format!("Unsupported qcow2 version {version}")));
    }
    let cluster_bits = be32(&fixed[20..24]);
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
        return Err(Error::invalid_format(format!("Unsupported cluster size: 2^{cluster_bits}")));
    }
    Ok(cluster_bits)
}

fn header_length(v3: bool, field: u32, cluster: usize) -> Result<usize> {
    let len = if v3 { field } else { V2_LEN };
    if v3 && len < V3_LEN {
        return Err(Error::invalid_format("qcow2 header too short"));
    }
    if len as usize > cluster {
        return Err(Error::invalid_format("qcow2 header exceeds cluster size"));
    }
    Ok(len as usize)
}

/// The backing file's name, which must stand in the first cluster.
fn backing_name(cluster: &[u8], offset: u64, len: u32) -> Result<Option<String>> {
    if offset == 0 {
        return Ok(None);
    }
    let start = usize::try_from(offset).ok().filter(|&start| start <= cluster.len());
    let start = start.ok_or_else(|| Error::invalid_format("Invalid backing file offset"))?;
    let len = len as usize;
    let name = cluster[start..].get(..len).filter(|_| len <= MAX_BACKING_NAME);
    let name = name.ok_or_else(|| Error::invalid_format("Backing file name too long"))?;
    Ok(Some(text::from_bytes(name)).filter(|name| !name.is_empty()))
}
