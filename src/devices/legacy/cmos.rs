//! The real-time clock and its battery-backed memory (MC146818 and what PCs added).
//!
//! ```text
//!   00 seconds  02 minutes  04 hours  06 weekday  07 day  08 month  09 year     BCD, 24 hours, UTC
//!   0a 0b 0c 0d status A to D
//!   15/16 base memory, KiB        17/18 and 30/31 memory above 1 MiB, KiB
//!   34/35 memory above 16 MiB, 64 KiB units      5b/5c/5d memory above 4 GiB, 64 KiB units
//!   32 century
//! ```
//!
//! The clock is the host's, shifted by what the guest has set. It raises no interrupts. Memory that has no
//! meaning here keeps what the guest wrote, over resets too.

use crate::devices::bus::BusDevice;
use crate::util::time::Date;
use crate::vmstate::{self, Bytes};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The index port; the data port follows it.
pub const BASE: u64 = 0x70;
/// Number of ports.
pub const PORTS: u64 = 2;

const DAY: u8 = 0x07;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where the century is; the ACPI tables tell it too.
pub const CENTURY: u8 = 0x32;

/// Status A: 32.768 kHz time base, 1024 Hz rate.
const TIME_BASE: u8 = 0x26;
/// Status A: the time is about to change.
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// Status B: the clock stands still while it is set.
const SET: u8 = 0x80;
/// Status B: hours count to 24.
const HOURS_24: u8 = 0x02;
/// Status D: the battery is good.
const VALID_RAM: u8 = 0x80;
/// How long before a new second the update flag is up.
const UPDATE_TIME: Duration = Duration::from_micros(244);

/// The chip.
pub struct Cmos {
    index: u8,
    nvram: [u8; 128],
    /// Guest time minus host time, in seconds.
    shift: i64,
    /// The date while the guest sets it.
    frozen: Option<Date>,
    now: fn() -> Duration,
}

/// The chip in a VM state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CmosV1 {
    index: u8,
    nvram: Bytes,
    shift: i64,
    /// Year, month, day, hour, minute, second while the guest sets them.
    frozen: Option<(i64, u8, u8, u8, u8, u8)>,
}

impl Cmos {
    /// A chip on the host's clock, in a machine with so many bytes of memory below and above 4 GiB.
    pub fn new(low_memory: u64, high_memory: u64) -> Cmos {
        Cmos::with_clock(low_memory, high_memory, || {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
        })
    }

    fn with_clock(low_memory: u64, high_memory: u64, now: fn() -> Duration) -> Cmos {
        let mut cmos = Cmos { index: 0, nvram: [0; 128], shift: 0, frozen: None, now };
        cmos.nvram[usize::from(STATUS_B)] = HOURS_24;
        cmos.put(&[0x15, 0x16], 640);
        let extended = low_memory.saturating_sub(1 << 20) >> 10;
        cmos.put(&[0x17, 0x18], extended.min(0xffff));
        cmos.put(&[0x30, 0x31], extended.min(0xffff));
        cmos.put(&[0x34, 0x35], (low_memory.saturating_sub(16 << 20) >> 16).min(0xffff));
        cmos.put(&[0x5b, 0x5c, 0x5d], (high_memory >> 16).min(0xff_ffff));
        cmos
    }

    /// Its state.
    pub fn save(&self) -> CmosV1 {
        let frozen = |date: Date| (date.year, date.month, date.day, date.hour, date.minute, date.second);
        CmosV1 {
            index: self.index,
            nvram: Bytes(self.nvram.to_vec()),
            shift: self.shift,
            frozen: self.frozen.map(frozen),
        }
    }

    /// Whether the chip could be in this state.
    ///
    /// # Errors
    /// When it could not.
    pub fn check(state: &CmosV1) -> vmstate::Result<()> {
        let year = state.frozen.map_or(0, |(year, ..)| year);
        match state.nvram.0.len() == 128 && state.index < 128 && (0..100_000).contains(&year) {
            true => Ok(()),
            false => Err(vmstate::Error::damaged("the clock's memory makes no sense")),
        }
    }

