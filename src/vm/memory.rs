//! The guest's RAM: anonymous host memory behind the ranges of the [`Layout`].

use crate::block::Iov;
use crate::vm::layout::Layout;
use crate::vm::{Error, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::io;
use std::ops::Range;
use std::ptr;
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

/// Maps as much RAM again, at the same places of the guest's address map.
///
/// # Errors
/// When the host has no room for it.
pub fn allocate_like(memory: &GuestMemory) -> Result<Arc<GuestMemory>> {
    let ranges: Vec<_> = memory.iter().map(|region| (region.start_addr(), region.len() as usize)).collect();
    map(&ranges)
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

/// Exchanges the contents of two sets of RAM of one shape, by their page tables. Nobody may be using either.
///
/// # Errors
/// What the host says; both are what they were then.
pub fn exchange(one: &GuestMemory, other: &GuestMemory) -> io::Result<()> {
    let pairs: Vec<_> = one.iter().zip(other.iter()).collect();
    for (done, (a, b)) in pairs.iter().enumerate() {
        if let Err(error) = exchange_region(a, b) {
            // It worked once, so it does back.
            pairs[..done].iter().try_for_each(|(a, b)| exchange_region(a, b))?;
            return Err(error);
        }
    }
    Ok(())
}

fn exchange_region(one: &GuestRegionMmap, other: &GuestRegionMmap) -> io::Result<()> {
    let (a, b, len) = (MmapRegion::as_ptr(one), MmapRegion::as_ptr(other), one.len() as usize);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let aside = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    if aside == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let aside = aside.cast();
    let moved = move_pages(a, aside, len).and_then(|()| {
        move_pages(b, a, len).inspect_err(|_| {
            // Back to where they came from.
            let _ = move_pages(aside, a, len);
        })
    });
    let moved = moved.and_then(|()| move_pages(aside, b, len));
    // SAFETY: the mapping was made above; nothing points into it.
    unsafe { libc::munmap(aside.cast(), len) };
    moved
}

/// Moves what is mapped at `from` to `to`, over what is there. `from` stays mapped, and is empty.
fn move_pages(from: *mut u8, to: *mut u8, len: usize) -> io::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: both ranges are private anonymous mappings of ours that nobody uses meanwhile, and both stay mapped, so
    // no other thread's mapping can come between.
    let moved = unsafe { libc::mremap(from.cast(), len, len, flags, to) };
    if moved == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
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
