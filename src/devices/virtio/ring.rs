//! A split virtqueue (virtio 1.2, 2.7) whose rings have been checked: aligned and inside guest memory.
//!
//! An error of any function means that the driver broke the protocol of the rings: the queue cannot go on.

use super::chain::{self, Popped};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Flag of the available ring: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;

/// The driver broke the protocol of the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The driver's settings of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingSetup {
    /// Entries, a power of two.
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Of the available ring (the "driver area").
    pub available: u64,
    /// Of the used ring (the "device area").
    pub used: u64,
}

/// The rings of a queue, and how far the device has come in them.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
}

impl Ring {
    /// The rings that the driver set up; `None` if they are misaligned or not in memory.
    pub fn new(setup: RingSetup, memory: &GuestMemoryMmap) -> Option<Ring> {
        let mut queue = Queue::new(setup.size).ok()?;
        queue.try_set_desc_table_address(GuestAddress(setup.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(setup.available)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(setup.used)).ok()?;
        queue.set_ready(true);
        let somewhere = setup.available != 0;
        (somewhere && queue.is_valid(memory)).then_some(Ring { queue })
    }

    /// How far the device has come: the next entries of the available and of the used ring.
    pub fn progress(&self) -> (u16, u16) {
        (self.queue.next_avail(), self.queue.next_used())
    }

    /// Goes on from where another has come to.
    pub fn set_progress(&mut self, (available, used): (u16, u16)) {
        self.queue.set_next_avail(available);
        self.queue.set_next_used(used);
    }

    /// Uses the event index (feature EVENT_IDX).
    pub fn set_event_idx(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain of buffers that the driver has made available.
    pub fn pop(&mut self, memory: &Rc<GuestMemoryMmap>) -> Result<Option<Popped>, Broken> {
        let chain = self.queue.iter(&**memory).map_err(|_| Broken)?.next();
        chain.map(|chain| chain::map(chain, memory)).transpose()
    }

    /// Gives a chain back, with the number of bytes written into it.
    pub fn push_used(&mut self, memory: &GuestMemoryMmap, head: u16, written: u32) -> Result<(), Broken> {
        self.queue.add_used(memory, head, written).map_err(|_| Broken)
    }

    /// Asks the driver not to kick.
    pub fn suppress_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        self.queue.disable_notification(memory).map_err(|_| Broken)
    }

    /// Asks for kicks again; true if something was added in between.
    pub fn allow_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        self.queue.enable_notification(memory).map_err(|_| Broken)
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call.
    pub fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        // The crate's answer has a full barrier in it and leaves the flag to us.
        let wanted = self.queue.needs_notification(memory).map_err(|_| Broken)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags = memory.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        Ok(u16::from_le(flags.map_err(|_| Broken)?) & NO_INTERRUPT == 0)
    }
}
