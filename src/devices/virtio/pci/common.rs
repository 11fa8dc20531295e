//! The common configuration registers (virtio 1.2, 4.1.4.3) and the handshake they carry out (3.1).
//!
//! ```text
//!   00 device feature select   04 device feature    08 driver feature select   0c driver feature
//!   10 configuration vector (2)   12 queues (2)   14 status (1)   15 generation (1)
//!   16 queue select (2)   18 size (2)   1a vector (2)   1c enable (2)   1e notification offset (2)
//!   20 descriptors (8)   28 driver area (8)   30 device area (8)
//! ```
//!
//! The registers are used in their own width; the 64-bit ones in halves. Anything else reads as zeros and
//! writes nothing.

use super::VirtioPci;
use crate::devices::virtio::link::{DRIVER_OK, NEEDS_RESET};
use crate::devices::virtio::ring::RingSetup;
use crate::devices::virtio::{COMMON_FEATURES, EVENT_IDX, Ring, StartedQueue, VERSION_1};
use serde::{Deserialize, Serialize};

/// Device status: the features are agreed upon.
pub(super) const FEATURES_OK: u8 = 8;

/// What the driver has set up.
#[derive(Debug)]
pub(super) struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

#[derive(Clone, Copy, Debug)]
struct QueueSetup {
    max_size: u16,
    ring: RingSetup,
    enabled: bool,
}

/// The registers in a VM state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommonV1 {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    /// Of each queue, its setup and whether it is enabled.
    queues: Vec<(RingSetup, bool)>,
}

impl CommonV1 {
    /// The features that the driver accepted.
    pub(super) fn features(&self) -> u64 {
        self.driver_features
    }
}

impl Common {
    /// As after power-on, for queues of at most these sizes.
    pub(super) fn new(sizes: &[u16]) -> Common {
        let queue = |&size| QueueSetup {
            max_size: size,
            ring: RingSetup { size, ..RingSetup::default() },
            enabled: false,
        };
        Common {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: sizes.iter().map(queue).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Common::new(&sizes);
    }

    /// The features that the driver accepted.
    pub(super) fn features(&self) -> u64 {
        self.driver_features
    }

    /// Most entries of a queue; none of one that there is not.
    pub(super) fn max_size(&self, index: u16) -> u16 {
        self.queues.get(usize::from(index)).map_or(0, |queue| queue.max_size)
    }

    pub(super) fn save(&self) -> CommonV1 {
        CommonV1 {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(|queue| (queue.ring, queue.enabled)).collect(),
        }
    }

    /// Whether a driver could have set this up.
    pub(super) fn accepts(&self, state: &CommonV1) -> bool {
        let fits = |(queue, (ring, _)): (&QueueSetup, &(RingSetup, bool))| {
            ring.size.is_power_of_two() && ring.size <= queue.max_size
        };
        self.queues.len() == state.queues.len() && self.queues.iter().zip(&state.queues).all(fits)
    }

    /// Takes up a state that it [accepts](Common::accepts).
    pub(super) fn load(&mut self, state: &CommonV1) {
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        for (queue, &(ring, enabled)) in self.queues.iter_mut().zip(&state.queues) {
            (queue.ring, queue.enabled) = (ring, enabled);
        }
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, if its setup may still be changed.
    fn queue_mut(&mut self) -> Option<&mut QueueSetup> {
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled)
    }
}

impl VirtioPci {
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        if data.len() == 8 {
            let (low, high) = data.split_at_mut(4);
            self.read_common(offset, low);
            return self.read_common(offset + 4, high);
        }
        let value = self.common_register(offset, data.len()).unwrap_or(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn common_register(&self, offset: u64, len: usize) -> Option<u32> {
        let common = &self.common;
        Some(match (offset, len) {
            (0x00, 4) => common.device_feature_select,
            (0x04, 4) => half(self.offered(), common.device_feature_select),
            (0x08, 4) => common.driver_feature_select,
            (0x0c, 4) => half(common.driver_features, common.driver_feature_select),
            (0x10, 2) => u32::from(self.link.config_vector()),
            (0x12, 2) => common.queues.len() as u32,
            (0x14, 1) => u32::from(self.link.status()),
            (0x15, 1) => u32::from(self.link.generation()),
            (0x16, 2) => u32::from(common.queue_select),
            (0x1a, 2) => u32::from(self.link.queue_vector(common.queue_select)),
            (0x1e, 2) => common.queue().map(|_| u32::from(common.queue_select))?,
            _ => common.queue()?.register(offset, len)?,
        })
    }

    pub(super) fn write_common(&mut self, offset: u64, data: &[u8]) {
        if data.len() == 8 {
            self.write_common(offset, &data[..4]);
            return self.write_common(offset + 4, &data[4..]);
        }
        let value = data.iter().take(4).rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        match (offset, data.len()) {
            (0x00, 4) => self.common.device_feature_select = value,
            (0x08, 4) => self.common.driver_feature_select = value,
            (0x0c, 4) => self.write_driver_features(value),
            (0x10, 2) => self.link.set_config_vector(value as u16),
            (0x14, 1) => self.write_status(value as u8),
            (0x16, 2) => self.common.queue_select = value as u16,
            (0x1a, 2) => self.link.set_queue_vector(self.common.queue_select, value as u16),
            (0x1c, 2) if value == 1 => self.enable_queue(),
            _ => {
                if let Some(queue) = self.common.queue_mut() {
                    queue.write_register(offset, data.len(), value);
                }
            }
        }
    }

    /// The rings of an enabled queue of `common`, if they are in memory.
    pub(super) fn ring_of(&self, common: &CommonV1, index: u16) -> Option<Ring> {
        let &(setup, enabled) = common.queues.get(usize::from(index))?;
        let mut ring = Ring::new(setup, &self.memory).filter(|_| enabled)?;
        ring.set_event_idx(common.driver_features & EVENT_IDX != 0);
        Some(ring)
    }

    pub(super) fn offered(&self) -> u64 {
        COMMON_FEATURES | self.device.features()
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.link.status() & FEATURES_OK != 0 {
            return;
        }
        let shift = match self.common.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let others = self.common.driver_features & !(0xffff_ffff << shift);
        self.common.driver_features = others | u64::from(value) << shift;
    }

    /// Takes a step of the handshake; zero is a reset. Bits are only ever added.
    fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset_device();
        }
        let mut new = value & !(self.link.status() | NEEDS_RESET);
        let accepted = self.common.driver_features;
        if accepted & !self.offered() != 0 || accepted & VERSION_1 == 0 {
            new &= !FEATURES_OK;
        }
        if (self.link.status() | new) & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.link.add_status(new);
        if new & DRIVER_OK != 0 {
            self.start_queues();
        }
    }

