//! Dates: of the civil calendar in UTC, and as text in the local time zone.

use std::mem::zeroed;

/// `seconds` since the epoch as `2026-11-22 02:24:54`, in the time zone of the process.
pub fn local_date(seconds: i64) -> String {
    let seconds: libc::time_t = seconds;
    // SAFETY: all-zero bytes are a valid `tm` (its pointer may be null).
    let mut date: libc::tm = unsafe { zeroed() };
    // SAFETY: both pointers are valid for the call; localtime_r keeps neither.
    let done = unsafe { libc::localtime_r(&seconds, &mut date) };
    if done.is_null() {
        // Only years beyond what an `int` holds.
        return seconds.to_string();
    }
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        i64::from(date.tm_year) + 1900,
        date.tm_mon + 1,
        date.tm_mday,
        date.tm_hour,
        date.tm_min,
        date.tm_sec,
    )
}

/// A second of the Gregorian calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Year of our era.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl Date {
    /// The civil date of a Unix time in UTC (Gregorian calendar; eras of 400 years starting in March).
    pub fn from_unix(seconds: i64) -> Date {
        let (days, of_day) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Date {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// The inverse, in seconds. Fields out of range (a guest may write anything to its clock) carry over.
    pub fn to_unix(self) -> i64 {
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = self.year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * 146_097 + of_era - 719_468;
        days * 86400 + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// Sunday is 1.
    pub fn weekday(self) -> u8 {
        ((self.to_unix().div_euclid(86400) + 4).rem_euclid(7) + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dates and seconds from date(1).
    #[test]
    fn dates_convert_both_ways() {
        for (seconds, year, month, day) in [
            (0, 1970, 1, 1),
            (951_782_400, 2000, 2, 29),
            (4_107_542_400, 2100, 3, 1),
            (1_709_164_800, 2024, 2, 29),
            (-1, 1969, 12, 31),
        ] {
            let date = Date::from_unix(seconds);
            assert_eq!((date.year, date.month, date.day), (year, month, day));
            assert_eq!(date.to_unix(), seconds);
        }
        for seconds in (0..8_000_000_000).step_by(7_654_321) {
            assert_eq!(Date::from_unix(seconds).to_unix(), seconds);
        }
    }

    #[test]
    fn every_day_follows_the_one_before_by_the_rules_of_the_calendar() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..200_000 {
            let date = Date::from_unix(days * 86400);
            assert_eq!((date.year, date.month, date.day), (year, month, day), "day {days}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u8::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (month, day) = if day < length { (month, day + 1) } else { (month + 1, 1) };
            (year, month) = if month <= 12 { (year, month) } else { (year + 1, 1) };
        }
    }
}
