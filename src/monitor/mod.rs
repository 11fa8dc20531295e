//! The monitor: commands that inspect and control a running machine.
//!
//! ```text
//!   a line ──▶ Monitor::execute ──▶ COMMANDS (one row a command) ──▶ a function of topic ──▶ vm::machine
//!                                                                        │
//!   text  ◀────────────────────────── &mut dyn Write ◀───────────────────┘
//! ```
//!
//! A command is a row of a topic's table and a function; nothing else knows it. The monitor writes to any
//! [`Write`], so the console and a socket can have one alike. Words of commands may be many (`info block`);
//! the longest row that fits wins.

mod disks;
mod info;
pub mod line;
pub mod mux;
mod run_control;
mod snapshots;

use crate::vm::machine::Machine;
use std::io::{self, Write};

/// What a monitor prints when it waits for a command.
pub const PROMPT: &str = "(cowvm) ";

/// A row of the command table.
struct Command {
    /// The words that call it.
    name: &'static str,
    /// Its arguments, for the help.
    arguments: &'static str,
    /// One line about it, for the help.
    help: &'static str,
    run: fn(&mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()>,
}

/// What a command works on.
pub struct Context<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// Set by a command that ends the process.
    pub quit: bool,
}

const HELP: Command =
    Command { name: "help", arguments: "[command]", help: "show all commands, or one", run: help };

fn commands() -> impl Iterator<Item = &'static Command> {
    static TOPICS: [&[Command]; 5] =
        [&[HELP], info::COMMANDS, run_control::COMMANDS, disks::COMMANDS, snapshots::COMMANDS];
    TOPICS.into_iter().flatten()
}

/// Executes one line. An empty line does nothing; a line that cannot be executed is answered, not an error.
///
/// # Errors
/// When `out` does not take the answer.
pub fn execute(context: &mut Context, line: &str, out: &mut dyn Write) -> io::Result<()> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(());
    }
    match find(line) {
        Some((command, arguments)) => (command.run)(context, arguments, out),
        None => unknown(line, out),
    }
}

/// The command that `line` begins with, and the rest.
fn find(line: &str) -> Option<(&'static Command, &str)> {
    let matching = commands().filter_map(|command| Some((command, arguments(line, command.name)?)));
    matching.max_by_key(|(command, _)| command.name.len())
}

/// What follows the words of `name` in `line`, however they are spaced.
fn arguments<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    name.split(' ')
        .try_fold(line, |rest, word| {
            let rest = rest.trim_start().strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with(char::is_whitespace)).then_some(rest)
        })
        .map(str::trim)
}

fn unknown(line: &str, out: &mut dyn Write) -> io::Result<()> {
    let first = line.split_whitespace().next().unwrap_or_default();
    let group: Vec<_> = commands().filter(|command| arguments(command.name, first).is_some()).collect();
    if group.is_empty() {
        return writeln!(out, "unknown command: '{line}' (type 'help' for a list)");
    }
    group.iter().try_for_each(|command| describe(command, out))
}

fn help(_: &mut Context, name: &str, out: &mut dyn Write) -> io::Result<()> {
    let mut found: Vec<_> = commands().filter(|command| arguments(command.name, name).is_some()).collect();
    if name.is_empty() {
        found = commands().collect();
        found.sort_by_key(|command| command.name);
    }
    if found.is_empty() {
        return writeln!(out, "unknown command: '{name}' (type 'help' for a list)");
    }
    found.iter().try_for_each(|command| describe(command, out))
}

fn describe(command: &Command, out: &mut dyn Write) -> io::Result<()> {
    let call = format!("{} {}", command.name, command.arguments);
    writeln!(out, "{} -- {}", call.trim_end(), command.help)
}

/// For commands that take no arguments.
fn refuse_arguments(arguments: &str, out: &mut dyn Write) -> io::Result<bool> {
    if !arguments.is_empty() {
        writeln!(out, "this command takes no arguments: '{arguments}'")?;
    }
    Ok(!arguments.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<(&'static str, &str)> {
        find(line).map(|(command, arguments)| (command.name, arguments))
    }

    #[test]
    fn commands_are_found_by_their_words() {
        assert_eq!(found("stop"), Some(("stop", "")));
        assert_eq!(found("info   block  hda"), Some(("info block", "hda")));
        assert_eq!(found("help info block"), Some(("help", "info block")));
        assert_eq!(found("stopp"), None);
        assert_eq!(found("info"), None);
    }

    #[test]
    fn a_group_alone_lists_its_commands_and_nonsense_is_named() {
        let mut out = Vec::new();
        unknown("info", &mut out).unwrap();
        unknown("frobnicate it", &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("info block") && out.contains("info status"));
        assert!(out.ends_with("unknown command: 'frobnicate it' (type 'help' for a list)\n"));
    }

    #[test]
    fn names_are_unique_and_described() {
        let mut names: Vec<_> = commands().map(|command| command.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(commands().all(|command| !command.help.is_empty() && !command.name.contains("  ")));
    }
}
