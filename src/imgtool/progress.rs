//! The progress of a long command: `    (12.34/100%)`, written over itself, in steps of some percent.

use super::output;
use std::cell::Cell;

/// The progress of one command. A line feed ends it when it goes away.
pub(super) struct Progress {
    shown: bool,
    /// Percent that are not worth a report.
    step: f64,
    last: Cell<f64>,
}

impl Progress {
    /// Starts at zero; says nothing at all unless `shown`.
    pub(super) fn start(shown: bool) -> Progress {
        let progress = Progress::silent(shown, 1.0);
        progress.report(0.0);
        progress
    }

    /// Says nothing before the first report, and then only what is more than `step` percent further on.
    pub(super) fn silent(shown: bool, step: f64) -> Progress {
        Progress { shown, step, last: Cell::new(0.0) }
    }

    /// Whether anybody looks.
    pub(super) fn is_shown(&self) -> bool {
        self.shown
    }

    /// `percent` of the work is done.
    pub(super) fn report(&self, percent: f64) {
        let end = percent == 0.0 || percent >= 100.0;
        if self.shown && (end || percent > self.last.get() + self.step) {
            self.last.set(percent);
            // A command does not fail because nobody reads its progress.
            let _ = output::write(&format!("    ({:.2}/100%)\r", percent.min(100.0)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = output::write("\n");
        }
    }
}
