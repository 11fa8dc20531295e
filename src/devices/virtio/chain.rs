//! A chain of descriptors, as scatter-gather lists over guest memory.
//!
//! ```text
//!   descriptors   r r r w w     (readable first, then writable: virtio 1.2, 2.7.4.2)
//!   Chain         readable ▒▒▒  writable ▒▒
//! ```

use super::ring::Broken;
use crate::block::Iov;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::rc::Rc;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Most descriptors of a chain, in an indirect table or not.
pub const MAX_DESCRIPTORS: usize = 256;
/// Most bytes of a buffer that drivers are told of, and of all buffers of a chain: whoever stops a device waits for all
/// that is in flight.
pub const MAX_BUFFER: u32 = 1 << 20;
const MAX_CHAIN: u64 = MAX_DESCRIPTORS as u64 * MAX_BUFFER as u64;

/// What came off a ring.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are chains, and a box would cost each an allocation"
)]
pub enum Popped {
    /// A chain of buffers in memory.
    Chain(Chain),
    /// A chain with a buffer outside memory, with its buffers in the wrong order, or with too many bytes.
    Faulty {
        /// Its first descriptor.
        head: u16,
        /// Its last buffer that the device may write, as far as there is one and it is in memory.
        last: Iov,
    },
}

/// A chain of buffers.
pub struct Chain {
    /// The index of its first descriptor, which names it in the used ring.
    pub head: u16,
    /// What the device reads.
    pub readable: Iov,
    /// What it may write.
    pub writable: Iov,
    descriptors: Descriptors,
}

type Descriptors = SmallVec<[Descriptor; 8]>;

/// A chain that was taken from a ring and is to be served again, apart from any thread.
#[derive(Clone, Debug)]
pub struct Held {
    head: u16,
    descriptors: Descriptors,
}

/// The same in a VM state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldV1 {
    head: u16,
    /// Address, length, flags of each buffer.
    buffers: Vec<(u64, u32, u16)>,
}

impl HeldV1 {
    /// Whether a chain can have so many buffers; where they are is checked when it is served.
    pub fn is_possible(&self) -> bool {
        self.buffers.len() <= MAX_DESCRIPTORS
    }

    /// The chain.
    pub fn load(&self) -> Held {
        let buffers = self.buffers.iter();
        let descriptors = buffers.map(|&(addr, len, flags)| Descriptor::new(addr, len, flags, 0)).collect();
        Held { head: self.head, descriptors }
    }
}

impl Chain {
    /// Puts the chain by.
    pub fn hold(self) -> Held {
        Held { head: self.head, descriptors: self.descriptors }
    }
}

impl Held {
    /// For a VM state.
    pub fn save(&self) -> HeldV1 {
        let buffer = |d: &Descriptor| (d.addr().0, d.len(), d.flags());
        HeldV1 { head: self.head, buffers: self.descriptors.iter().map(buffer).collect() }
    }

    /// The chain again.
    pub fn map(self, memory: &Rc<GuestMemoryMmap>) -> Popped {
        map_buffers(self.head, self.descriptors, memory)
    }
}

/// A range of host memory.
type Part = (*mut u8, usize);

/// Maps the buffers of a chain.
///
/// # Errors
/// When the chain is broken: it loops, is too long, or leaves the descriptor table.
pub(super) fn map(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &Rc<GuestMemoryMmap>,
) -> Result<Popped, Broken> {
    let head = chain.head_index();
    let descriptors: Descriptors = chain.take(MAX_DESCRIPTORS + 1).collect();
    // The iterator stops silently where it cannot follow a chain.
    let ended = descriptors.last().is_some_and(|last| !last.has_next());
    if !ended || descriptors.len() > MAX_DESCRIPTORS {
        return Err(Broken);
    }
    Ok(map_buffers(head, descriptors, memory))
}

fn map_buffers(head: u16, descriptors: Descriptors, memory: &Rc<GuestMemoryMmap>) -> Popped {
    let split = descriptors.iter().position(|d| d.is_write_only()).unwrap_or(descriptors.len());
    let (readable, writable) = descriptors.split_at(split);
    let in_order = writable.iter().all(|d| d.is_write_only());
    let is_short = descriptors.iter().map(|d| u64::from(d.len())).sum::<u64>() <= MAX_CHAIN;
    match (in_order && is_short, buffers(readable, memory), buffers(writable, memory)) {
        (true, Some(readable), Some(writable)) => {
            Popped::Chain(Chain { head, readable, writable, descriptors })
        }
        _ => Popped::Faulty { head, last: last_writable(&descriptors, memory) },
    }
}

fn last_writable(descriptors: &[Descriptor], memory: &Rc<GuestMemoryMmap>) -> Iov {
    let last = descriptors.iter().rfind(|d| d.is_write_only() && d.len() > 0);
    last.and_then(|last| buffers(&[*last], memory)).unwrap_or_else(|| iov(SmallVec::new(), memory))
}

/// The memory of some descriptors; `None` if any of it does not exist.
fn buffers(descriptors: &[Descriptor], memory: &Rc<GuestMemoryMmap>) -> Option<Iov> {
    let mut parts = SmallVec::<[Part; 8]>::new();
    for descriptor in descriptors.iter().filter(|descriptor| descriptor.len() > 0) {
        host_parts(memory, descriptor.addr(), descriptor.len() as usize, &mut parts)?;
    }
    Some(iov(parts, memory))
}

fn host_parts(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    len: usize,
    parts: &mut SmallVec<[Part; 8]>,
) -> Option<()> {
    for slice in memory.get_slices(addr, len, Permissions::ReadWrite).ok()? {
        let slice = slice.ok()?;
        parts.push((slice.ptr_guard_mut().as_ptr(), slice.len()));
    }
    Some(())
}

fn iov(parts: SmallVec<[Part; 8]>, memory: &Rc<GuestMemoryMmap>) -> Iov {
    // SAFETY: the ranges come from `get_slices`, so they lie in the regions of guest memory, which stay mapped
    // while a clone of `memory` lives. Nobody makes Rust references into guest memory.
    unsafe { Iov::new(parts, memory.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_with_more_bytes_than_a_driver_may_ask_for_is_faulty() {
        let memory = Rc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap());
        // All buffers are the same memory.
        let chain = |buffers| {
            let state = HeldV1 { head: 3, buffers: vec![(0, 2 << 20, 2); buffers] };
            state.load().map(&memory)
        };
        let Popped::Chain(most) = chain(128) else { panic!("refused") };
        assert_eq!(most.writable.len() as u64, MAX_CHAIN);
        let Popped::Faulty { head, last } = chain(129) else { panic!("taken") };
        assert_eq!((head, last.len()), (3, 2 << 20));
    }
}
