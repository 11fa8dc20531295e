//! How large the file of a new image gets: empty, or as the copy of another image.
//!
//! Both sizes are upper bounds of the file's length. The preallocation `metadata` makes a file of full length that
//! is mostly holes; unlike qemu-img, that length is what is required of it.

use super::SECTOR;
use super::create::Values;
use super::encrypt_options::{luks, passphrase};
use super::place::Extent;
use crate::block::format::qcow2::{CreateOptions, EncryptOptions};
use crate::block::graph::Node;
use crate::block::graph::bitmaps::{BitmapInfo, Bitmaps};
use crate::block::secret::Secrets;
use crate::block::{Error, Result};
use std::rc::Rc;

/// The first version of qcow2, which has no bitmaps and refcounts of 16 bits.
const OLD: &str = "0.10";

/// Lengths of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Once it is made.
    pub required: u64,
    /// Once all of the disk was written.
    pub full: u64,
    /// What copies of the source's bitmaps add; `None` where one of both cannot have any.
    pub bitmaps: Option<u64>,
}

/// What the file will hold.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A disk of so many bytes that was never written.
    Empty(u64),
    /// What this disk holds; bitmaps are those of the second node, which it is a snapshot of or the same as.
    Of(&'a Rc<Node>, &'a Node),
}

impl Content<'_> {
    fn size(&self) -> u64 {
        match self {
            Content::Empty(size) => *size,
            Content::Of(disk, _) => disk.size(),
        }
    }
}

/// Measures an image with the options `values`.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::block::Kind::InvalidArgument) in qemu-img's words for options that make no image;
/// failures to read metadata.
pub async fn measure(values: &Values, content: Content<'_>, secrets: &Secrets) -> Result<Measured> {
    let plain = |full: u64| Measured { required: full, full, bitmaps: None };
    let size = content.size();
    match values.format() {
        "raw" => size.checked_next_multiple_of(SECTOR).map(plain).ok_or_else(too_large),
        "luks" => {
            let options = luks(values, "")?;
            passphrase(values, secrets)?;
            options.payload().checked_add(size).map(plain).ok_or_else(too_large)
        }
        _ => measure_qcow2(values, content, secrets).await,
    }
}

async fn measure_qcow2(values: &Values, content: Content<'_>, secrets: &Secrets) -> Result<Measured> {
    let options = layout(values, content.size(), secrets)?;
    let metadata = options.metadata_size()?;
    let is_old = values.get("compat") == Some(OLD);
    if is_old && options.refcount_bits != 16 {
        let message = "Different refcount widths than 16 bits require compatibility level 1.1 or above (use \
                       compat=1.1 or greater)";
        return Err(Error::invalid_argument(message));
    }
    let all = options.size.next_multiple_of(options.cluster_size);
    let data = match content {
        _ if is_preallocated(values)? => all,
        Content::Empty(_) => 0,
        // Nobody knows yet what will be equal to the backing file.
        Content::Of(..) if values.get("backing_file").is_some() => all,
        Content::Of(disk, _) => data_size(disk, options.cluster_size).await?,
    };
    let bitmaps = match content {
        Content::Of(_, image) if !is_old => bitmaps_of(image),
        _ => None,
    };
    let bitmaps = bitmaps.map(|bitmaps| options.bitmaps_size(&bitmaps)).transpose()?;
    Ok(Measured { required: metadata + data, full: metadata + all, bitmaps })
}

/// The persistent bitmaps of an image that can have some.
fn bitmaps_of(image: &Node) -> Option<Vec<BitmapInfo>> {
    image.driver().bitmaps().filter(|bitmaps| bitmaps.have_room()).map(Bitmaps::list)
}

/// What of a qcow2 image decides about its size.
fn layout(values: &Values, size: u64, secrets: &Secrets) -> Result<CreateOptions> {
    if let Some(other) = values.get("compat").filter(|compat| ![OLD, "1.1"].contains(compat)) {
        return Err(Error::invalid_argument(format!("Invalid compatibility level: '{other}'")));
    }
    is_preallocated(values)?;
    let number = |name| values.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
    let encryption = match values.get("encrypt.format") {
        Some("luks") => Some(EncryptOptions::Luks(luks(values, "encrypt.")?, passphrase(values, secrets)?)),
        _ => None,
    };
    Ok(CreateOptions {
        size,
        cluster_size: number("cluster_size"),
        refcount_bits: number("refcount_bits"),
        extended_l2: values.is_on("extended_l2"),
        encryption,
        ..CreateOptions::default()
    })
}

/// Whether the file has its full length at once.
fn is_preallocated(values: &Values) -> Result<bool> {
    match values.get("preallocation") {
        None | Some("off") => Ok(false),
        Some("metadata" | "falloc" | "full") => Ok(true),
        Some(other) => Err(Error::invalid_argument(format!("invalid parameter value: {other}"))),
    }
}

/// Bytes of the clusters that have data in them.
async fn data_size(disk: &Rc<Node>, cluster_size: u64) -> Result<u64> {
    // Clusters before this byte were counted or have nothing.
    let (mut at, mut counted, mut data) = (0, 0, 0);
    while at < disk.size() {
        let extent = Extent::at(disk, at).await?;
        if !extent.status.status.zero && extent.end() > counted {
            let start = (at - at % cluster_size).max(counted);
            counted = extent.end().next_multiple_of(cluster_size);
            data += counted - start;
        }
        at = extent.end();
    }
    Ok(data)
}

fn too_large() -> Error {
    Error::invalid_argument("The image size is too large")
}
