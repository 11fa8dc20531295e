//! What a format or protocol driver must be able to do.
//!
//! A driver sees only requests that the pipeline ([`super::io`]) has already checked: inside
//! `[0, size)` (writes to a growable node may end beyond), aligned to [`Limits::request_alignment`], reads and
//! writes no longer than [`Limits::max_transfer`], never empty.

use crate::block::aio::BulkFile;
use crate::block::crypto::hash::Hash;
use crate::block::crypto::luks::Header;
use crate::block::encryption::SlotChange;
use crate::block::graph::amend::Amend;
use crate::block::graph::bitmaps::{BitmapInfo, Bitmaps};
use crate::block::graph::filling::Filling;
use crate::block::graph::overlay::Overlay;
use crate::block::graph::snapshots::{Snapshots, VmState};
use crate::block::graph::{Connection, Event, Node};
use crate::block::options::Preallocation;
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// The edge from a node to the one below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildRole {
    /// Where the format's bytes are.
    File,
    /// Where the guest's data is, if not there.
    Data,
    /// What unallocated clusters read as.
    Backing,
}

/// What requests a driver can take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Offsets and lengths are multiples of this many bytes (a power of two).
    pub request_alignment: u32,
    /// Addresses of memory are multiples of this many bytes (a power of two); 1 where any will do.
    pub memory_alignment: u32,
    /// Longest read or write, in bytes; a multiple of `request_alignment`.
    pub max_transfer: u32,
    /// Writes past the end make the node larger (host files).
    pub growable: bool,
}

impl Limits {
    /// Any request inside of the node, of up to 1 GiB.
    pub const ANY: Limits =
        Limits { request_alignment: 1, memory_alignment: 1, max_transfer: 1 << 30, growable: false };
}

/// The clusters that a format maps the disk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clusters {
    /// Bytes of a cluster: what is best read and written as a whole.
    pub size: u64,
    /// Bytes that are allocated at once: a cluster, or a part of one.
    pub allocated: u64,
    /// They can be stored compressed.
    pub compressed: bool,
}

/// What the first bytes of a range are, in one layer.
#[derive(Clone)]
pub struct BlockStatus {
    /// How many bytes, from the start of the range, this speaks of (never 0).
    pub len: u64,
    /// This layer decides the content; otherwise the backing file does.
    pub allocated: bool,
    /// Space is in use for it and reading it fetches bytes.
    pub data: bool,
    /// It reads as zeros.
    pub zero: bool,
    /// It is stored compressed.
    pub compressed: bool,
    /// Where the bytes are: the node below and the offset in it, when they stand there as they are.
    pub mapped: Option<(Rc<Node>, u64)>,
    /// What the node below says of the mapped range counts too: data (raw), zeros (raw; an image whose
    /// clusters were allocated before anything was written to them).
    pub recurse: bool,
}

impl BlockStatus {
    /// Bytes that this layer has, and that stand nowhere below as they are.
    pub fn of_data(len: u64) -> BlockStatus {
        BlockStatus {
            len,
            allocated: true,
            data: true,
            zero: false,
            compressed: false,
            mapped: None,
            recurse: false,
        }
    }

    /// A range that is what it is in the node below.
    pub fn of_file(file: &Rc<Node>, offset: u64, len: u64) -> BlockStatus {
        BlockStatus {
            len,
            allocated: true,
            // The file below knows.
            data: false,
            zero: false,
            compressed: false,
            mapped: Some((file.clone(), offset)),
            recurse: true,
        }
    }
}

/// A part of a host file.
pub struct Place {
    /// The file.
    pub file: BulkFile,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How many bytes it has (never 0).
    pub len: u64,
}

/// A format or protocol driver: one instance a node.
#[async_trait(?Send)]
pub trait Driver {
    /// The name users give it: "qcow2", "raw", "file".
    fn format_name(&self) -> &'static str;

    /// Size of the disk that this node shows, in bytes.
    fn size(&self) -> u64;

