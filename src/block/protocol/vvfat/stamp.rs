//! Times as FAT writes them: local time, from 1980 to 2107, in steps of two seconds.
//!
//! ```text
//!   time   15-11 hour   10-5 minute   4-0 second / 2
//!   date   15-9  year - 1980   8-5 month   4-0 day
//! ```

use std::mem::zeroed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time and a date, as in a directory entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    pub(super) time: u16,
    pub(super) date: u16,
}

/// The first moment of 1980.
const FIRST: Stamp = Stamp { time: 0, date: 1 << 5 | 1 };
/// The last moment of 2107.
const LAST: Stamp = Stamp { time: 23 << 11 | 59 << 5 | 29, date: 127 << 9 | 12 << 5 | 31 };

impl Stamp {
    /// `seconds` since the epoch in the time zone of the process; the nearest that can be written.
    pub(super) fn from_unix(seconds: i64) -> Stamp {
        let seconds: libc::time_t = seconds;
        // SAFETY: all-zero bytes are a valid `tm` (its pointer may be null).
        let mut date: libc::tm = unsafe { zeroed() };
        // SAFETY: both pointers are valid for the call; localtime_r keeps neither.
        let done = unsafe { libc::localtime_r(&seconds, &mut date) };
        match date.tm_year {
            _ if done.is_null() => FIRST,
            ..80 => FIRST,
            80..=207 => Stamp {
                time: (date.tm_hour << 11 | date.tm_min << 5 | (date.tm_sec.min(59) / 2)) as u16,
                date: ((date.tm_year - 80) << 9 | (date.tm_mon + 1) << 5 | date.tm_mday) as u16,
            },
            _ => LAST,
        }
    }

    /// The moment in the time zone of the process; `None` for what is no date.
    pub(super) fn to_system(self) -> Option<SystemTime> {
        let (time, day) = (i32::from(self.time), i32::from(self.date));
        // SAFETY: as above.
        let mut date: libc::tm = unsafe { zeroed() };
        date.tm_year = (day >> 9) + 80;
        date.tm_mon = (day >> 5 & 15) - 1;
        date.tm_mday = day & 31;
        (date.tm_hour, date.tm_min, date.tm_sec) = (time >> 11, time >> 5 & 63, (time & 31) * 2);
        date.tm_isdst = -1;
        if !(0..12).contains(&date.tm_mon) || date.tm_mday == 0 {
            return None;
        }
        // SAFETY: a valid pointer that mktime does not keep.
        let seconds = unsafe { libc::mktime(&mut date) };
        u64::try_from(seconds).ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_come_back_to_two_seconds_and_end_at_the_borders() {
        for seconds in (400_000_000..4_000_000_000).step_by(98_765_432) {
            let back = Stamp::from_unix(seconds).to_system().unwrap();
            let back = back.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
            assert!((0..2).contains(&(seconds - back)), "{seconds} {back}");
        }
        assert_eq!(Stamp::from_unix(-5), FIRST);
        assert_eq!(Stamp::from_unix(i64::MAX), FIRST);
        assert_eq!(Stamp::from_unix(5_000_000_000), LAST);
        assert_eq!(Stamp::default().to_system(), None);
    }
}
