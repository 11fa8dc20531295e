//! Making a new image: header, one refcount table cluster, one refcount block; then it grows to its size as any
//! image does.
//!
//! ```text
//!   cluster 0: header, extensions, backing name | 1: refcount table | 2: refcount block | L1 table
//! ```
//! The header of the encryption, if there is one, is put behind before the disk gets its size.

use super::codec::Codec;
use super::encrypt::EncryptOptions;
use super::entries::set_refcount;
use super::extensions::{self, BACKING_FORMAT, DATA_FILE, Extension};
use super::geometry::{Geometry, HostCluster, HostOffset};
use super::header::{
    COMPRESSION_TYPE, DATA_FILE_RAW, EXTENDED_L2, EXTERNAL_DATA, Header, LAZY_REFCOUNTS, MAX_BACKING_NAME,
};
use super::image::Image;
use crate::block::aio::Engine;
use crate::block::graph::{Driver, Node};
use crate::block::options::Preallocation;
use crate::block::{Error, Kind, Result};
use crate::util::text;
use std::rc::Rc;

/// Smallest clusters that have subclusters, in bytes.
const MIN_EXTENDED_CLUSTER: u64 = 16384;
/// Clusters that are in use before there is an L1 table.
const FIRST_CLUSTERS: usize = 3;

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the disk in bytes; rounded up to 512.
    pub size: u64,
    /// 2 (compat=0.10) or 3 (compat=1.1).
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Width of a refcount in bits.
    pub refcount_bits: u64,
    /// Allocate in subclusters, 32 a cluster.
    pub extended_l2: bool,
    /// Mark the image so that writers may update refcounts late.
    pub lazy_refcounts: bool,
    /// How clusters are compressed.
    pub compression_type: Codec,
    /// Name of the backing file.
    pub backing_file: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// It is to be a valid raw image.
    pub data_file_raw: bool,
    /// What is allocated at once.
    pub preallocation: Preallocation,
    /// How data is encrypted, if it is.
    pub encryption: Option<EncryptOptions>,
}

impl Default for CreateOptions {
    fn default() -> CreateOptions {
        CreateOptions {
            size: 0,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            compression_type: Codec::Deflate,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }
}

/// Writes a new image into an empty file; `data` is its data file, empty too, where the options name one.
///
/// # Errors
/// [`Kind::InvalidArgument`] for options that make no image.
pub async fn create(
    engine: &Rc<Engine>,
    file: &Rc<Node>,
    data: Option<&Rc<Node>>,
    options: &CreateOptions,
) -> Result<()> {
    let geometry = options.check()?;
    let size = options.size.div_ceil(512).checked_mul(512);
    let size =
        size.ok_or_else(|| Error::invalid_argument("The image size is too large for file format 'qcow2'"))?;
    let cluster = 1 << geometry.cluster_bits;
    let mut bytes = options.header(geometry)?;
    bytes.resize(cluster * FIRST_CLUSTERS, 0);
    bytes[cluster..cluster + 8].copy_from_slice(&(2 * cluster as u64).to_be_bytes());
    for used in 0..FIRST_CLUSTERS {
        set_refcount(&mut bytes[2 * cluster..], geometry.refcount_order, used, 1);
    }
    file.write_bytes(0, &bytes).await?;
    let mut image = Image::read(file).await?;
    if let Some(encryption) = &options.encryption {
        image = add_encryption(engine, file, image, encryption).await?;
    }
    data.into_iter().for_each(|data| image.set_data_file(data.clone()));
    let image = image.into_qcow2(engine, None, false)?;
    image.truncate(size, options.preallocation).await?;
    image.close().await
}

/// Makes an image without data an encrypted one, and opens it.
async fn add_encryption(
    engine: &Rc<Engine>,
    file: &Rc<Node>,
    image: Image,
    encryption: &EncryptOptions,
) -> Result<Image> {
    let plain = image.into_qcow2(engine, None, false)?;
    plain.add_encryption(encryption).await?;
    plain.close().await?;
    let mut image = Image::read(file).await?;
    image.unlock(engine, &encryption.unlock()).await?;
    Ok(image)
}

impl CreateOptions {
    /// Refuses what makes no image, before a file is touched.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for options that make no image.
    pub fn validate(&self) -> Result<()> {
        self.header(self.check()?).map(drop)
    }