    /// The nodes below.
    fn children(&self) -> Vec<(ChildRole, Rc<Node>)>;

    /// What requests it takes.
    fn limits(&self) -> Limits;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Reads `into.len()` bytes.
    async fn read(&self, offset: u64, into: &Iov) -> Result<()>;

    /// Writes `from.len()` bytes.
    async fn write(&self, offset: u64, from: &Iov) -> Result<()>;

    /// Writes whole clusters compressed: `offset` starts one, and the range ends where one does or the disk.
    /// What does not become smaller is written as it is. Many of these at once keep all processors busy.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the format has no compression, [`Kind::InvalidArgument`] for parts of clusters.
    async fn write_compressed(&self, _offset: u64, _from: &Iov) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "Compression not supported for this file format"))
    }

    /// Makes a range read as zeros; the space is given back if `may_unmap` and the driver can. A driver that
    /// has no cheap way answers [`Kind::Unsupported`], and the pipeline writes zeros.
    async fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "there are no cheap zeros"))
    }

    /// Tells that the content of a range is no longer needed. What it reads as afterwards is the driver's
    /// choice, but never bytes of another place. A driver that can do nothing with it answers [`Kind::Unsupported`],
    /// and the pipeline leaves all as it is.
    async fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "there is nothing to give back"))
    }

    /// Makes all completed writes durable.
    async fn flush(&self) -> Result<()>;

    /// Has the host begin with what a flush would wait for. A hint: nothing is durable, or in any order, after it.
    async fn begin_flush(&self) {}

    /// What the first bytes of a range are, in this layer only. `len` bounds how far it looks.
    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus>;

    /// Changes the size. No request is in flight on this node.
    async fn truncate(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(Error::new(Kind::Unsupported, format!("{} images cannot be resized", self.format_name())))
    }

    /// Whether what this node is on shows the same disk when it is opened anew.
    fn reopens_as_it_is(&self) -> bool {
        true
    }

    /// Writes back what is cached, before the node goes away. Called once, when no request is in flight.
    async fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Gives up the locks on its files, or takes them again: while an image is opened a second time, to take the place
    /// of this node. Backing files keep theirs.
    ///
    /// # Errors
    /// [`Kind::Locked`] where another process came in between.
    fn set_locked(&self, locked: bool) -> Result<()> {
        let children = self.children().into_iter().filter(|(role, _)| *role != ChildRole::Backing);
        children.into_iter().try_for_each(|(_, node)| node.driver().set_locked(locked))
    }

    /// The driver above is about to do this: `blkdebug` makes requests fail by it. Filters pass it on.
    fn debug_event(&self, _event: Event) {}

    /// The device of the host whose bytes the node shows as they are; none for files, and behind a format.
    fn device(&self) -> Option<DeviceFacts> {
        None
    }

    /// The host file whose bytes the node shows as they are, for reading much of it on other threads; none where
    /// reads must pass the driver.
    fn bulk_file(&self) -> Option<BulkFile> {
        None
    }

    /// Where the first bytes of a range stand as they are, for the pages that the host has cached there to be lent;
    /// `None` where they must be read, or nobody knows without waiting. Bytes of no other range are written to these
    /// pages from now on: the place becomes that of others only when they have left the page cache
    /// ([`take_back`](crate::block::aio::take_back)).
    fn lasting_place(&self, _offset: u64, _len: u64) -> Option<Place> {
        None
    }

    /// Bytes up to `end` are written through [`Driver::bulk_file`], or may be from now on.
    fn written_elsewhere(&self, _end: u64) {}

    /// The clusters of the disk, where it has some: it is no run of bytes of a file then.
    fn clusters(&self) -> Option<Clusters> {
        None
    }

    /// How to fill the disk from several threads, where that can be done now.
    fn filling(&self) -> Option<&dyn Filling> {
        None
    }

    /// Space taken on the host, in bytes, where the driver knows.
    fn allocated_size(&self) -> Option<u64> {
        None
    }

    /// Whether the storage is there, where it can go away.
    fn connection(&self) -> Option<Connection> {
        None
    }

    /// What only this format has to say of an image, for `info`.
    fn specifics(&self) -> Option<Specifics> {
        None
    }

    /// Internal snapshots, where the format has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Storage for VM state, where the format has it.
    fn vm_state(&self) -> Option<&dyn VmState> {
        None
    }

    /// Its key slots, where the format can have some.
    fn key_slots(&self) -> Option<&dyn KeySlotChanges> {
        None
    }

    /// Persistent dirty bitmaps, where the format stores them.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }

    /// Changes of its place in a chain, where the format has backing files.
    fn overlay(&self) -> Option<&dyn Overlay> {
        None
    }

    /// Changes of options, where the format has them.
    fn amender(&self) -> Option<&dyn Amend> {
        None
    }

    /// The consistency check, where the format has one.
    fn checker(&self) -> Option<&dyn Check> {
        None
    }
}

