//! Progress for programs: lines of JSON on a descriptor that whoever started the command has opened.
//!
//! ```text
//! {"bytes": 1048576, "total": 4194304, "rate": 524288, "eta": 6.0, "done": false}
//! ```
//! `rate` is in bytes a second, over the last few seconds; `eta` in seconds. What is not known is null.

use crate::imgtool::json;
use crate::imgtool::output::Failure;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

/// What the value of the option begins with.
const PREFIX: &str = "json:";
/// How far back the rate looks.
const WINDOW: Duration = Duration::from_secs(5);
/// How long the last line waits for a slow reader, in milliseconds.
const PATIENCE: i32 = 1000;

/// Where lines go.
#[derive(Debug)]
pub(super) struct Lines {
    out: File,
    /// When how many bytes were done, for the rate.
    samples: VecDeque<(Instant, u64)>,
}

impl Lines {
    /// Reads `json:FD`.
    pub(super) fn parse(value: &str) -> Result<Lines, Failure> {
        let number = value.strip_prefix(PREFIX).and_then(|number| number.parse::<RawFd>().ok());
        let malformed = || Failure::Usage(format!("--progress expects 'json:FD' not '{value}'"));
        let number = number.ok_or_else(malformed)?;
        let closed = || Failure::Other {
            message: format!("Cannot write progress to descriptor {number}: it is not open for writing"),
            remedy: Some(format!("open it in the shell: {number}>progress.json")),
            code: 1,
        };
        let out = inherited(number).ok_or_else(closed)?;
        Ok(Lines { out, samples: VecDeque::new() })
    }

    /// Writes a line, unless the reader is behind. `over`: the last one; `done`: because all is done.
    pub(super) fn write(&mut self, bytes: u64, total: u64, over: bool, done: bool) {
        if !is_ready(&self.out, if over { PATIENCE } else { 0 }) {
            return;
        }
        let now = Instant::now();
        let rate = self.rate(now, bytes);
        let total = Some(total).filter(|&total| total > 0);
        let left = total.and_then(|total| time_left(total.saturating_sub(bytes), rate));
        let line = json!({"bytes": bytes, "total": total, "rate": rate, "eta": left, "done": done});
        let _ = self.out.write_all(format!("{}\n", json::to_line(&line)).as_bytes());
    }

    /// Bytes a second.
    fn rate(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        // Work that begins anew, such as a check after a repair, has a new rate.
        if self.samples.back().is_some_and(|&(_, last)| last > bytes) {
            self.samples.clear();
        }
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2 && self.samples[1].0 + WINDOW < now {
            self.samples.pop_front();
        }
        let &(then, before) = self.samples.front()?;
        let seconds = now.duration_since(then).as_secs_f64();
        (seconds > 0.0).then(|| ((bytes - before) as f64 / seconds) as u64)
    }
}

/// In seconds, to a tenth.
fn time_left(bytes: u64, rate: Option<u64>) -> Option<Value> {
    let rate = rate.filter(|&rate| rate > 0)?;
    Some(json!((bytes as f64 * 10.0 / rate as f64).round() / 10.0))
}

/// A descriptor that was open when the program started, for writing.
fn inherited(number: RawFd) -> Option<File> {
    // SAFETY: both calls only ask for flags, and fail where the number is no descriptor.
    let (flags, mode) = unsafe { (libc::fcntl(number, libc::F_GETFD), libc::fcntl(number, libc::F_GETFL)) };
    // Our own are closed on exec: whoever started us has left none like that.
    let is_foreign = flags >= 0 && flags & libc::FD_CLOEXEC == 0;
    let is_writable = mode >= 0 && mode & libc::O_ACCMODE != libc::O_RDONLY && mode & libc::O_PATH == 0;
    if !is_foreign || !is_writable {
        return None;
    }
    // SAFETY: it is open, as was just seen; it is none of ours, so that nobody here closes it.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    descriptor.try_clone_to_owned().ok().map(File::from)
}

/// Whether a line can be written without waiting for longer than so many milliseconds.
fn is_ready(out: &File, patience: i32) -> bool {
    let mut poll = libc::pollfd { fd: out.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: it is one structure, on the stack.
    let ready = unsafe { libc::poll(&mut poll, 1, patience) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines {
        Lines { out: tempfile::tempfile().unwrap(), samples: VecDeque::new() }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut lines, start) = (lines(), Instant::now());
        let mut rate = |seconds, bytes| lines.rate(start + Duration::from_secs(seconds), bytes);
        assert_eq!(rate(0, 0), None);
        assert_eq!(rate(1, 1000), Some(1000));
        assert_eq!(rate(2, 1000), Some(500));
        for second in 3..20 {
            let _ = rate(second, 1000);
        }
        assert_eq!(rate(20, 1000), Some(0));
        assert_eq!(rate(21, 500), None, "it began anew");
        assert_eq!(rate(22, 600), Some(100));
    }

    #[test]
    fn a_rate_of_nothing_leaves_the_time_open() {
        assert_eq!(time_left(100, None), None);
        assert_eq!(time_left(100, Some(0)), None);
        assert_eq!(time_left(100, Some(30)), Some(json!(3.3)));
    }

    #[test]
    fn only_descriptors_that_were_left_open_are_taken() {
        for value in ["", "json", "json:", "json:x", "text:1", "json:-1", "json:100000"] {
            assert!(Lines::parse(value).is_err(), "{value}");
        }
        let ours = tempfile::tempfile().unwrap();
        assert!(Lines::parse(&format!("json:{}", ours.as_raw_fd())).is_err());
        assert!(Lines::parse("json:2").is_ok());
    }
}
