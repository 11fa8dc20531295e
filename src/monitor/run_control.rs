//! Commands that stop, start, reset and end the machine.

use super::{Command, Context, refuse_arguments};
use std::io::{self, Write};

pub(super) const COMMANDS: &[Command] = &[
    Command { name: "stop", arguments: "", help: "stop the guest", run: stop },
    Command { name: "cont", arguments: "", help: "let a stopped guest run on", run: cont },
    Command { name: "system_reset", arguments: "", help: "reset the machine", run: system_reset },
    Command { name: "quit", arguments: "", help: "end the guest and close its disks", run: quit },
];

fn stop(context: &mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()> {
    if refuse_arguments(arguments, out)? {
        return Ok(());
    }
    match context.machine.stop() {
        Ok(()) => Ok(()),
        Err(error) => writeln!(out, "stopped, but a disk could not be written back: {error}"),
    }
}

fn cont(context: &mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()> {
    if !refuse_arguments(arguments, out)? {
        context.machine.cont();
    }
    Ok(())
}

fn system_reset(context: &mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()> {
    if !refuse_arguments(arguments, out)? {
        context.machine.request_reset();
    }
    Ok(())
}

fn quit(context: &mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()> {
    if !refuse_arguments(arguments, out)? {
        context.quit = true;
    }
    Ok(())
}