/// A block device of the host.
#[derive(Clone)]
pub struct DeviceFacts {
    /// Bytes of the least request: a power of two from 512 on.
    pub logical_block_size: u32,
    /// Bytes that the device writes at once: a power of two, no less than a logical block.
    pub physical_block_size: u32,
    /// Where its medium is in, if that can be taken out.
    pub tray: Option<Arc<dyn HostTray>>,
}

/// A drive of the host whose medium can be taken out. Its methods may block for seconds.
pub trait HostTray: Send + Sync {
    /// What is in it now.
    fn look(&self) -> Look;

    /// Unlocks the door and opens it.
    ///
    /// # Errors
    /// What the drive says.
    fn open(&self) -> io::Result<()>;
}

/// What a look at a drive of the host has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// There is a medium that can be read.
    pub medium: bool,
    /// The door is open.
    pub open: bool,
    /// It may be another medium than at the last look.
    pub changed: bool,
}

/// A format that can be checked for consistency.
#[async_trait(?Send)]
pub trait Check {
    /// Reads all metadata and reports; changes nothing.
    ///
    /// # Errors
    /// When there is nothing to report: the check could not begin.
    async fn check(&self) -> Result<CheckReport>;

    /// As [`Check::check`], and repairs. No request is in flight. The report counts what is still wrong apart from
    /// what was repaired; another check tells whether the image is sound now.
    ///
    /// # Errors
    /// As [`Check::check`], and [`Kind::ReadOnly`].
    async fn repair(&self, what: Repair) -> Result<CheckReport>;
}

/// What a repair may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Clusters that nobody uses are freed.
    Leaks,
    /// Everything, also where what is right must be guessed.
    All,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Things that are wrong and can cost data.
    pub corruptions: u64,
    /// Clusters that nobody uses and nobody can allocate.
    pub leaks: u64,
    /// Parts that could not be checked (read errors).
    pub check_errors: u64,
    /// Clusters of the guest's disk.
    pub total_clusters: u64,
    /// Of these, the ones with data.
    pub allocated_clusters: u64,
    /// Of these, the ones that do not follow their predecessor in the file.
    pub fragmented_clusters: u64,
    /// Of these, the compressed ones.
    pub compressed_clusters: u64,
    /// End of the last cluster in use, in bytes.
    pub image_end_offset: u64,
    /// Corruptions that were repaired; they are not counted in `corruptions`.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// One line a finding, in qemu-img's words ("Leaked cluster 5 refcount=1 reference=0").
    pub messages: Vec<String>,
    /// Why the check ended before all was seen; the counts mean nothing then.
    pub gave_up: Option<Error>,
}

/// A format whose images can be unlocked by several passphrases.
#[async_trait(?Send)]
pub trait KeySlotChanges {
    /// Whether this image has key slots.
    ///
    /// # Errors
    /// Why it has none.
    fn check_key_slots(&self) -> Result<()>;

    /// Fills or erases key slots. `force` also overwrites a slot in use and erases the last one: then the data is
    /// lost.
    async fn change_key_slots(&self, change: &SlotChange, force: bool) -> Result<()>;
}

