//! The table of commands: a row a command, from the topics.

use super::{Argument, Arguments, Kind, Reply, not_found};
use crate::monitor::{Control, Result, hmp};
use crate::monitor::{block_info, disks, info, jobs, media, nbd, run_control, snapshots};
use serde_json::{Map, Value, json};

/// A row of the command table.
pub(in crate::monitor) struct Command {
    pub(in crate::monitor) name: &'static str,
    pub(in crate::monitor) arguments: &'static [Argument],
    pub(in crate::monitor) run: fn(&mut Control, &Arguments) -> Result<Reply>,
}

impl Command {
    /// A command without arguments.
    pub(in crate::monitor) const fn plain(
        name: &'static str,
        run: fn(&mut Control, &Arguments) -> Result<Reply>,
    ) -> Command {
        Command { name, arguments: &[], run }
    }
}

const OWN: &[Command] = &[
    Command {
        name: "query-commands",
        arguments: &[],
        run: |_, _| {
            let names = commands().map(|command| json!({"name": command.name}));
            Ok(Reply::Value(names.collect()))
        },
    },
    Command {
        name: "human-monitor-command",
        arguments: &[
            Argument::required("command-line", Kind::Text),
            Argument::optional("cpu-index", Kind::Number),
        ],
        run: |control, arguments| {
            let line = arguments.text("command-line").unwrap_or_default();
            Ok(Reply::Text(hmp::execute(control, line)))
        },
    },
];

fn commands() -> impl Iterator<Item = &'static Command> {
    static TOPICS: [&[Command]; 9] = [
        OWN,
        run_control::QMP,
        info::QMP,
        block_info::QMP,
        disks::QMP,
        media::QMP,
        jobs::QMP,
        snapshots::QMP,
        nbd::QMP,
    ];
    TOPICS.into_iter().flatten()
}

/// Calls the command of that name.
pub(super) fn call(control: &mut Control, name: &str, arguments: &Map<String, Value>) -> Result<Reply> {
    let command = commands().find(|command| command.name == name);
    let command = command.ok_or_else(|| not_found(format!("The command {name} has not been found")))?;
    (command.run)(control, &Arguments::check(arguments, command.arguments)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = commands().map(|command| command.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
