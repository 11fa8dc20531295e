//! `info`: what the machine is and does.

use super::{Command, Context, refuse_arguments};
use crate::block::drive::Drive;
use crate::block::options::CacheMode;
use crate::vm::machine::Status;
use std::io::{self, Write};

pub(super) const COMMANDS: &[Command] = &[
    Command { name: "info status", arguments: "", help: "show whether the guest runs", run: status },
    Command { name: "info block", arguments: "[disk]", help: "show the disks, or one", run: block },
];

fn status(context: &mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()> {
    if refuse_arguments(arguments, out)? {
        return Ok(());
    }
    let word = match context.machine.status() {
        Status::Running => "running",
        Status::Paused => "paused",
    };
    writeln!(out, "VM status: {word}")
}

fn block(context: &mut Context, arguments: &str, out: &mut dyn Write) -> io::Result<()> {
    let disks = context.machine.disks().iter();
    let drives: Vec<_> = disks.map(|disk| &disk.drive).filter(|drive| names(drive, arguments)).collect();
    if drives.is_empty() && !arguments.is_empty() {
        return writeln!(out, "there is no disk '{arguments}' (type 'info block' for a list)");
    }
    for (index, drive) in drives.into_iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        describe(drive, out)?;
    }
    Ok(())
}

fn names(drive: &Drive, id: &str) -> bool {
    id.is_empty() || drive.id() == id
}

fn describe(drive: &Drive, out: &mut dyn Write) -> io::Result<()> {
    let read_only = if drive.read_only() { ", read-only" } else { "" };
    writeln!(out, "{}: {} ({}{read_only})", drive.id(), drive.filename(), drive.format())?;
    writeln!(out, "    Cache mode:       {}", cache_mode(drive.options().cache))
}

/// The three properties that QEMU shows, of which a `cache=` word is a combination.
fn cache_mode(mode: CacheMode) -> String {
    let words = [
        Some(if mode.writeback { "writeback" } else { "writethrough" }),
        mode.direct.then_some("direct"),
        mode.no_flush.then_some("ignore flushes"),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `info block` of QEMU 10.0 shows disks with these options.
    #[test]
    fn cache_modes_read_as_in_qemu() {
        let shown = ["writeback", "none", "writethrough", "directsync", "unsafe"]
            .map(|word| cache_mode(CacheMode::parse(word).unwrap()));
        let expected = [
            "writeback",
            "writeback, direct",
            "writethrough",
            "writethrough, direct",
            "writeback, ignore flushes",
        ];
        assert_eq!(shown, expected);
    }
}