    /// Takes up a state. The time is the host's, shifted as the guest had shifted it.
    pub fn load(&mut self, state: &CmosV1) {
        self.index = state.index;
        if let Ok(nvram) = state.nvram.0.as_slice().try_into() {
            self.nvram = nvram;
        }
        self.shift = state.shift;
        let date = |(year, month, day, hour, minute, second)| Date { year, month, day, hour, minute, second };
        self.frozen = state.frozen.map(date);
    }

    fn put(&mut self, registers: &[u8], value: u64) {
        for (&register, byte) in registers.iter().zip(value.to_le_bytes()) {
            self.nvram[usize::from(register)] = byte;
        }
    }

    fn get(&self, register: u8) -> u8 {
        match register {
            STATUS_A => TIME_BASE | if self.updating() { UPDATE_IN_PROGRESS } else { 0 },
            STATUS_C => 0,
            STATUS_D => VALID_RAM,
            _ => match self.date().register(register) {
                Some(value) => to_bcd(value),
                None => self.nvram[usize::from(register)],
            },
        }
    }

    fn set(&mut self, register: u8, value: u8) {
        match register {
            STATUS_A | STATUS_C | STATUS_D => {}
            STATUS_B => self.set_status_b(value),
            _ => match self.date().with_register(register, from_bcd(value)) {
                Some(date) if self.frozen.is_some() => self.frozen = Some(date),
                Some(date) => self.set_date(date),
                None => self.nvram[usize::from(register)] = value,
            },
        }
    }

    /// The number format is fixed; the rest is kept.
    fn set_status_b(&mut self, value: u8) {
        self.nvram[usize::from(STATUS_B)] = value & !0x04 | HOURS_24;
        if value & SET != 0 {
            self.frozen = Some(self.date());
        } else if let Some(date) = self.frozen.take() {
            self.set_date(date);
        }
    }

    fn updating(&self) -> bool {
        let second = Duration::from_nanos(u64::from((self.now)().subsec_nanos()));
        self.frozen.is_none() && second + UPDATE_TIME >= Duration::from_secs(1)
    }

    fn date(&self) -> Date {
        let host = i64::try_from((self.now)().as_secs()).unwrap_or(i64::MAX);
        self.frozen.unwrap_or_else(|| Date::from_unix(host.saturating_add(self.shift)))
    }

    fn set_date(&mut self, date: Date) {
        let host = i64::try_from((self.now)().as_secs()).unwrap_or(i64::MAX);
        self.shift = date.to_unix().saturating_sub(host);
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([value], 1) = (data, offset) {
            *value = self.get(self.index);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (data, offset) {
            // Bit 7 masks NMIs, which nobody sends.
            (&[value], 0) => self.index = value & 0x7f,
            (&[value], 1) => self.set(self.index, value),
            _ => {}
        }
    }
}

/// A date as the clock's registers have it, in plain binary.
trait Registers: Sized {
    fn register(self, register: u8) -> Option<u8>;
    fn with_register(self, register: u8, value: u8) -> Option<Self>;
}

impl Registers for Date {
    fn register(self, register: u8) -> Option<u8> {
        Some(match register {
            0x00 => self.second,
            0x02 => self.minute,
            0x04 => self.hour,
            0x06 => self.weekday(),
            DAY => self.day,
            0x08 => self.month,
            0x09 => self.year.rem_euclid(100) as u8,
            CENTURY => self.year.div_euclid(100).rem_euclid(100) as u8,
            _ => return None,
        })
    }

