//! The guest's memory as the BIOS sees it: little-endian, checked, by linear address.
//!
//! Invariant: a write that does not fit into RAM as a whole changes nothing.

use crate::vm::memory::GuestMemory;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A handle on the guest's memory.
pub(super) struct Ram(Arc<GuestMemory>);

impl Ram {
    pub(super) fn new(memory: Arc<GuestMemory>) -> Ram {
        Ram(memory)
    }

    /// Whether all of the range is RAM.
    pub(super) fn contains(&self, address: u64, len: usize) -> bool {
        let memory: &GuestMemory = &self.0;
        address.checked_add(len as u64).is_some() && memory.check_range(GuestAddress(address), len)
    }

    /// Reads a range; `None` when it is not RAM.
    pub(super) fn read(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        if !self.contains(address, len) {
            return None;
        }
        let mut bytes = vec![0; len];
        self.0.read_slice(&mut bytes, GuestAddress(address)).ok()?;
        Some(bytes)
    }

    /// Writes a range; false when it is not RAM.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> bool {
        self.contains(address, bytes.len()) && self.0.write_slice(bytes, GuestAddress(address)).is_ok()
    }

    /// A byte; 0 where there is no RAM.
    pub(super) fn u8(&self, address: u64) -> u8 {
        self.0.read_obj(GuestAddress(address)).unwrap_or(0)
    }

    /// A word; 0 where there is no RAM.
    pub(super) fn u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.0.read_slice(&mut bytes, GuestAddress(address)).map_or(0, |()| u16::from_le_bytes(bytes))
    }

    /// A doubleword; 0 where there is no RAM.
    pub(super) fn u32(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.read_slice(&mut bytes, GuestAddress(address)).map_or(0, |()| u32::from_le_bytes(bytes))
    }

    /// Sets a byte. The fixed addresses of the BIOS are RAM since [`super::Bios::load`] has succeeded.
    pub(super) fn set_u8(&self, address: u64, value: u8) {
        self.write(address, &[value]);
    }

    /// Sets a word.
    pub(super) fn set_u16(&self, address: u64, value: u16) {
        self.write(address, &value.to_le_bytes());
    }

    /// Sets a doubleword.
    pub(super) fn set_u32(&self, address: u64, value: u32) {
        self.write(address, &value.to_le_bytes());
    }
}
