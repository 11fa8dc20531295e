//! INT 1Ah and the delay of INT 15h: ticks, the date and time of day (UTC, from the host).

use super::Bios;
use super::bda;
use super::frame::Frame;
use crate::util::time::Date;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SECONDS_A_DAY: u64 = 86_400;
/// Ticks of the timer in a day, as every BIOS counts them.
const TICKS_A_DAY: u64 = 0x1800b0;

/// Ticks since midnight.
pub(super) fn ticks_of_day(now: SystemTime) -> u32 {
    let millis = since_epoch(now).as_millis() as u64 % (SECONDS_A_DAY * 1000);
    // Less than TICKS_A_DAY.
    (millis * TICKS_A_DAY / (SECONDS_A_DAY * 1000)) as u32
}

impl Bios {
    /// INT 1Ah.
    pub(super) fn time(&mut self, frame: &mut Frame) {
        let now = SystemTime::now();
        frame.set_carry(false);
        match frame.ah() {
            0x00 => self.ticks(frame),
            0x01 => self.set_ticks(frame),
            0x02 => time_of_day(frame, now),
            0x04 => date(frame, now),
            // The host's clock is not the guest's to set, and there are no alarms and no PCI services.
            _ => frame.set_carry(true),
        }
    }

    /// 00h: ticks in CX:DX; AL says whether midnight has passed since the last call.
    fn ticks(&self, frame: &mut Frame) {
        let ticks = self.ram.u32(bda::TICKS);
        frame.set_cx((ticks >> 16) as u16);
        frame.set_dx(ticks as u16);
        frame.set_al(self.ram.u8(bda::MIDNIGHT));
        self.ram.set_u8(bda::MIDNIGHT, 0);
    }

    fn set_ticks(&self, frame: &Frame) {
        self.ram.set_u32(bda::TICKS, u32::from(frame.cx()) << 16 | u32::from(frame.dx()));
        self.ram.set_u8(bda::MIDNIGHT, 0);
    }

    /// INT 15h AH=86h: returns after CX:DX microseconds.
    pub(super) fn delay(&mut self, frame: &mut Frame) {
        let length = Duration::from_micros(u64::from(frame.cx()) << 16 | u64::from(frame.dx()));
        let now = Instant::now();
        // The end of a delay that the guest has left half way must not stretch this one.
        let end = match self.delay_end {
            Some(end) if frame.repeated() => end.min(now + length),
            _ => now + length,
        };
        if end > now {
            self.delay_end = Some(end);
            return frame.call_again(|pause| std::thread::sleep(pause.min(end - now)));
        }
        self.delay_end = None;
        frame.set_carry(false);
    }
}

/// 02h: hours, minutes and seconds in CH, CL and DH, in BCD; no daylight saving.
fn time_of_day(frame: &mut Frame, now: SystemTime) {
    let now = utc(now);
    frame.set_ch(bcd(now.hour));
    frame.set_cl(bcd(now.minute));
    frame.set_dh(bcd(now.second));
    frame.set_dl(0);
}

/// 04h: century, year, month and day in CH, CL, DH and DL, in BCD.
fn date(frame: &mut Frame, now: SystemTime) {
    let now = utc(now);
    frame.set_ch(bcd((now.year / 100 % 100) as u8));
    frame.set_cl(bcd((now.year % 100) as u8));
    frame.set_dh(bcd(now.month));
    frame.set_dl(bcd(now.day));
}

fn utc(now: SystemTime) -> Date {
    Date::from_unix(i64::try_from(since_epoch(now).as_secs()).unwrap_or(i64::MAX))
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A number below 100.
fn bcd(number: u8) -> u8 {
    number / 10 * 16 + number % 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_and_time_are_bcd() {
        // date -u -d @1709251199: 2024-02-29 23:59:59
        let now = UNIX_EPOCH + Duration::from_secs(1_709_251_199);
        let mut frame = Frame::default();
        date(&mut frame, now);
        assert_eq!((frame.cx(), frame.dx()), (0x2024, 0x0229));
        time_of_day(&mut frame, now);
        assert_eq!((frame.cx(), frame.dx()), (0x2359, 0x5900));
        assert_eq!(ticks_of_day(now), (TICKS_A_DAY * 86_399 / 86_400) as u32);
    }
}
