//! What a device tells its driver, from any thread: status, interrupts, and that its configuration changed.

use crate::devices::interrupts::MsiVector;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

/// No interrupt is wanted (virtio 1.2, 4.1.5.1.2.1).
pub const NO_VECTOR: u16 = 0xffff;

/// Device status: the driver is ready.
pub const DRIVER_OK: u8 = 4;
/// Device status: the device has given up, only a reset helps.
pub const NEEDS_RESET: u8 = 0x40;

/// Interrupt status: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// Interrupt status: the configuration or the device status changed.
const ISR_CONFIG: u8 = 2;

/// A link in a VM state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverLinkV1 {
    status: u8,
    isr: u8,
    generation: u8,
    /// Of configuration changes, then of each queue.
    vectors: Vec<u16>,
}

impl DriverLinkV1 {
    /// The device status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

/// The way from a device to its driver.
pub struct DriverLink {
    vectors: Arc<[MsiVector]>,
    /// The vector of configuration changes, then that of each queue.
    assigned: Vec<AtomicU16>,
    status: AtomicU8,
    isr: AtomicU8,
    generation: AtomicU8,
}

impl DriverLink {
    /// The link of a device with `queues` queues that may raise `vectors`.
    pub fn new(vectors: Arc<[MsiVector]>, queues: usize) -> DriverLink {
        DriverLink {
            vectors,
            assigned: (0..=queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            status: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        }
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Adds bits to the device status.
    pub fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// Counts the changes of the configuration.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// The interrupt status, which reading clears.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Says that queue `index` has used buffers.
    pub fn queue_used(&self, index: u16) {
        self.raise(ISR_QUEUE, usize::from(index) + 1);
    }

    /// Says that the configuration changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status() & DRIVER_OK != 0 {
            self.raise(ISR_CONFIG, 0);
        }
    }

    /// Says that the driver has broken the rules and must reset the device (virtio 1.2, 2.1.2).
    pub fn break_device(&self) {
        let before = self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        if before & (NEEDS_RESET | DRIVER_OK) == DRIVER_OK {
            self.raise(ISR_CONFIG, 0);
        }
    }

    /// The vector of configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.vector(0)
    }

    /// The vector of queue `index`.
    pub fn queue_vector(&self, index: u16) -> u16 {
        self.vector(usize::from(index) + 1)
    }

    /// Sets the vector of configuration changes; one that does not exist becomes [`NO_VECTOR`].
    pub fn set_config_vector(&self, vector: u16) {
        self.assign(0, vector);
    }

    /// Sets the vector of queue `index`.
    pub fn set_queue_vector(&self, index: u16, vector: u16) {
        self.assign(usize::from(index) + 1, vector);
    }

    /// What of it is state: device status, interrupt status, generation, vectors.
    pub fn save(&self) -> DriverLinkV1 {
        DriverLinkV1 {
            status: self.status(),
            isr: self.isr.load(Ordering::Acquire),
            generation: self.generation(),
            vectors: self.assigned.iter().map(|vector| vector.load(Ordering::Acquire)).collect(),
        }
    }

    /// Whether a device could be in this state.
    pub fn accepts(&self, state: &DriverLinkV1) -> bool {
        state.vectors.len() == self.assigned.len()
    }

    /// Takes up a state that it [accepts](DriverLink::accepts).
    pub fn load(&self, state: &DriverLinkV1) {
        self.status.store(state.status, Ordering::Release);
        self.isr.store(state.isr, Ordering::Release);
        self.generation.store(state.generation, Ordering::Release);
        state.vectors.iter().enumerate().for_each(|(source, &vector)| self.assign(source, vector));
    }

    /// As after power-on.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.generation.store(0, Ordering::Release);
        self.assigned.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
    }

    fn vector(&self, source: usize) -> u16 {
        self.assigned.get(source).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    fn assign(&self, source: usize, vector: u16) {
        let vector = if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR };
        if let Some(slot) = self.assigned.get(source) {
            slot.store(vector, Ordering::Release);
        }
    }

    fn raise(&self, isr: u8, source: usize) {
        self.isr.fetch_or(isr, Ordering::AcqRel);
        if let Some(vector) = self.vectors.get(usize::from(self.vector(source))) {
            vector.trigger();
        }
    }
}
