//! A virtio device in a VM state: what its driver has set up, and how far its queues have come. What the device
//! itself shows (size, serial number) belongs to its disk and is not state.

use super::VirtioPci;
use super::common::{Common, CommonV1, FEATURES_OK};
use crate::devices::pci::MsixV1;
use crate::devices::virtio::StartedQueue;
use crate::devices::virtio::chain::HeldV1;
use crate::devices::virtio::link::{DRIVER_OK, DriverLinkV1};
use crate::vmstate::{Bytes, Error, Result};
use serde::{Deserialize, Serialize};

/// The device, with no request in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VirtioPciV1 {
    device_type: u16,
    config: Bytes,
    msix: MsixV1,
    common: CommonV1,
    link: DriverLinkV1,
    /// Of each queue that runs: its number, and how far it has come in the available and the used ring.
    running: Vec<(u16, u16, u16)>,
    /// Requests that failed and are to be done again, with the numbers of their queues.
    held: Vec<(u16, HeldV1)>,
}

impl VirtioPciV1 {
    fn runs(&self, queue: u16) -> bool {
        self.running.iter().any(|&(index, ..)| index == queue)
    }

    /// A queue has no more requests in flight than entries.
    fn held_fit(&self, common: &Common) -> bool {
        self.running.iter().all(|&(index, ..)| {
            let held = self.held.iter().filter(|(queue, _)| *queue == index).count();
            held <= common.max_size(index).into()
        })
    }
}

impl VirtioPci {
    pub(super) fn save_state(&self) -> VirtioPciV1 {
        let running = |queue: &StartedQueue| {
            let (available, used) = queue.ring.progress();
            (queue.index, available, used)
        };
        let held = |queue: &StartedQueue| {
            let index = queue.index;
            queue.held.iter().map(move |held| (index, held.save())).collect::<Vec<_>>()
        };
        VirtioPciV1 {
            device_type: self.device.device_type(),
            config: self.config.save(),
            msix: self.msix.save(),
            common: self.common.save(),
            link: self.link.save(),
            running: self.parked.iter().map(running).collect(),
            held: self.parked.iter().flat_map(held).collect(),
        }
    }

    pub(super) fn check_state(&self, state: &VirtioPciV1) -> Result<()> {
        let ours = state.device_type == self.device.device_type() && self.config.accepts(&state.config);
        if !ours {
            return Err(Error::mismatch("the snapshot has another kind of device in a slot of the PCI bus"));
        }
        let fits = self.msix.accepts(&state.msix) && self.link.accepts(&state.link);
        // Before the handshake a driver may write what it likes: the device does not agree to it then.
        let agreed = state.link.status() & FEATURES_OK != 0;
        let features = state.common.features() & !self.offered();
        if agreed && features != 0 {
            return Err(Error::mismatch(format!(
                "the guest uses features of a virtio device that it does not have here: {features:#x}"
            )));
        }
        let queues = self.common.accepts(&state.common);
        let in_order = state.running.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let running = state.running.iter().all(|&(index, ..)| self.ring_of(&state.common, index).is_some());
        let held = state.held.iter().all(|(queue, held)| state.runs(*queue) && held.is_possible());
        let running = running && in_order && state.held_fit(&self.common);
        match fits && queues && running && held {
            true => Ok(()),
            false => Err(Error::damaged("a virtio device is in an impossible state")),
        }
    }

    pub(super) fn load_state(&mut self, state: &VirtioPciV1) {
        self.device.stop();
        self.parked.clear();
        self.config.load(&state.config);
        self.common.load(&state.common);
        self.link.load(&state.link);
        self.msix.load(&self.config, &state.msix);
        self.place_kicks();
        for &(index, available, used) in &state.running {
            let kick = self.kicks.get(usize::from(index)).and_then(|kick| kick.event.try_clone().ok());
            let (Some(mut ring), Some(kick)) = (self.ring_of(&state.common, index), kick) else {
                return self.link.break_device();
            };
            ring.set_progress((available, used));
            let held = state.held.iter().filter(|(queue, _)| *queue == index);
            let held = held.map(|(_, held)| held.load()).collect();
            self.parked.push(StartedQueue { index, ring, kick, held });
            // An interrupt may have been on its way when the state was saved. One too many does no harm.
            if self.link.status() & DRIVER_OK != 0 {
                self.link.queue_used(index);
            }
        }
    }
}