    fn with_register(mut self, register: u8, value: u8) -> Option<Date> {
        match register {
            0x00 => self.second = value,
            0x02 => self.minute = value,
            0x04 => self.hour = value,
            0x06 => {}
            DAY => self.day = value,
            0x08 => self.month = value,
            0x09 => self.year = self.year.div_euclid(100) * 100 + i64::from(value),
            CENTURY => self.year = i64::from(value) * 100 + self.year.rem_euclid(100),
            _ => return None,
        }
        Some(self)
    }
}

fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

/// Of 99 at most: digits beyond 9 count as 9.
fn from_bcd(value: u8) -> u8 {
    (value >> 4).min(9) * 10 + (value & 0xf).min(9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &mut Cmos, register: u8) -> u8 {
        let mut value = [0];
        cmos.write(0, &[register]);
        cmos.read(1, &mut value);
        value[0]
    }

    fn write(cmos: &mut Cmos, register: u8, value: u8) {
        cmos.write(0, &[register]);
        cmos.write(1, &[value]);
    }

    fn time(cmos: &mut Cmos) -> [u8; 8] {
        [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00, 0x06].map(|register| read(cmos, register))
    }

    #[test]
    fn the_registers_show_the_hosts_time_in_bcd() {
        // 2024-02-29 23:59:58 UTC was a Thursday.
        let mut cmos = Cmos::with_clock(0, 0, || Duration::from_secs(1_709_251_198));
        assert_eq!(time(&mut cmos), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5]);
        assert_eq!(read(&mut cmos, STATUS_B), HOURS_24);
        assert_eq!(read(&mut cmos, STATUS_D), VALID_RAM);
    }

    #[test]
    fn the_update_flag_warns_before_the_second_changes() {
        let mut cmos = Cmos::with_clock(0, 0, || Duration::from_millis(1500));
        assert_eq!(read(&mut cmos, STATUS_A) & UPDATE_IN_PROGRESS, 0);
        cmos.now = || Duration::from_micros(1_999_800);
        assert_eq!(read(&mut cmos, STATUS_A) & UPDATE_IN_PROGRESS, UPDATE_IN_PROGRESS);
    }

    #[test]
    fn a_time_set_by_the_guest_goes_on_from_there() {
        let mut cmos = Cmos::with_clock(0, 0, || Duration::from_secs(1_709_251_198));
        write(&mut cmos, STATUS_B, SET | HOURS_24);
        for (register, value) in [(0x32, 0x19), (0x09, 0x99), (0x08, 0x12), (0x07, 0x31), (0x04, 0x23)] {
            write(&mut cmos, register, value);
        }
        write(&mut cmos, STATUS_B, HOURS_24);
        cmos.now = || Duration::from_secs(1_709_251_200);
        assert_eq!(time(&mut cmos), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 7]);
    }

    #[test]
    fn any_bytes_as_time_do_no_harm() {
        let mut cmos = Cmos::new(0, 0);
        for value in [0xff, 0x9a, 0] {
            for register in 0..128 {
                write(&mut cmos, register, value);
                time(&mut cmos);
            }
        }
    }

    #[test]
    fn memory_sizes_are_told() {
        let mut cmos = Cmos::new(3 << 30, 1 << 30);
        let mut word = |low: u8, high: u8| u16::from_le_bytes([read(&mut cmos, low), read(&mut cmos, high)]);
        assert_eq!(word(0x15, 0x16), 640);
        assert_eq!(word(0x17, 0x18), 0xffff);
        assert_eq!(word(0x34, 0x35), (3072 - 16) * 16);
        assert_eq!(word(0x5b, 0x5c), 1024 * 16);
        assert_eq!(Cmos::new(8 << 20, 0).nvram[0x30..0x32], (7u16 << 10).to_le_bytes());
    }

    #[test]
    fn unused_memory_keeps_what_was_written() {
        let mut cmos = Cmos::new(0, 0);
        write(&mut cmos, 0x40, 0x5a);
        assert_eq!(read(&mut cmos, 0x40), 0x5a);
    }

    #[test]
    fn a_state_moves_to_another_chip() {
        let mut one = Cmos::with_clock(1 << 30, 0, || Duration::from_secs(1_709_251_198));
        write(&mut one, 0x40, 7);
        write(&mut one, STATUS_B, SET);
        write(&mut one, 0x00, 0x11);
        let mut other = Cmos::with_clock(0, 0, || Duration::from_secs(1_709_251_198));
        Cmos::check(&one.save()).unwrap();
        other.load(&one.save());
        assert_eq!(other.save(), one.save());
        assert_eq!(time(&mut other), time(&mut one));
        assert!(Cmos::check(&CmosV1 { nvram: Bytes(vec![0; 127]), ..one.save() }).is_err());
        assert!(Cmos::check(&CmosV1 { frozen: Some((i64::MAX, 0, 0, 0, 0, 0)), ..one.save() }).is_err());
    }
}
