//! Progress in qemu-img's words: `    (12.34/100%)`, written over itself, in steps of some percent.

use crate::imgtool::output;
use std::cell::Cell;
use std::io::{IsTerminal, stdout};

/// The words on standard output. A line feed ends them.
pub(super) struct Words {
    /// Percent that are not worth a report.
    step: f64,
    last: Cell<f64>,
    /// There is something that the line feed ends.
    begun: Cell<bool>,
}

impl Words {
    pub(super) fn new(step: f64) -> Words {
        Words { step, last: Cell::new(0.0), begun: Cell::new(false) }
    }

    /// The same, with a line feed at the end in any case.
    pub(super) fn begun(step: f64) -> Words {
        Words { begun: Cell::new(true), ..Words::new(step) }
    }

    /// `percent` of the work is done.
    pub(super) fn report(&self, percent: f64) {
        let end = percent == 0.0 || percent >= 100.0;
        if end || percent > self.last.get() + self.step {
            self.last.set(percent);
            self.begun.set(true);
            let _ = output::write(&format!("{}\r", of(percent)));
        }
    }

    pub(super) fn end(&self) {
        if self.begun.get() {
            let _ = output::write("\n");
        }
    }
}

/// The words for `percent`.
pub(super) fn of(percent: f64) -> String {
    format!("    ({:.2}/100%)", percent.clamp(0.0, 100.0))
}

/// Whether they are read on a terminal.
pub(super) fn are_on_screen() -> bool {
    stdout().is_terminal()
}
