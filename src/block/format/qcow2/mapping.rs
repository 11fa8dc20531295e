//! From guest bytes to where they are: views, slots of L2 entries, extents.
//!
//! A *view* is an L1 table and the length of what it maps: the live disk is one, each internal snapshot
//! another. An *extent* is the longest run of bytes, from a guest byte on, that are in one place in the same
//! way; it never goes past its L2 slice, so that it is found without waiting once the slice is in memory.

use super::cache::Piece;
use super::driver::Qcow2;
use super::entries::{Compressed, L1Entry, L2Entry, L2Words, Malformed, OFFSET, Subcluster};
use super::extensions::be64;
use super::geometry::{ENTRY, Geometry, GuestOffset, HostOffset};
use crate::block::graph::Node;
use crate::block::{Error, Kind, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;

/// L1 entries are written in groups of this many.
pub(super) const L1_GROUP: usize = 64;

/// An L1 table and what it shows.
pub(super) struct View {
    pub(super) l1: RefCell<Vec<u64>>,
    pub(super) offset: Cell<HostOffset>,
    /// Size of its disk in bytes. What lies behind (from the next L2 table on) is VM state.
    pub(super) disk_size: Cell<u64>,
    /// Groups of L1 entries that are not yet on disk.
    pub(super) changed: RefCell<BTreeSet<usize>>,
}

impl View {
    /// Reads an L1 table of `entries` entries, whose size was checked.
    pub(super) async fn read(file: &Node, offset: HostOffset, entries: u32, disk_size: u64) -> Result<View> {
        let bytes = match entries {
            0 => Vec::new(),
            _ => file.read_bytes(offset.0, entries as usize * ENTRY as usize).await?,
        };
        let l1 = bytes.chunks_exact(ENTRY as usize).map(be64).collect();
        let (offset, disk_size) = (Cell::new(offset), Cell::new(disk_size));
        Ok(View { l1: RefCell::new(l1), offset, disk_size, changed: RefCell::default() })
    }

    /// The range of the file that the table takes.
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.offset.get().0;
        start..start + self.l1.borrow().len() as u64 * ENTRY
    }

    /// Calls `f` for each valid L2 table that it names.
    pub(super) fn each_table(&self, geometry: Geometry, mut f: impl FnMut(HostOffset)) {
        for &raw in self.l1.borrow().iter() {
            if let Ok(L1Entry::Table { offset, .. }) = L1Entry::decode(raw, geometry) {
                f(offset);
            }
        }
    }

    /// Sets an entry, in memory.
    pub(super) fn set(&self, index: usize, entry: L1Entry) {
        self.l1.borrow_mut()[index] = entry.encode();
        self.changed.borrow_mut().insert(index / L1_GROUP);
    }

    /// The groups that changed, with their place on disk; they count as clean from now on.
    pub(super) fn take_changed(&self) -> Vec<(HostOffset, Vec<u8>)> {
        let groups = std::mem::take(&mut *self.changed.borrow_mut());
        let l1 = self.l1.borrow();
        let bytes = |group: usize| {
            let entries = &l1[group * L1_GROUP..((group + 1) * L1_GROUP).min(l1.len())];
            entries.iter().flat_map(|raw| raw.to_be_bytes()).collect()
        };
        let offset = |group: usize| self.offset.get().add((group * L1_GROUP) as u64 * ENTRY);
        groups.iter().map(|&group| (offset(group), bytes(group))).collect()
    }

    /// Notes that all of the table must be written (again).
    pub(super) fn restore(&self) {
        let groups = self.l1.borrow().len().div_ceil(L1_GROUP);
        self.changed.borrow_mut().extend(0..groups);
    }
}

/// Where the L2 entry of a guest cluster is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// The L2 table.
    pub(super) table: HostOffset,
    /// It belongs to this L1 table alone.
    pub(super) copied: bool,
    /// The slice in the file.
    pub(super) slice: HostOffset,
    /// The entry's index in the slice.
    pub(super) index: usize,
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the backing file. `host` is kept for the first byte.
    Unallocated { host: Option<HostOffset> },
    /// Nowhere: zeros. `host` is kept for the first byte; `copied` as in the entry.
    Zero { host: Option<HostOffset>, copied: bool },
    /// In the file from `host` on.
    Data { host: HostOffset, copied: bool },
    /// Compressed, in this one cluster.
    Compressed(Compressed),
}

