//! The progress of a long command: `    (12.34/100%)`, written over itself, whenever a whole percent was passed.

use super::output;
use std::cell::Cell;

/// The progress of one command. A line feed ends it when it goes away.
pub(super) struct Progress {
    shown: bool,
    last: Cell<f64>,
}

impl Progress {
    /// Starts at zero; says nothing at all unless `shown`.
    pub(super) fn start(shown: bool) -> Progress {
        let progress = Progress::waiting(shown);
        progress.report(0.0);
        progress
    }

    /// Does not start yet.
    pub(super) fn waiting(shown: bool) -> Progress {
        Progress { shown, last: Cell::new(0.0) }
    }

    /// Whether anybody looks.
    pub(super) fn is_shown(&self) -> bool {
        self.shown
    }

    /// `percent` of the work is done.
    pub(super) fn report(&self, percent: f64) {
        let end = percent == 0.0 || percent >= 100.0;
        if self.shown && (end || percent > self.last.get() + 1.0) {
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
