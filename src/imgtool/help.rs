//! Help, made from the tables of commands and options.

use super::getopt::Flag;
use super::{COMMANDS, Command, Program, STANDARD, output};
use std::fmt::Write;

/// Prints the help of a command, or of the tool; returns the exit status.
pub(super) fn show(program: &Program, command: Option<&Command>) -> u8 {
    let text = match command {
        Some(command) => of_command(program, command),
        None => of_tool(program),
    };
    u8::from(output::write(&text).is_err())
}

/// Prints the version; returns the exit status.
pub(super) fn show_version() -> u8 {
    u8::from(output::write(&version()).is_err())
}

fn version() -> String {
    format!("cowvm imgtool version {} (works like qemu-img 10.0.2)\n", env!("CARGO_PKG_VERSION"))
}

fn of_tool(program: &Program) -> String {
    let name = program.name();
    let mut text = version();
    text += &format!(
        "Makes, inspects and converts disk images.\n\n\
         Usage: {name} [standard options] COMMAND [command options]\n\n\
         Never change an image that a running machine or another program uses, and do not trust what is read \
         of one that is being changed.\n\nStandard options:\n"
    );
    text.extend(STANDARD.iter().map(of_flag));
    text += &format!("\nCommands ('{name} COMMAND --help' tells their options):\n");
    for command in COMMANDS {
        text += &format!("  {:<10} {}\n", command.name, command.summary);
    }
    text += "\nSupported image formats: luks qcow2 raw\n";
    text
}

fn of_command(program: &Program, command: &Command) -> String {
    let mut text =
        format!("{}.\n\nUsage: {} {} {}\n\n", command.summary, program.name(), command.name, command.usage);
    text += "Options:\n";
    text.extend(command.flags.iter().map(of_flag));
    for (operand, meaning) in command.operands {
        text += &format!("  {operand}\n      {meaning}\n");
    }
    text
}

fn of_flag(flag: &Flag) -> String {
    let mut text = String::from("  ");
    if let Some(short) = flag.short {
        // Writing to a String cannot fail.
        let _ = write!(text, "-{short}, ");
    }
    text += &format!("--{}", flag.name);
    match flag.value {
        Some(value) if flag.is_maybe() => text += &format!("[={value}]"),
        Some(value) => text += &format!(" {value}"),
        None => {}
    }
    text + &format!("\n      {}\n", flag.help)
}