impl Place {
    /// Clears the copied flag if it does not count.
    fn disown(&mut self, shared: bool) {
        if let Place::Data { copied, .. } | Place::Zero { copied, .. } = self {
            *copied &= !shared;
        }
    }

    /// The place of the byte `bytes` further on, if it is in the same extent.
    fn after(self, bytes: u64) -> Option<Place> {
        let add = |host: Option<HostOffset>| host.map(|host| host.add(bytes));
        match self {
            Place::Unallocated { host } => Some(Place::Unallocated { host: add(host) }),
            Place::Zero { host, copied } => Some(Place::Zero { host: add(host), copied }),
            Place::Data { host, copied } => Some(Place::Data { host: host.add(bytes), copied }),
            Place::Compressed(_) => None,
        }
    }
}

/// A run of guest bytes that are in one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) place: Place,
    pub(super) len: u64,
}

impl Qcow2 {
    /// The extent of up to `len` bytes from `at` on.
    pub(super) async fn map(&self, view: &View, at: GuestOffset, len: u64) -> Result<Extent> {
        loop {
            if let Some(extent) = self.lookup(view, at, len)? {
                return Ok(extent);
            }
            if let Some(slot) = self.slot(view, at)? {
                self.drop_unused_if_due();
                self.l2.load(&self.file, slot.slice).await?;
            }
        }
    }

    /// As [`Qcow2::map`], if what it needs is in memory.
    pub(super) fn lookup(&self, view: &View, at: GuestOffset, len: u64) -> Result<Option<Extent>> {
        let Some(slot) = self.slot(view, at)? else {
            let reach = self.geometry.l2_reach();
            let place = Place::Unallocated { host: None };
            return Ok(Some(Extent { place, len: len.min(reach - at.0 % reach) }));
        };
        self.l2.peek(slot.slice, |slice| self.extent(slice, &slot, at, len)).transpose()
    }

    /// Where the L2 entry of a guest byte is; `None` if there is no L2 table.
    pub(super) fn slot(&self, view: &View, at: GuestOffset) -> Result<Option<Slot>> {
        let index = self.geometry.l1_index(at);
        let raw = view.l1.borrow().get(index).copied().unwrap_or(0);
        match L1Entry::decode(raw, self.geometry) {
            Ok(L1Entry::Unallocated) => Ok(None),
            Ok(L1Entry::Table { offset, copied }) => {
                let (start, entry) = self.slices.of(at);
                Ok(Some(Slot { table: offset, copied, slice: offset.add(start), index: entry }))
            }
            Err(what) => {
                let message = format!("L2 table offset {raw:#x} {what} (L1 index: {index:#x})");
                Err(Error::new(Kind::Corrupt, message))
            }
        }
    }

    /// Decodes the entry at `index` of a slice.
    pub(super) fn entry(&self, slice: &Piece, index: usize) -> Result<L2Entry> {
        self.decode_entry(slice, index).map_err(|what| {
            let message = format!("{what} (L2 slice offset: {:#x}, L2 index: {index:#x})", slice.offset().0);
            Error::new(Kind::Corrupt, message)
        })
    }

    fn decode_entry(&self, slice: &Piece, index: usize) -> std::result::Result<L2Entry, Malformed> {
        let range = self.entry_range(index);
        let words = slice.with(|bytes| L2Words::read(&bytes[range]));
        match self.has_data_file() {
            true => L2Entry::decode_external(words, self.geometry),
            false => L2Entry::decode(words, self.geometry, self.v3.get()),
        }
    }

    /// Sets the entry at `index` of a slice.
    pub(super) fn set_entry(&self, slice: &Piece, index: usize, entry: L2Entry) {
        let range = self.entry_range(index);
        self.l2.change(slice, |bytes| {
            entry.encode(self.geometry).write(&mut bytes[range.clone()]);
            range
        });
    }