    /// Checks the selected queue's addresses. A driver that gets them wrong must reset the device.
    fn enable_queue(&mut self) {
        if self.link.status() & DRIVER_OK != 0 {
            return;
        }
        let Some(queue) = self.common.queue_mut() else { return };
        queue.enabled = Ring::new(queue.ring, &self.memory).is_some();
        if !queue.enabled {
            self.link.break_device();
        }
    }

    fn start_queues(&mut self) {
        let event_idx = self.common.driver_features & EVENT_IDX != 0;
        for (index, queue) in (0..).zip(&self.common.queues) {
            if !queue.enabled {
                continue;
            }
            let ring = Ring::new(queue.ring, &self.memory);
            let kick = self.kicks[usize::from(index)].event.try_clone();
            let (Some(mut ring), Ok(kick)) = (ring, kick) else { return self.link.break_device() };
            ring.set_event_idx(event_idx);
            self.parked.push(StartedQueue { index, ring, kick, held: Vec::new() });
        }
        self.start();
    }
}

impl QueueSetup {
    fn register(&self, offset: u64, len: usize) -> Option<u32> {
        Some(match (offset, len) {
            (0x18, 2) => u32::from(self.ring.size),
            (0x1c, 2) => u32::from(self.enabled),
            (0x20 | 0x24, 4) => half(self.ring.descriptors, high(offset)),
            (0x28 | 0x2c, 4) => half(self.ring.available, high(offset)),
            (0x30 | 0x34, 4) => half(self.ring.used, high(offset)),
            _ => return None,
        })
    }

    fn write_register(&mut self, offset: u64, len: usize, value: u32) {
        match (offset, len) {
            (0x18, 2) if value.is_power_of_two() && value <= u32::from(self.max_size) => {
                self.ring.size = value as u16;
            }
            (0x20 | 0x24, 4) => set_half(&mut self.ring.descriptors, high(offset), value),
            (0x28 | 0x2c, 4) => set_half(&mut self.ring.available, high(offset), value),
            (0x30 | 0x34, 4) => set_half(&mut self.ring.used, high(offset), value),
            _ => {}
        }
    }
}

/// Which half of a 64-bit register a 32-bit one is.
fn high(offset: u64) -> u32 {
    (offset / 4 % 2) as u32
}

/// The lower half (0) or the upper one (1); there are no others.
fn half(value: u64, which: u32) -> u32 {
    value.checked_shr(which.saturating_mul(32)).unwrap_or(0) as u32
}

fn set_half(value: &mut u64, which: u32, half: u32) {
    let shift = 32 * which;
    *value = *value & !(0xffff_ffff << shift) | u64::from(half) << shift;
}
