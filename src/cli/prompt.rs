//! The monitor on a terminal of its own: line editing, history and completion by rustyline.
//!
//! ```text
//!   thread: readline ── line, typed ──▶ main thread: execute
//!              ▲ answer ─────────────────────┘
//! ```
//! The editor blocks, so it has a thread, and that waits for the answer before it shows the next prompt. The thread is
//! left behind when the process ends; [`RawMode`](super::terminal::RawMode) puts the terminal back.

use crate::monitor::Control;
use crate::monitor::hmp::{self, Answer, table};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The main thread's end.
pub(super) struct Prompt {
    typed: EventFd,
    lines: Receiver<String>,
    answers: Sender<String>,
    answer: Option<Answer>,
}

impl Prompt {
    /// Starts the editor on the process's terminal.
    ///
    /// # Errors
    /// When the host has no thread or file descriptor left.
    pub(super) fn start() -> io::Result<Prompt> {
        let typed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (to_main, lines) = channel();
        let (answers, from_main) = channel();
        let wake = typed.try_clone()?;
        let editor = editor().map_err(io::Error::other)?;
        std::thread::Builder::new()
            .name("prompt".to_owned())
            .spawn(move || converse(editor, &to_main, &wake, &from_main))?;
        Ok(Prompt { typed, lines, answers, answer: None })
    }

    /// Readable when there is a line.
    pub(super) fn typed(&self) -> &EventFd {
        &self.typed
    }

    /// Executes the line that was typed.
    pub(super) fn serve(&mut self, control: &mut Control) {
        // Empty when it was read before.
        let _ = self.typed.read();
        if let Ok(line) = self.lines.try_recv() {
            self.answer = Some(hmp::execute(control, &line));
            self.poll();
        }
    }

    /// Gives the answer once there is one.
    pub(super) fn poll(&mut self) {
        if let Some(text) = self.answer.as_mut().and_then(Answer::poll) {
            self.answer = None;
            // The thread lives as long as the process.
            let _ = self.answers.send(text);
        }
    }
}

/// Completes the names of commands.
struct Names;

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..at).unwrap_or_default();
        let fitting = table::names().filter(|name| name.starts_with(typed.trim_start()));
        let start = typed.len() - typed.trim_start().len();
        Ok((start, fitting.map(|name| format!("{name} ")).collect()))
    }
}

impl Hinter for Names {
    type Hint = String;
}
impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}

type LineEditor = Editor<Names, MemHistory>;

fn editor() -> rustyline::Result<LineEditor> {
    let config = Config::builder().auto_add_history(true).build();
    let mut editor = Editor::with_history(config, MemHistory::new())?;
    editor.set_helper(Some(Names));
    Ok(editor)
}

/// The thread.
fn converse(mut editor: LineEditor, lines: &Sender<String>, typed: &EventFd, answers: &Receiver<String>) {
    show(&hmp::banner());
    loop {
        let line = match editor.readline(hmp::PROMPT) {
            Ok(line) => line,
            // Ctrl-C gives up the line.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => {
                show("type 'quit' to end the guest\n");
                continue;
            }
            // The terminal is gone; the guest is not.
            Err(_) => return,
        };
        // A counter that is full wakes too.
        if lines.send(line).is_err() || typed.write(1).is_err() {
            return;
        }
        match answers.recv() {
            Ok(answer) => show(&answer),
            Err(_) => return,
        }
    }
}

fn show(text: &str) {
    // Whoever closed stdout does not want to read it.
    let _ = io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}
