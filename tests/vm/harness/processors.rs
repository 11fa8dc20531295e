//! The host's processors, one for each place at work: as many machines run at a time as there are processors, and
//! none takes time from another.

use std::fs;
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};

/// Those that no place has.
static FREE: LazyLock<Mutex<Vec<u32>>> = LazyLock::new(|| Mutex::new(allowed()));
static GIVEN_BACK: Condvar = Condvar::new();

/// A processor of the host, for as long as this lives.
#[derive(Debug)]
pub(super) struct Processor(pub(super) u32);

impl Processor {
    /// Waits for one.
    pub(super) fn take() -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            GIVEN_BACK.wait_while(free, |free| free.is_empty()).unwrap_or_else(PoisonError::into_inner);
        Processor(free.pop().expect("one that is free"))
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        GIVEN_BACK.notify_one();
    }
}

/// The processors that this process may run on, such as `0-1,4`.
fn allowed() -> Vec<u32> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    let processors: Vec<u32> =
        list.unwrap_or_default().trim().split(',').filter_map(range).flatten().collect();
    if processors.is_empty() { vec![0] } else { processors }
}