    /// The bytes of the entry at `index` of a slice.
    fn entry_range(&self, index: usize) -> Range<usize> {
        let size = self.geometry.l2_entry() as usize;
        index * size..(index + 1) * size
    }

    /// Refuses a cluster of a data file that is not in its place.
    fn check_external(&self, entry: L2Entry, at: GuestOffset) -> Result<()> {
        match entry.host() {
            Some(host) if self.has_data_file() && host.0 != at.0 => {
                let message = format!(
                    "External data file host cluster offset {:#x} does not match guest cluster offset: {:#x}",
                    host.0, at.0
                );
                Err(Error::new(Kind::Corrupt, message))
            }
            _ => Ok(()),
        }
    }

    fn extent(&self, slice: &Piece, slot: &Slot, at: GuestOffset, len: u64) -> Result<Extent> {
        let first = self.entry(slice, slot.index)?;
        self.check_external(first, self.geometry.guest_start(at))?;
        let mut extent = self.extent_in(first, self.geometry.in_cluster(at.0));
        let steady = self.steady(slice, slot.index, first, len.saturating_sub(extent.len));
        extent.len += steady << self.geometry.cluster_bits;
        for index in slot.index + 1 + steady as usize..self.slices.entries() {
            if extent.len >= len || !self.geometry.is_aligned(at.0 + extent.len) {
                break;
            }
            // One that is not valid says so when it is its turn.
            let Ok(entry) = self.decode_entry(slice, index) else { break };
            let next = self.extent_in(entry, 0);
            if extent.place.after(extent.len) != Some(next.place) {
                break;
            }
            extent.len += next.len;
        }
        extent.len = extent.len.min(len);
        // What a shared table names is shared, whatever its flag says.
        extent.place.disown(!slot.copied);
        Ok(extent)
    }

    /// How many entries behind that at `index`, which is `first`, go on as it does word for word: nothing each, or each
    /// the next cluster. No more than `len` bytes need.
    fn steady(&self, slice: &Piece, index: usize, first: L2Entry, len: u64) -> u64 {
        let step = match first {
            _ if self.geometry.extended_l2 => return 0,
            L2Entry::Data { .. } => self.geometry.cluster_size(),
            L2Entry::Unallocated | L2Entry::Zero { host: None, .. } => 0,
            _ => return 0,
        };
        let most = len.div_ceil(self.geometry.cluster_size()) as usize;
        slice.with(|bytes| {
            let raw = be64(&bytes[self.entry_range(index)]);
            let next = bytes[self.entry_range(index).end..].chunks_exact(ENTRY as usize).take(most);
            let wanted = (1..).map(|count| raw.wrapping_add(count * step));
            // Where offsets run over, what is beside them changes.
            let same = |&(next, wanted): &(u64, u64)| next == wanted && (next ^ raw) & !OFFSET == 0;
            next.map(be64).zip(wanted).take_while(same).count() as u64
        })
    }

    /// The extent from byte `skip` of a cluster on, within it.
    fn extent_in(&self, entry: L2Entry, skip: u64) -> Extent {
        let add = |host: Option<HostOffset>| host.map(|host| host.add(skip));
        let mut end = self.geometry.cluster_size();
        let place = match entry {
            L2Entry::Unallocated => Place::Unallocated { host: None },
            L2Entry::Zero { host, copied } => Place::Zero { host: add(host), copied },
            L2Entry::Data { host, copied } => Place::Data { host: host.add(skip), copied },
            L2Entry::Compressed(at) => Place::Compressed(at),
            L2Entry::Mixed { host, copied, .. } => {
                let state;
                (state, end) = entry.run(skip, self.geometry);
                match (state, host) {
                    (Subcluster::Data, Some(host)) => Place::Data { host: host.add(skip), copied },
                    (Subcluster::Zero, host) => Place::Zero { host: add(host), copied },
                    (_, host) => Place::Unallocated { host: add(host) },
                }
            }
        };
        Extent { place, len: end - skip }
    }
}