    /// As [`CreateOptions::validate`], without the names; returns the layout.
    pub(super) fn check(&self) -> Result<Geometry> {
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return Err(Error::invalid_argument("Cluster size must be a power of two between 512 and 2048k"));
        }
        let cluster_bits = self.cluster_size.trailing_zeros();
        self.check_subclusters()?;
        if self.version < 3 && self.lazy_refcounts {
            let what = "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)";
            return Err(Error::invalid_argument(what));
        }
        if self.version < 3 && self.compression_type != Codec::Deflate {
            let what = "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)";
            return Err(Error::invalid_argument(what));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Err(Error::invalid_argument(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        if self.version < 3 && self.refcount_bits != 16 {
            let what = "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)";
            return Err(Error::invalid_argument(what));
        }
        self.check_data_file()?;
        if self.backing_file.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2 {
            let what =
                "Backing file and preallocation can only be used at the same time if extended_l2 is on";
            return Err(Error::invalid_argument(what));
        }
        if let Some(encryption) = &self.encryption {
            encryption.validate()?;
            if self.data_file_raw {
                let what = "An encrypted data file cannot be raw: it never reads as the guest's disk";
                return Err(Error::invalid_argument(what).remedy("leave out data_file_raw=on"));
            }
        }
        let refcount_order = self.refcount_bits.trailing_zeros();
        Ok(Geometry { cluster_bits, refcount_order, extended_l2: self.extended_l2 })
    }

    fn check_subclusters(&self) -> Result<()> {
        if self.version < 3 && self.extended_l2 {
            let what = "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)";
            return Err(Error::invalid_argument(what));
        }
        if self.extended_l2 && self.cluster_size < MIN_EXTENDED_CLUSTER {
            let what = format!(
                "Extended L2 entries are only supported with cluster sizes of at least {MIN_EXTENDED_CLUSTER} bytes"
            );
            return Err(Error::invalid_argument(&what));
        }
        Ok(())
    }

    fn check_data_file(&self) -> Result<()> {
        if self.version < 3 && self.data_file.is_some() {
            let what = "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)";
            return Err(Error::invalid_argument(what));
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(Error::invalid_argument("data-file-raw requires data-file"));
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return Err(Error::invalid_argument(
                "Backing file and data-file-raw cannot be used at the same time",
            ));
        }
        Ok(())
    }

    /// The first cluster, of an image of size 0.
    fn header(&self, geometry: Geometry) -> Result<Vec<u8>> {
        if self.backing_file.as_ref().is_some_and(|name| text::to_bytes(name).len() > MAX_BACKING_NAME) {
            return Err(could_not_assign(self, Kind::InvalidArgument, "Invalid argument"));
        }
        let mut header = self.fields(geometry);
        header.encode().map_err(|_| could_not_assign(self, Kind::NoSpace, "No space left on device"))
    }

    /// The header of an image of size 0, whose tables are where [`create`] puts them.
    pub(super) fn fields(&self, geometry: Geometry) -> Header {
        Header {
            version: self.version,
            geometry,
            size: 0,
            l1_entries: 0,
            l1_offset: HostOffset(0),
            refcount_table_offset: geometry.start_of(HostCluster(1)),
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: self.incompatible(),
            compatible: if self.lazy_refcounts { LAZY_REFCOUNTS } else { 0 },
            autoclear: if self.data_file_raw { DATA_FILE_RAW } else { 0 },
            crypt_method: 0,
            compression_type: self.compression_type.to_byte(),
            unknown_fields: Vec::new(),
            extensions: self.extensions(geometry),
            backing_file: self.backing_file.clone(),
            header_len: 0,
            used: 0,
        }
    }

    fn incompatible(&self) -> u64 {
        let data = if self.data_file.is_some() { EXTERNAL_DATA } else { 0 };
        let compression = if self.compression_type == Codec::Deflate { 0 } else { COMPRESSION_TYPE };
        let extended = if self.extended_l2 { EXTENDED_L2 } else { 0 };
        data | compression | extended
    }

    fn extensions(&self, geometry: Geometry) -> Vec<Extension> {
        let format = self.backing_format.as_ref().filter(|_| self.backing_file.is_some());
        let format = format.map(|name| Extension::text(BACKING_FORMAT, name));
        let data = self.data_file.as_ref();
        let data = data.map(|name| Extension::text(DATA_FILE, name));
        let room = extensions::has_room_for_names(geometry);
        let names = (self.version >= 3 && room).then(extensions::feature_name_table);
        format.into_iter().chain(data).chain(names).collect()
    }
}

fn could_not_assign(options: &CreateOptions, kind: Kind, why: &str) -> Error {
    let name = options.backing_file.as_deref().unwrap_or_default();
    let format = options.backing_format.as_deref().unwrap_or_default();
    Error::new(kind, format!("Could not assign backing file '{name}' with format '{format}': {why}"))
}
