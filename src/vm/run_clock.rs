//! How long the guest has run: the VM clock of snapshots. It stands while the guest is paused.

use std::time::{Duration, Instant};

/// The clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunClock {
    before: Duration,
    since: Option<Instant>,
}

impl RunClock {
    /// The guest runs from now on.
    pub fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// The guest stands from now on.
    pub fn stop(&mut self) {
        *self = RunClock { before: self.now(), since: None };
    }

    /// How long the guest has run.
    pub fn now(&self) -> Duration {
        self.before + self.since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// The guest has run for so long; it stands.
    pub fn set(&mut self, time: Duration) {
        *self = RunClock { before: time, since: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_only_while_the_guest_runs() {
        let mut clock = RunClock::default();
        assert_eq!(clock.now(), Duration::ZERO);
        clock.set(Duration::from_secs(7));
        assert_eq!(clock.now(), Duration::from_secs(7));
        clock.start();
        while clock.now() == Duration::from_secs(7) {}
        clock.stop();
        let stood = clock.now();
        assert!(stood > Duration::from_secs(7));
        assert_eq!(clock.now(), stood);
    }
}
