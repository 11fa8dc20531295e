//! The 256 bytes of a function's configuration space (PCI Local Bus 3.0, chapter 6.1, type 0 header).
//!
//! ```text
//!   00 vendor    02 device       10 BAR 0..5 (24 bytes)       34 first capability
//!   04 command   06 status       2c subsystem vendor, id      3c interrupt line, pin
//!   08 revision  09 class        40… capabilities
//! ```
//!
//! Each bit is read-only unless its mask says otherwise; the masks alone make the protocol that finds out the
//! size of a BAR.

use crate::vmstate::Bytes;

/// Bytes of a configuration space.
const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const BAR_0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// Command: the device answers at its memory BARs.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the device may write to memory.
const COMMAND_MASTER: u16 = 1 << 2;
/// Command: INTx is off.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// BAR: 64 bits wide, in memory space.
const BAR_MEMORY_64: u32 = 0b100;

/// Who a function says it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface: 0x010000 is a SCSI controller.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// A 64-bit memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number; it takes the next one too.
    pub index: usize,
    /// Size in bytes, a power of two, at least 16.
    pub size: u64,
}

/// A configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// The bits that the guest may change.
    writable: [u8; SIZE],
    bars: Vec<Bar>,
    /// Where the next capability goes.
    free: usize,
    /// The byte that points to the next capability.
    link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: &Identity) -> ConfigSpace {
        let mut config = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: Vec::new(),
            free: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        config.set(0, &identity.vendor.to_le_bytes());
        config.set(2, &identity.device.to_le_bytes());
        config.set(8, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.set(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.set(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
        config.allow(COMMAND, &command.to_le_bytes());
        // Cache line and latency timer do nothing, but must keep what is written.
        config.allow(CACHE_LINE, &[0xff, 0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Adds a BAR.
    pub fn add_bar(&mut self, bar: Bar) {
        let at = BAR_0 + 4 * bar.index;
        self.set(at, &BAR_MEMORY_64.to_le_bytes());
        let mask = !(bar.size - 1) & !0xf;
        self.allow(at, &mask.to_le_bytes());
        self.bars.push(bar);
    }

    /// Adds a capability: its identifier and what follows the pointer to the next. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.free;
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.set(self.link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Sets bytes, whatever the masks say.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Lets the guest change the bits that are set in `mask`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Reads; zeros past the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that may be written; ignored past the end.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }

    /// All its bytes.
    pub fn save(&self) -> Bytes {
        Bytes(self.bytes.to_vec())
    }

    /// Whether the guest could have made these bytes of what the function is.
    pub fn accepts(&self, state: &Bytes) -> bool {
        let fixed = |((now, then), mask): ((&u8, &u8), &u8)| (now ^ then) & !mask == 0;
        state.0.len() == SIZE && self.bytes.iter().zip(&state.0).zip(&self.writable).all(fixed)
    }

    /// Takes up bytes that [`ConfigSpace::accepts`].
    pub fn load(&mut self, state: &Bytes) {
        self.write(0, &state.0);
    }

    /// A little-endian word at `offset`, which lies inside.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// A little-endian double word at `offset`, which lies inside.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// The BARs.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// The address that a BAR holds.
    pub fn bar_address(&self, bar: Bar) -> u64 {
        let at = BAR_0 + 4 * bar.index;
        u64::from(self.u32(at) & !0xf) | u64::from(self.u32(at + 4)) << 32
    }

    /// Sets the address of a BAR, a multiple of its size.
    pub fn set_bar_address(&mut self, bar: Bar, address: u64) {
        self.write(BAR_0 + 4 * bar.index, &address.to_le_bytes());
    }

    /// Whether the device answers at its BARs.
    pub fn decodes_memory(&self) -> bool {
        self.u16(COMMAND) & COMMAND_MEMORY != 0
    }
}
