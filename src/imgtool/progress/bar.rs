//! Progress as people like it: a bar, how much is done, how fast, how long it still takes.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::Duration;

const TEMPLATE: &str =
    "{wide_bar} {percent:>3} % {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12} {eta:>4} left";
/// How often the time that is left is computed anew, when nothing is reported.
const TICK: Duration = Duration::from_millis(250);

/// A bar on standard error.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// None where standard error is no terminal.
    pub(super) fn new() -> Option<Bar> {
        if !stderr().is_terminal() {
            return None;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Some(Bar(bar))
    }

    pub(super) fn report(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// What is on the screen stays there.
    pub(super) fn end(&self) {
        self.0.abandon();
    }
}
