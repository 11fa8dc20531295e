//! The table of commands: a row a command, from the topics.

use super::Call;
use crate::monitor::{Control, Error, Pending, Result};
use crate::monitor::{block_info, disks, hardware, info, media, nbd, run_control, snapshots};
use std::fmt::Write;
use std::ops::RangeInclusive;

/// A row of the command table.
pub(in crate::monitor) struct Command {
    /// The words that call it; other names behind bars.
    pub(in crate::monitor) name: &'static str,
    /// Its arguments, for the help.
    pub(in crate::monitor) arguments: &'static str,
    /// How many words it takes.
    pub(in crate::monitor) words: RangeInclusive<usize>,
    /// The letters of its flags.
    pub(in crate::monitor) flags: &'static str,
    /// One line about it, for the help.
    pub(in crate::monitor) help: &'static str,
    pub(in crate::monitor) run: Run,
}

/// What a command does.
pub(in crate::monitor) enum Run {
    /// Needs no words and has nothing to say.
    Plain(fn(&mut Control) -> Result<()>),
    /// Takes a name, or none, and has nothing to say.
    Named(fn(&mut Control, &str) -> Result<()>),
    /// Needs no words and writes text.
    Show(fn(&mut Control, &mut String) -> Result<()>),
    /// Writes text.
    Tell(fn(&mut Control, &Call, &mut String) -> Result<()>),
    /// Begins work that goes on.
    Begin(fn(&mut Control, &Call) -> Result<Pending>),
}

impl Command {
    /// A command without arguments and answer.
    pub(in crate::monitor) const fn plain(
        name: &'static str,
        help: &'static str,
        run: fn(&mut Control) -> Result<()>,
    ) -> Command {
        Command { name, arguments: "", words: 0..=0, flags: "", help, run: Run::Plain(run) }
    }

    /// A command without arguments that shows something.
    pub(in crate::monitor) const fn show(
        name: &'static str,
        help: &'static str,
        run: fn(&mut Control, &mut String) -> Result<()>,
    ) -> Command {
        Command { name, arguments: "", words: 0..=0, flags: "", help, run: Run::Show(run) }
    }
}

const OWN: &[Command] = &[Command {
    name: "help|?",
    arguments: "[cmd]",
    words: 0..=2,
    flags: "",
    help: "show the help",
    run: Run::Tell(|_, call, out| {
        help(&call.words.join(" "), out);
        Ok(())
    }),
}];

fn commands() -> impl Iterator<Item = &'static Command> {
    static TOPICS: [&[Command]; 9] = [
        OWN,
        info::COMMANDS,
        block_info::COMMANDS,
        hardware::COMMANDS,
        run_control::COMMANDS,
        disks::COMMANDS,
        media::COMMANDS,
        snapshots::COMMANDS,
        nbd::COMMANDS,
    ];
    TOPICS.into_iter().flatten()
}

/// All names, for completion.
pub fn names() -> impl Iterator<Item = &'static str> {
    commands().filter_map(|command| command.name.split('|').next())
}

/// Calls the command that `line` names.
pub(super) fn call(control: &mut Control, line: &str, out: &mut String) -> Result<Option<Pending>> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    let Some((command, arguments)) = find(line) else {
        return unknown(line, out).map(|()| None);
    };
    let call = Call::parse(command.name, arguments, command.flags)?;
    let usage = |what: &str| {
        let name = command.name.split('|').next().unwrap_or_default();
        Error::plain(format!("{}: {what}\nTry \"help {name}\" for more information", command.name))
    };
    match call.words.len() {
        count if count > *command.words.end() => Err(usage("extraneous characters at the end of line")),
        count if count < *command.words.start() => {
            let expected = command.arguments.split(' ').filter(|word| !word.starts_with("[-"));
            Err(usage(&format!("{} expected", expected.collect::<Vec<_>>().join(" "))))
        }
        _ => match command.run {
            Run::Plain(run) => run(control).map(|()| None),
            Run::Named(run) => run(control, call.word(0)).map(|()| None),
            Run::Show(run) => run(control, out).map(|()| None),
            Run::Tell(run) => run(control, &call, out).map(|()| None),
            Run::Begin(run) => run(control, &call).map(Some),
        },
    }
}

/// The command that `line` begins with, and the rest. The longest name that fits wins.
fn find(line: &str) -> Option<(&'static Command, &str)> {
    let fits = |command: &'static Command| {
        let rests = command.name.split('|').filter_map(|name| behind(line, name));
        rests.min_by_key(|rest| rest.len()).map(|rest| (command, rest))
    };
    commands().filter_map(fits).min_by_key(|(_, rest)| rest.len())
}

/// What follows the words of `name` in `line`, however they are spaced.
fn behind<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    name.split(' ')
        .try_fold(line, |rest, word| {
            let rest = rest.trim_start().strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with(char::is_whitespace)).then_some(rest)
        })
        .map(str::trim)
}

/// A line that begins no command, or one that names a group of them.
fn unknown(line: &str, out: &mut String) -> Result<()> {
    if line.split_whitespace().count() == 1 && describe_group(line, out) {
        return Ok(());
    }
    Err(Error::plain(format!("unknown command: '{line}'")))
}

fn help(name: &str, out: &mut String) {
    if !describe_group(name, out) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "unknown command: '{name}'");
    }
}

/// Shows all commands whose names begin with these words; false if there are none.
fn describe_group(words: &str, out: &mut String) -> bool {
    let in_group = |command: &&Command| command.name.split('|').any(|name| behind(name, words).is_some());
    let mut found: Vec<_> = commands().filter(|command| words.is_empty() || in_group(command)).collect();
    found.sort_by_key(|command| command.name);
    for command in &found {
        // As above.
        let _ = writeln!(out, "{} {} -- {}", command.name, command.arguments, command.help);
    }
    !found.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<(&'static str, &str)> {
        find(line).map(|(command, arguments)| (command.name, arguments))
    }

    #[test]
    fn commands_are_found_by_their_words_and_other_names() {
        assert_eq!(found("stop"), Some(("stop|s", "")));
        assert_eq!(found("q"), Some(("quit|q", "")));
        assert_eq!(found("info   block  hda"), Some(("info block", "hda")));
        assert_eq!(found("info blockstats"), Some(("info blockstats", "")));
        assert_eq!(found("help info block"), Some(("help|?", "info block")));
        assert_eq!(found("stopp"), None);
        assert_eq!(found("info"), None);
    }

    #[test]
    fn a_group_alone_lists_its_commands_and_nonsense_is_named() {
        let mut out = String::new();
        unknown("info", &mut out).unwrap();
        assert!(out.contains("info block [") && out.contains("info status"));
        assert!(!out.contains("stop"));
        let error = unknown("frobnicate it", &mut out).unwrap_err();
        assert_eq!(error.to_string(), "unknown command: 'frobnicate it'");
    }

    #[test]
    fn names_are_unique_and_described() {
        let mut names: Vec<_> = commands().flat_map(|command| command.name.split('|')).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(commands().all(|command| !command.help.is_empty() && !command.name.contains("  ")));
    }
}
