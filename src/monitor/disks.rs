//! Commands that change the disks.

use super::{Command, Context};
use crate::util::size::parse_size_in;
use std::io::{self, Write};

/// What a size without a suffix counts, in bytes.
const MIB: u64 = 1 << 20;

pub(super) const COMMANDS: &[Command] = &[Command {
    name: "block_resize",
    arguments: "DISK SIZE",
    help: "change the size of a disk (MiB, or with a suffix)",
    run: block_resize,
}];

fn block_resize(context: &mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()> {
    let Some((name, size)) = arguments.split_once(char::is_whitespace) else {
        return writeln!(
            out,
            "block_resize wants the name of a disk and a size (type 'info block' for the names)"
        );
    };
    let Some(disk) = context.machine.disks().iter().find(|disk| disk.drive.id() == name) else {
        return writeln!(out, "there is no disk '{name}' (type 'info block' for a list)");
    };
    let Ok(size) = parse_size_in(size.trim(), MIB) else {
        return writeln!(out, "'{}' is not a size: write MiB, or a number and k, M, G, T", size.trim());
    };
    match disk.resize(size) {
        Ok(()) => Ok(()),
        Err(error) => writeln!(out, "{name} keeps its size: {error}"),
    }
}
