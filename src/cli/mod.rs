//! The command line: which command, with which arguments.
//!
//! ```text
//!   cowvm run …                    ──▶ run ──▶ vm::builder ──▶ session
//!   cowvm imgtool …, qemu-img …    ──▶ imgtool
//!   cowvm nbd …, qemu-nbd …        ──▶ nbd ──▶ nbd_server
//! ```

mod argv;
mod drive;
mod keyboard;
mod monitors;
mod nbd;
mod prompt;
mod run;
mod session;
mod signals;
mod terminal;

use crate::imgtool;
use crate::util::text;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Long options may be written with one dash: cowvm run -hda disk.qcow2 -smp 4.
While a guest runs: Ctrl-A H shows the keys, Ctrl-A X ends it, Ctrl-A C is the monitor.";

/// A tool of QEMU's that the program stands in for, when it is called by the tool's name or with the command's.
struct Tool {
    drop_in: &'static str,
    command: &'static str,
    /// What it calls itself otherwise.
    title: &'static str,
    run: fn(&str, Vec<OsString>) -> ExitCode,
}

const TOOLS: &[Tool] = &[
    Tool { drop_in: "qemu-img", command: "imgtool", title: "cowvm imgtool", run: imgtool::main },
    Tool { drop_in: "qemu-nbd", command: "nbd", title: "cowvm nbd", run: nbd::main },
];

#[derive(Parser)]
#[command(name = "cowvm", version, about, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a guest
    #[command(after_help = AFTER_HELP)]
    Run(Box<run::RunArgs>),
    /// Make, inspect and convert disk images; works like qemu-img
    #[command(disable_help_flag = true)]
    Imgtool {
        /// As for qemu-img; see: cowvm imgtool --help
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Serve a disk image to NBD clients; works like qemu-nbd
    #[command(disable_help_flag = true)]
    Nbd {
        /// As for qemu-nbd; see: cowvm nbd --help
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// Runs the command that `arguments` (the program's name first) ask for; what the process exits with.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    if let Some(status) = as_tool(&arguments) {
        return status;
    }
    let cli = match Cli::try_parse_from(qemu_spelling(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            // Without stdout or stderr there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Imgtool { words } => return imgtool::main("cowvm imgtool", words),
        Command::Nbd { words } => return nbd::main("cowvm nbd", words),
    };
    result.unwrap_or_else(|error| {
        text::say(&format!("cowvm: {error}"));
        ExitCode::FAILURE
    })
}

/// Does the work of a tool, if the program was called as it: its options are none of ours.
fn as_tool(arguments: &[OsString]) -> Option<ExitCode> {
    let (program, words) = arguments.split_first()?;
    let name = Path::new(program).file_name();
    if let Some(tool) = TOOLS.iter().find(|tool| name == Some(OsStr::new(tool.drop_in))) {
        return Some((tool.run)(tool.drop_in, words.to_vec()));
    }
    let (command, words) = words.split_first()?;
    let tool = TOOLS.iter().find(|tool| command == tool.command)?;
    Some((tool.run)(tool.title, words.to_vec()))
}

/// Lets `cowvm run` be written with one dash.
fn qemu_spelling(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let mut cli = Cli::command();
    cli.build();
    let name = arguments.get(1).and_then(|name| name.to_str());
    if let Some(command) = name.and_then(|name| cli.find_subcommand(name)) {
        let rest = arguments.split_off(2);
        arguments.extend(argv::with_two_dashes(command, rest));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(qemu_spelling(line.split(' ').map(OsString::from).collect()))
    }

    #[test]
    fn options_are_taken_with_one_dash_or_two() {
        for line in [
            "cowvm run -hda a -hdb b -smp 4 -m 1G -kernel k -initrd i -append x -no-reboot -U",
            "cowvm run --hda a --hdb b --smp 4 -m 1G --kernel k --initrd i --append -x --no-reboot --force-share",
            "cowvm run -snapshot -monitor none -monitor unix:m,server,nowait -qmp tcp::1,server,nowait -echr 1 a",
            "cowvm run -drive file=a,if=virtio --drive file=b disk.img",
            "cowvm run",
        ] {
            assert!(parsed(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for line in ["cowvm run -hda a b", "cowvm run -initrd i", "cowvm run a b", "cowvm run -hda", "cowvm"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
