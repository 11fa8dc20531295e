//! The human monitor: lines of words, answers in text. Its prompt, echo and layout are those of QEMU's, which
//! scripts wait for.
//!
//! ```text
//!   bytes ─▶ line::Editor ─▶ arguments ─▶ table ─▶ a topic's function ─▶ text, prompt
//!                 └ echo
//! ```

mod arguments;
pub mod line;
pub mod table;

pub(super) use arguments::Call;

use super::{Control, Dialogue, Error, Pending};
use crate::util::text;
use line::Editor;
use serde_json::Value;
use std::collections::VecDeque;

/// What a monitor prints when it waits for a command.
pub const PROMPT: &str = "(qemu) ";

/// What a monitor says first.
pub fn banner() -> String {
    format!("cowvm {} monitor - type 'help' for more information\n", env!("CARGO_PKG_VERSION"))
}

/// The answer to a line, as far as there is one yet.
#[derive(Default)]
pub struct Answer {
    text: String,
    pending: Option<Pending>,
}

impl Answer {
    /// The whole text, once the work behind it is done.
    pub fn poll(&mut self) -> Option<String> {
        if let Some(pending) = &mut self.pending {
            if let Err(error) = pending.poll()? {
                self.text.push_str(&say(&error));
            }
            self.pending = None;
        }
        Some(std::mem::take(&mut self.text))
    }
}

/// Executes one line. An empty line does nothing.
pub fn execute(control: &mut Control, line: &str) -> Answer {
    let mut answer = Answer::default();
    match table::call(control, line, &mut answer.text) {
        Ok(pending) => answer.pending = pending,
        Err(error) => answer.text.push_str(&say(&error)),
    }
    answer
}

fn say(error: &Error) -> String {
    match error.plain {
        true => format!("{error}\n"),
        false => format!("Error: {error}\n"),
    }
}

/// A user of the human monitor.
pub struct Hmp {
    editor: Editor,
    /// It is shown what it sends.
    echo: bool,
    /// Its lines end with a carriage return too.
    returns: bool,
    answer: Option<Answer>,
    /// What was sent while a command was under way.
    waiting: VecDeque<u8>,
}

impl Hmp {
    /// A user at the other end of a socket, which is taken for a terminal.
    pub fn for_socket() -> Hmp {
        Hmp::new(true, true)
    }

    /// A user of the console's terminal, which turns line feeds into what it needs itself.
    pub fn for_console() -> Hmp {
        Hmp::new(true, false)
    }

    /// A script on a pipe.
    pub fn for_script() -> Hmp {
        Hmp::new(false, false)
    }

    fn new(echo: bool, returns: bool) -> Hmp {
        Hmp { editor: Editor::default(), echo, returns, answer: None, waiting: VecDeque::new() }
    }

    fn typed(&mut self, byte: u8, control: &mut Control, out: &mut Vec<u8>) {
        let mut echo = Vec::new();
        let line = self.editor.feed(byte, &mut echo);
        if self.echo {
            self.push_lines(&echo, out);
        }
        if let Some(line) = line {
            self.answer = Some(execute(control, &line));
            self.finish_answer(out);
        }
    }

    fn push_lines(&self, text: &[u8], out: &mut Vec<u8>) {
        for &byte in text {
            if byte == b'\n' && self.returns {
                out.push(b'\r');
            }
            out.push(byte);
        }
    }

    fn finish_answer(&mut self, out: &mut Vec<u8>) {
        let Some(text) = self.answer.as_mut().and_then(Answer::poll) else { return };
        self.answer = None;
        self.push_lines(&text::to_bytes(&text), out);
        out.extend(PROMPT.as_bytes());
    }
}

impl Dialogue for Hmp {
    fn greeting(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.push_lines(banner().as_bytes(), &mut out);
        out.extend(PROMPT.as_bytes());
        out
    }

    fn feed(&mut self, bytes: &[u8], control: &mut Control, out: &mut Vec<u8>) {
        self.waiting.extend(bytes);
        while self.answer.is_none() && control.wants_quit().is_none() {
            let Some(byte) = self.waiting.pop_front() else { return };
            self.typed(byte, control, out);
        }
    }

    fn poll(&mut self, control: &mut Control, out: &mut Vec<u8>) {
        self.finish_answer(out);
        self.feed(&[], control, out);
    }

    fn is_busy(&self) -> bool {
        self.answer.is_some()
    }

    fn tell(&mut self, _event: &Value, _out: &mut Vec<u8>) {}
}
