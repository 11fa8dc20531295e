//! Changing options of an image that exists: what a format that can does for `amend`.

use crate::block::Result;
use async_trait::async_trait;

/// What is to change; what is `None` stays as it is. Values are as users give them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// Compatibility level: "0.10" or "v2", "1.1" or "v3".
    pub compat: Option<String>,
    /// Whether writers may update refcounts late.
    pub lazy_refcounts: Option<bool>,
    /// Width of a refcount in bits.
    pub refcount_bits: Option<u64>,
    /// Size of the disk in bytes, a multiple of 512.
    pub size: Option<u64>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// Whether it must read as the guest's disk.
    pub data_file_raw: Option<bool>,
    /// Name of the backing file: none but the one that it has.
    pub backing_file: Option<String>,
    /// Its format, likewise.
    pub backing_format: Option<String>,
}

/// A format whose images can be changed in this way. The keys of an encrypted image are changed by
/// [`KeySlotChanges`](super::driver::KeySlotChanges).
#[async_trait(?Send)]
pub trait Amend {
    /// Changes options. No request is in flight. The size changes first, and all others then as one: the image has
    /// the old or the new ones whenever the process dies, and shows the same disk and snapshots. They are durable
    /// on return. If there is a new size and the version goes up, that comes before the size, alone.
    ///
    /// After a change of anything but the size the node is read-only: what it knows of the image is out of date
    /// until it is opened again.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::block::Kind::InvalidArgument) and
    /// [`Kind::Unsupported`](crate::block::Kind::Unsupported) for what cannot be, before anything changes.
    async fn amend(&self, options: &AmendOptions) -> Result<()>;
}
