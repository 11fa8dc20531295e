//! MSI-X (PCI Local Bus 3.0, 6.8.2): the capability, the table of vectors and the pending-bit array.
//!
//! ```text
//!   capability  0 id 0x11, next   2 control: enable (15), mask all (14), vectors - 1 (10:0)
//!               4 table: offset | BAR       8 pending bits: offset | BAR
//!   table       16 bytes a vector: address low, address high, data, control (bit 0: masked)
//! ```

use super::config::ConfigSpace;
use crate::devices::Result;
use crate::devices::interrupts::{Interrupts, Message, MsiVector};
use crate::util::le;
use crate::vmstate::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Capability identifier.
const CAPABILITY: u8 = 0x11;
/// Message control: messages are sent.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const MASK_ALL: u16 = 1 << 14;
/// Bytes of a vector in the table.
const ENTRY_LEN: usize = 16;
/// The vector's control word, in the table.
const ENTRY_CONTROL: usize = 12;
/// Control: masked.
const ENTRY_MASKED: u8 = 1;

/// A function's MSI-X: what the guest has set, and the vectors that carry it out.
pub struct Msix {
    /// Offset of the capability.
    capability: usize,
    table: Vec<[u8; ENTRY_LEN]>,
    vectors: Arc<[MsiVector]>,
}

/// MSI-X in a VM state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixV1 {
    table: Bytes,
    /// Of each vector, whether it was raised while masked.
    pending: Vec<bool>,
}

impl Msix {
    /// `count` vectors (at most 2048). Adds the capability to `config`: table at `table`, pending bits at
    /// `pending`, offsets in BAR `bar`, multiples of 8.
    ///
    /// # Errors
    /// When the host or KVM cannot give that many.
    pub fn new(
        config: &mut ConfigSpace,
        interrupts: &Arc<Interrupts>,
        count: u16,
        bar: u32,
        [table, pending]: [u32; 2],
    ) -> Result<Msix> {
        let vectors = (0..count).map(|_| interrupts.msi()).collect::<Result<Vec<_>>>()?;
        let mut body = (count - 1).to_le_bytes().to_vec();
        body.extend((table | bar).to_le_bytes());
        body.extend((pending | bar).to_le_bytes());
        let capability = config.add_capability(CAPABILITY, &body);
        config.allow(capability + 2, &(ENABLE | MASK_ALL).to_le_bytes());
        Ok(Msix { capability, table: power_on_table(count), vectors: vectors.into() })
    }

    /// The vectors, for those who raise them.
    pub fn vectors(&self) -> &Arc<[MsiVector]> {
        &self.vectors
    }

    /// All vectors masked and forgotten, as at power-on.
    pub fn reset(&mut self) {
        self.table = power_on_table(self.table.len() as u16);
        self.vectors.iter().for_each(MsiVector::reset);
    }

    /// Its state.
    pub fn save(&self) -> MsixV1 {
        MsixV1 {
            table: Bytes(self.table.concat()),
            pending: self.vectors.iter().map(MsiVector::pending).collect(),
        }
    }

    /// Whether this function could be in that state.
    pub fn accepts(&self, state: &MsixV1) -> bool {
        let count = self.table.len();
        state.table.0.len() == count * ENTRY_LEN && state.pending.len() == count
    }

    /// Takes up a state that it [accepts](Msix::accepts); `config` is that of the same moment.
    pub fn load(&mut self, config: &ConfigSpace, state: &MsixV1) {
        for (entry, bytes) in self.table.iter_mut().zip(state.table.0.chunks_exact(ENTRY_LEN)) {
            entry.copy_from_slice(bytes);
        }
        self.vectors.iter().for_each(MsiVector::reset);
        for (vector, _) in self.vectors.iter().zip(&state.pending).filter(|(_, pending)| **pending) {
            // Masked as it is, it remembers.
            vector.trigger();
        }
        (0..self.table.len()).for_each(|vector| self.update(config, vector));
    }

    /// To be called after a write to the configuration space: the guest may have masked or enabled.
    pub fn config_written(&self, config: &ConfigSpace, offset: usize) {
        if (self.capability..self.capability + 4).contains(&offset) {
            (0..self.table.len()).for_each(|vector| self.update(config, vector));
        }
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = self.table.get(at / ENTRY_LEN).map_or(0, |entry| entry[at % ENTRY_LEN]);
        }
    }

    /// Writes the table.
    pub fn write_table(&mut self, config: &ConfigSpace, offset: u64, data: &[u8]) {
        let offset = offset as usize;
        let vector = offset / ENTRY_LEN;
        let (Some(entry), 4 | 8) = (self.table.get_mut(vector), data.len()) else { return };
        if !offset.is_multiple_of(data.len()) {
            return;
        }
        entry[offset % ENTRY_LEN..][..data.len()].copy_from_slice(data);
        let control = u32::from(entry[ENTRY_CONTROL] & ENTRY_MASKED);
        entry[ENTRY_CONTROL..].copy_from_slice(&control.to_le_bytes());
        self.update(config, vector);
    }

    /// Reads the pending-bit array.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let vectors = self.vectors.iter().skip(at * 8).take(8);
            *byte = (0..).zip(vectors).map(|(bit, vector)| u8::from(vector.pending()) << bit).sum();
        }
    }

    /// Tells a vector what the guest has set.
    fn update(&self, config: &ConfigSpace, vector: usize) {
        let entry = self.table[vector];
        let control = config.u16(self.capability + 2);
        let masked =
            control & ENABLE == 0 || control & MASK_ALL != 0 || entry[ENTRY_CONTROL] & ENTRY_MASKED != 0;
        let message = Message { address: le(&entry[..8]), data: le(&entry[8..12]) as u32 };
        if let Err(error) = self.vectors[vector].update(message, masked) {
            eprintln!("cowvm: an interrupt of the guest cannot be routed: {error}");
        }
    }
}

fn power_on_table(count: u16) -> Vec<[u8; ENTRY_LEN]> {
    let mut entry = [0; ENTRY_LEN];
    entry[ENTRY_CONTROL] = ENTRY_MASKED;
    vec![entry; usize::from(count)]
}
