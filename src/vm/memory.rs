//! The guest's RAM: anonymous host memory behind the ranges of the [`Layout`].

use crate::block::Iov;
use crate::vm::layout::Layout;
use crate::vm::{Error, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// The guest's RAM, as everything that touches it holds it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Maps RAM for `layout`. Pages cost nothing until the guest touches them.
///
/// # Errors
/// When the host has no room for it.
pub fn allocate(layout: &Layout) -> Result<Arc<GuestMemory>> {
    let mut ranges = Vec::new();
    for (start, len) in layout.ram() {
        let len = usize::try_from(len).map_err(|_| no_room("too large"))?;
        ranges.push((GuestAddress(start), len));
    }
    map(&ranges)
}

/// Memory that is no guest's, of `len` bytes.
///
/// # Errors
/// When the host has no room for it.
pub fn scratch(len: usize) -> Result<Arc<GuestMemory>> {
    map(&[(GuestAddress(0), len)])
}

fn map(ranges: &[(GuestAddress, usize)]) -> Result<Arc<GuestMemory>> {
    let memory = GuestMemory::from_ranges(ranges).map_err(|error| no_room(&error.to_string()))?;
    memory.iter().for_each(use_large_pages);
    Ok(Arc::new(memory))
}

fn no_room(why: &str) -> Error {
    Error::new(format!("cannot map the guest's memory: {why}")).remedy("give the guest less with -m")
}

/// Spares the guest's page walks half their steps. The host may have other plans: no matter.
fn use_large_pages(region: &GuestRegionMmap) {
    let (start, len) = (MmapRegion::as_ptr(region), region.len() as usize);
    // SAFETY: the range is the region's own mapping; the advice changes no contents.
    unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
}

/// Bytes of RAM.
pub fn size(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// A range of RAM, counted without the holes of the address map; none where it is not inside one region.
pub fn iov(memory: &Arc<GuestMemory>, range: Range<u64>) -> Option<Iov> {
    let mut start = 0;
    for region in memory.iter() {
        let end = start + region.len();
        if (start..end).contains(&range.start) && range.end <= end {
            let base = MmapRegion::as_ptr(region).wrapping_add((range.start - start) as usize);
            let part = (base, (range.end - range.start) as usize);
            // SAFETY: the range lies inside the region's mapping, which lives as long as the owner; nobody makes
            // Rust references into RAM.
            return Some(unsafe { Iov::new([part], Rc::new(memory.clone())) });
        }
        start = end;
    }
    None
}

/// Makes all of RAM zeros, and gives its pages back to the host. Nobody may be using it.
///
/// # Errors
/// What the host says.
pub fn clear(memory: &GuestMemory) -> io::Result<()> {
    memory.iter().try_for_each(|region| {
        let (start, len) = (MmapRegion::as_ptr(region), region.len() as usize);
        // SAFETY: the range is the region's own mapping, private and anonymous: it stays, and reads as zeros.
        match unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// Shows `memory` to the guest of `vm`.
///
/// # Errors
/// What KVM says.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region_info = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: MmapRegion::as_ptr(region) as u64,
        };
        // SAFETY: the range is a mapping of its own that lives as long as `memory`, which the machine keeps
        // for as long as the virtual machine exists.
        unsafe { vm.set_user_memory_region(region_info) }
            .map_err(|error| Error::kvm("take the guest's memory", error))?;
    }
    Ok(())
}
