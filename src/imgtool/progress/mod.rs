//! How far a long command is, told in three ways:
//!
//! ```text
//!   -p                  words, as qemu-img has them, on standard output       ◀─┬─ every report
//!                       a bar, where standard error is a terminal             ◀─┘
//!   --progress=json:FD  a line of JSON on descriptor FD, four times a second  ◀─┬─ a thread that looks at the
//!   SIGUSR1             words, once, on standard error                        ◀─┘  last report
//! ```
//! Words are left out where the bar would be on the same screen. A command never fails, and never waits, because nobody
//! reads its progress.

mod bar;
mod lines;
mod watch;
mod words;

use super::getopt::Flag;
use super::output::Failure;
use crate::block::aio::Engine;
use bar::Bar;
use lines::Lines;
use std::rc::Rc;
use std::sync::Arc;
use watch::Watched;
use words::Words;

/// The option, for a command that has it in qemu-img too.
pub(super) const PROGRESS: Flag =
    Flag::maybe("progress", "json:FD", "show progress; or write lines of JSON to the open descriptor FD")
        .short('p');

/// The option of other commands.
pub(super) const PROGRESS_IN_FULL: Flag = PROGRESS.long_only().in_full();

/// What the command line asks for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    shown: bool,
    lines: Option<Lines>,
}

impl Wanted {
    /// Takes one [`PROGRESS`], with its value or an empty one.
    pub(super) fn take(&mut self, value: &str) -> Result<(), Failure> {
        match value {
            "" => self.shown = true,
            _ => self.lines = Some(Lines::parse(value)?),
        }
        Ok(())
    }

    /// Whether it is to be seen by whoever typed the command.
    pub(super) fn is_shown(&self) -> bool {
        self.shown
    }

    /// The same, where nothing is to be seen on standard output but results, if there are any at all.
    pub(super) fn unless(self, hidden: bool) -> Wanted {
        Wanted { shown: self.shown && !hidden, ..self }
    }
}

/// The progress of one command. It ends when it goes away.
pub(super) struct Progress {
    teller: Rc<Teller>,
}

impl Progress {
    /// Starts at zero.
    pub(super) fn start(wanted: Wanted) -> Progress {
        let progress = Progress::later(wanted);
        progress.begin();
        progress
    }

    /// Has no words before the first report.
    pub(super) fn later(wanted: Wanted) -> Progress {
        Progress::new(wanted, Words::new(1.0))
    }

    /// Has no words but a line feed at the end before the first report, and then only for what is more than `step`
    /// percent further on.
    pub(super) fn silent(wanted: Wanted, step: f64) -> Progress {
        Progress::new(wanted, Words::begun(step))
    }

    fn new(wanted: Wanted, words: Words) -> Progress {
        let bar = wanted.shown.then(Bar::new).flatten();
        let has_words = wanted.shown && !(bar.is_some() && words::are_on_screen());
        Progress {
            teller: Rc::new(Teller {
                is_shown: wanted.shown || wanted.lines.is_some(),
                words: Some(words).filter(|_| has_words),
                bar,
                watched: Watched::start(wanted.lines),
            }),
        }
    }

    /// Whether anybody looks.
    pub(super) fn is_shown(&self) -> bool {
        self.teller.is_shown
    }

    /// Nothing is done.
    pub(super) fn begin(&self) {
        self.teller.words.iter().for_each(|words| words.report(0.0));
    }

    /// `done` of `total` is done, in bytes.
    pub(super) fn report(&self, done: u64, total: u64) {
        self.teller.report(done, total);
    }

    /// All bytes are done; the command may fail yet.
    pub(super) fn finish(&self) {
        self.teller.watched.finish();
        self.teller.words.iter().for_each(|words| words.report(100.0));
    }

    /// The command has succeeded.
    pub(super) fn complete(&self) {
        self.teller.watched.complete();
    }

    /// Hears what drivers tell of long work of their own.
    pub(super) fn listen(&self, engine: &Engine) {
        let teller = self.teller.clone();
        engine.listen_to_work(move |done, total| teller.report(done, total));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let teller = &self.teller;
        teller.bar.iter().for_each(Bar::end);
        teller.words.iter().for_each(Words::end);
        teller.watched.end();
    }
}

/// Tells whoever wants to know.
struct Teller {
    is_shown: bool,
    words: Option<Words>,
    bar: Option<Bar>,
    watched: Arc<Watched>,
}

impl Teller {
    fn report(&self, done: u64, total: u64) {
        self.watched.report(done, total);
        self.bar.iter().for_each(|bar| bar.report(done, total));
        self.words.iter().for_each(|words| words.report(done as f64 * 100.0 / total as f64));
    }
}
