//! What a command says: results on standard output, failures on standard error behind the program's name.
//!
//! Both may be JSON (docs/imgtool.md has the schema): results with `--output=json`, failures with `--errors=json` in
//! front of the command. `--output=json` of a command for which qemu-img has no such option means both.

use super::getopt::{Flag, Mistake};
use super::{Command, Program, help, json};
use crate::block::Error;
use crate::util::text::{self, say};
use serde_json::{Value, json};
use std::io::{self, Write};

/// The form of results (`--output`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}

impl Form {
    /// Reads `human` or `json`.
    pub(super) fn parse(word: &str) -> Result<Form, Failure> {
        match word {
            "human" => Ok(Form::Human),
            "json" => Ok(Form::Json),
            _ => Err(Failure::Usage(format!("--output expects 'human' or 'json' not '{word}'"))),
        }
    }
}

/// The option that gives a result, and a failure, that form where qemu-img has only words.
pub(super) const OUTPUT: Flag =
    Flag::value("output", "human|json", "form of the result, and of a failure").in_full();

/// Whether the line of a command asks for [`OUTPUT`] as JSON.
pub(super) fn wants_json(command: &Command, words: &[String]) -> bool {
    let asks = |pair: &[String]| pair[0] == "--output" && pair[1] == "json";
    command.flags.iter().any(|flag| flag.name == OUTPUT.name && flag.is_in_full())
        && (words.iter().any(|word| word == "--output=json") || words.windows(2).any(asks))
}

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// A mistake in its options.
    Options(Mistake),
    /// A mistake in the command line as a whole.
    Usage(String),
    /// Anything else: what to say, and what to do about it.
    Other { message: String, remedy: Option<String>, code: u8 },
    /// What went wrong, and what could not be done because of it.
    Twice { first: String, then: String },
    /// `--help`: not a failure, but the end.
    Help,
}

impl Failure {
    /// A failure with nothing but a message.
    pub(super) fn message(message: impl Into<String>) -> Failure {
        Failure::Other { message: message.into(), remedy: None, code: 1 }
    }

    /// A failure of the block layer, in its own words.
    pub(super) fn plain(error: &Error) -> Failure {
        Failure::Other {
            message: error.message().to_owned(),
            remedy: error.hint().map(str::to_owned),
            code: 1,
        }
    }

    /// A failure of the block layer, said after `prefix` and a colon.
    pub(super) fn block(prefix: &str, error: &Error) -> Failure {
        Failure::Other {
            message: format!("{prefix}: {}", error.message()),
            remedy: error.hint().map(str::to_owned),
            code: 1,
        }
    }

    /// The image `filename` that cannot be opened.
    pub(super) fn open(filename: &str, error: &Error) -> Failure {
        Failure::block(&format!("Could not open '{filename}'"), error)
    }

    /// The same, with another exit status than 1.
    pub(super) fn with_code(self, code: u8) -> Failure {
        match self {
            Failure::Other { message, remedy, .. } => Failure::Other { message, remedy, code },
            other => other,
        }
    }

    /// Says it, and returns the exit status.
    pub(super) fn report(&self, program: &Program, command: Option<&Command>) -> u8 {
        match (self, program.errors()) {
            (Failure::Help, _) => help::show(program, command),
            (_, Form::Human) => self.report_text(program, command),
            (_, Form::Json) => {
                say(&json::to_line(&json!({"error": self.to_json(command)})));
                self.status()
            }
        }
    }

    /// The exit status.
    fn status(&self) -> u8 {
        match self {
            Failure::Other { code, .. } => *code,
            _ => 1,
        }
    }

    fn to_json(&self, command: Option<&Command>) -> Value {
        let (message, remedy) = match self {
            Failure::Options(mistake) => (mistake.to_string(), None),
            Failure::Usage(message) => (message.clone(), None),
            Failure::Twice { first, then } => (format!("{first}\n{then}"), None),
            Failure::Other { message, remedy, .. } => (message.clone(), remedy.clone()),
            Failure::Help => (String::new(), None),
        };
        let command = command.map(|command| command.name);
        json!({"command": command, "message": message, "remedy": remedy, "status": self.status()})
    }

    fn report_text(&self, program: &Program, command: Option<&Command>) -> u8 {
        let name = program.name();
        let full = command.map_or(name.to_owned(), |command| format!("{name} {}", command.name));
        match self {
            Failure::Help => {}
            Failure::Options(mistake) => {
                say(&format!("{full}: {mistake}\nTry '{full} --help' for more info"))
            }
            Failure::Usage(message) => say(&format!("{name}: {message}\nTry '{full} --help' for more info")),
            Failure::Twice { first, then } => say(&format!("{name}: {first}\n{name}: {then}")),
            Failure::Other { message, remedy, .. } => {
                say(&format!("{name}: {message}"));
                match remedy {
                    Some(remedy) if program.gives_remedies() => say(&format!("{name}: {remedy}")),
                    _ => {}
                }
            }
        }
        self.status()
    }
}

impl From<Mistake> for Failure {
    fn from(mistake: Mistake) -> Failure {
        Failure::Options(mistake)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::message(Error::from_io(error).message())
    }
}

/// A result as JSON on standard output.
pub(super) fn write_json(value: &Value) -> io::Result<()> {
    write(&json::to_text(value))
}

/// Text on standard output, at once.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(&text::shown(text))?;
    out.flush()
}
