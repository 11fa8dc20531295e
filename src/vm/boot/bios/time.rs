//! INT 1Ah and the delay of INT 15h: ticks, the date and time of day (UTC, from the host).

use super::Bios;
use super::bda;
use super::frame::Frame;
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
    let second = since_epoch(now).as_secs() % SECONDS_A_DAY;
    frame.set_ch(bcd(second / 3600));
    frame.set_cl(bcd(second / 60 % 60));
    frame.set_dh(bcd(second % 60));
    frame.set_dl(0);
}

/// 04h: century, year, month and day in CH, CL, DH and DL, in BCD.
fn date(frame: &mut Frame, now: SystemTime) {
    let (year, month, day) = civil(since_epoch(now).as_secs() / SECONDS_A_DAY);
    frame.set_ch(bcd(year / 100));
    frame.set_cl(bcd(year));
    frame.set_dh(bcd(month));
    frame.set_dl(bcd(day));
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The last two decimal digits of `number`.
fn bcd(number: u64) -> u8 {
    ((number / 10 % 10) * 16 + number % 10) as u8
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Count from 0000-03-01: leap days then end years, and years come in eras of 400.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_follows_the_one_before_by_the_rules_of_the_calendar() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(civil(days), (year, month, day), "day {days}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (month, day) = if day < length { (month, day + 1) } else { (month + 1, 1) };
            (year, month) = if month <= 12 { (year, month) } else { (year + 1, 1) };
        }
    }

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
