//! Dates in the local time zone.

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
