//! The BIOS data area at 0040:0000: the fields that we keep, at their traditional addresses.

use super::Bios;
use super::image;
use super::time;
use crate::vm::layout::EBDA_START;
use std::time::SystemTime;

/// Base address of COM1.
pub(super) const COM1: u64 = 0x400;
/// Segment of the extended BIOS data area.
pub(super) const EBDA_SEGMENT: u64 = 0x40e;
/// What INT 11h returns.
pub(super) const EQUIPMENT: u64 = 0x410;
/// KiB of memory below the EBDA.
pub(super) const MEMORY_KIB: u64 = 0x413;
/// Shift keys.
pub(super) const SHIFT_STATE: u64 = 0x417;
/// Offset in segment 40h of the next key to read.
pub(super) const KEY_HEAD: u64 = 0x41a;
/// Offset in segment 40h of the next free key.
pub(super) const KEY_TAIL: u64 = 0x41c;
/// Video mode.
pub(super) const VIDEO_MODE: u64 = 0x449;
/// Text columns.
pub(super) const COLUMNS: u64 = 0x44a;
/// Cursor of page 0: column, then row.
pub(super) const CURSOR: u64 = 0x450;
/// Shape of the cursor.
pub(super) const CURSOR_SHAPE: u64 = 0x460;
/// Ticks since midnight, 18.2 a second.
pub(super) const TICKS: u64 = 0x46c;
/// Midnight has passed since the ticks were last asked for.
pub(super) const MIDNIGHT: u64 = 0x470;
/// Status of the last INT 13h.
pub(super) const DISK_STATUS: u64 = 0x474;
/// Number of hard disks.
pub(super) const DISK_COUNT: u64 = 0x475;
/// Offset in segment 40h of the keyboard buffer.
pub(super) const KEYS_START: u64 = 0x480;
/// Offset in segment 40h of its end.
pub(super) const KEYS_END: u64 = 0x482;
/// Text rows minus one.
pub(super) const LAST_ROW: u64 = 0x484;

/// Numeric unit, 80x25 colour text, one serial port, no floppy.
const EQUIPPED: u16 = 1 << 1 | 2 << 4 | 1 << 9;

impl Bios {
    /// Prepares vectors and data area, as the self-test of a real BIOS does.
    pub(super) fn power_on(&mut self) {
        let ram = &self.ram;
        image::write_vectors(ram);
        ram.write(COM1, &[0; 0x100]);
        ram.set_u16(COM1, 0x3f8);
        ram.set_u16(EBDA_SEGMENT, (EBDA_START >> 4) as u16);
        // The first byte of the EBDA is its size in KiB.
        ram.set_u8(EBDA_START, 1);
        ram.set_u16(EQUIPMENT, EQUIPPED);
        ram.set_u16(MEMORY_KIB, (EBDA_START >> 10) as u16);
        for field in [KEY_HEAD, KEY_TAIL, KEYS_START] {
            ram.set_u16(field, 0x1e);
        }
        ram.set_u16(KEYS_END, 0x3e);
        ram.set_u8(VIDEO_MODE, 3);
        ram.set_u16(COLUMNS, 80);
        ram.set_u16(CURSOR_SHAPE, 0x0607);
        ram.set_u8(LAST_ROW, 24);
        ram.set_u32(TICKS, time::ticks_of_day(SystemTime::now()));
        ram.set_u8(DISK_COUNT, u8::try_from(self.disks.len()).unwrap_or(u8::MAX));
        (self.screen, self.delay_end) = (Default::default(), None);
    }
}