/// What only one format has to say of an image.
#[derive(Clone, Debug)]
pub enum Specifics {
    /// Of a LUKS volume.
    Luks(LuksFacts),
    /// Of a host file: nothing yet.
    File,
    /// Of a qcow2 image.
    Qcow2(Qcow2Specifics),
}

/// Header fields of a qcow2 image and its internal snapshots.
#[derive(Clone, Debug)]
pub struct Qcow2Specifics {
    /// "0.10" or "1.1".
    pub compat: &'static str,
    /// "zlib" or "zstd".
    pub compression_type: &'static str,
    /// Refcounts may lag behind (compatible bit 0).
    pub lazy_refcounts: bool,
    /// Width of a refcount entry.
    pub refcount_bits: u32,
    /// The corrupt bit (incompatible bit 1).
    pub corrupt: bool,
    /// The dirty bit (incompatible bit 0).
    pub dirty: bool,
    /// Subclusters (incompatible bit 4).
    pub extended_l2: bool,
    /// The external data file's name as written in the header.
    pub data_file: Option<String>,
    /// There is one (incompatible bit 2), and whether it is a valid raw image (autoclear bit 1).
    pub data_file_raw: Option<bool>,
    /// Cluster size in bytes.
    pub cluster_size: u64,
    /// How data is encrypted, if it is.
    pub encryption: Option<EncryptionFacts>,
    /// The backing file's name as written in the header.
    pub backing_file: Option<String>,
    /// The backing file's format as written in the header extension.
    pub backing_format: Option<String>,
    /// Persistent bitmaps, in the order of the directory; none where autoclear bit 0 is clear.
    pub bitmaps: Vec<BitmapInfo>,
    /// Internal snapshots, in the order of the snapshot table.
    pub snapshots: Vec<SnapshotInfo>,
}

/// How the data of a qcow2 image is encrypted.
#[derive(Clone, Debug)]
pub enum EncryptionFacts {
    /// AES-128-CBC under the passphrase itself.
    Aes,
    /// As a LUKS header says.
    Luks(LuksFacts),
}

/// What a LUKS header says.
#[derive(Clone, Debug)]
pub struct LuksFacts {
    /// "aes-256" and its like.
    pub cipher: &'static str,
    /// "xts" and its like.
    pub mode: &'static str,
    /// Generator of initialisation vectors: "plain64", "essiv".
    pub iv: &'static str,
    /// Its hash, where it has one.
    pub iv_hash: Option<&'static str>,
    /// Hash of key derivation.
    pub hash: &'static str,
    /// The volume's UUID.
    pub uuid: String,
    /// Where the payload begins, in bytes from the start of the header.
    pub payload_offset: u64,
    /// Iterations of the master key's digest.
    pub digest_iterations: u32,
    /// For each key slot: where its stripes are, in bytes from the start of the header, and, if it is active, how
    /// many iterations it takes.
    pub slots: Vec<(u64, Option<u32>)>,
}

impl LuksFacts {
    /// What `header` says.
    pub fn of(header: &Header) -> LuksFacts {
        let scheme = header.scheme;
        LuksFacts {
            cipher: scheme.cipher.name(),
            mode: scheme.mode.name(),
            iv: scheme.iv.name(),
            iv_hash: scheme.iv.hash().map(Hash::name),
            hash: header.hash.name(),
            uuid: header.uuid.clone(),
            payload_offset: header.payload,
            digest_iterations: header.digest_iterations,
            slots: header
                .slots
                .iter()
                .map(|slot| (slot.offset, slot.active.then_some(slot.iterations)))
                .collect(),
        }
    }
}

/// One entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Unique ID, a decimal number by convention.
    pub id: String,
    /// Name.
    pub name: String,
    /// Size of the VM state in bytes.
    pub vm_state_size: u64,
    /// Wall-clock time of creation: seconds and nanoseconds since the epoch.
    pub date: (u32, u32),
    /// Guest run time, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instruction count; `None` where the guest ran without one.
    pub icount: Option<u64>,
}
