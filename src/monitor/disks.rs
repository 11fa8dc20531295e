//! What changes disks that are in use: size, external snapshots, commit.

use super::hmp::table::{Command, Run};
use super::qmp::{self, Argument, Arguments, Kind, Reply};
use super::{Control, Error, Pending, Result, block_info};
use crate::block;
use crate::util::size::parse_size_in;
use crate::vm::machine::Disk;

/// What a size without a suffix counts in the human monitor, in bytes.
const MIB: u64 = 1 << 20;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "block_resize",
        arguments: "device size",
        words: 2..=2,
        flags: "",
        help: "change the size of a disk (MiB, or with a suffix)",
        run: Run::Begin(|control, call| {
            let size = parse_size_in(call.word(1), MIB).map_err(|_| Error::plain("invalid size"))?;
            resize(control, call.word(0), size)
        }),
    },
    Command {
        name: "commit",
        arguments: "device|all",
        words: 1..=1,
        flags: "",
        help: "write what a disk has above its backing file (as in snapshot mode) back into that",
        run: Run::Begin(|control, call| match call.word(0) {
            "all" => Ok(commit_all(control)),
            name => commit(control, name),
        }),
    },
    Command {
        name: "snapshot_blkdev",
        arguments: "[-n] device new-image-file [format]",
        words: 2..=3,
        flags: "n",
        help: "go on in a new overlay; the image of before stays as it is (-n: the overlay exists already)",
        run: Run::Begin(|control, call| {
            let format = call.words.get(2).map(String::as_str);
            take_overlay(control, call.word(0), call.word(1), format, call.has('n'))
        }),
    },
];

const NODE: Argument = Argument::optional("node-name", Kind::Text);

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command {
        name: "block_resize",
        arguments: &[qmp::DEVICE, NODE, Argument::required("size", Kind::Number)],
        run: |control, arguments| {
            let size = arguments.number("size").and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| Error::new("Parameter 'size' expects a >0 size"))?;
            Ok(Reply::Pending(resize(control, device(arguments)?, size)?))
        },
    },
    qmp::Command {
        name: "blockdev-snapshot-sync",
        arguments: &[
            qmp::DEVICE,
            NODE,
            Argument::required("snapshot-file", Kind::Text),
            Argument::optional("snapshot-node-name", Kind::Text),
            Argument::optional("format", Kind::Text),
            Argument::optional("mode", Kind::Text),
        ],
        run: |control, arguments| {
            let reuse = match arguments.text("mode") {
                None | Some("absolute-paths") => false,
                Some("existing") => true,
                Some(other) => {
                    return Err(Error::new(format!("Parameter 'mode' does not accept value '{other}'")));
                }
            };
            let file = arguments.text("snapshot-file").unwrap_or_default();
            let format = arguments.text("format");
            Ok(Reply::Pending(take_overlay(control, device(arguments)?, file, format, reuse)?))
        },
    },
    qmp::Command {
        name: "block-commit",
        arguments: &[
            Argument::required("device", Kind::Text),
            Argument::optional("job-id", Kind::Text),
            Argument::optional("auto-dismiss", Kind::Switch),
        ],
        run: |control, arguments| {
            let name = arguments.text("device").unwrap_or_default();
            let id = arguments.text("job-id").unwrap_or(name).to_owned();
            control.check_job_id(&id)?;
            let pending = commit(control, name)?;
            control.add_job(&id, "commit", arguments.switch("auto-dismiss").unwrap_or(true), pending);
            Ok(Reply::nothing())
        },
    },
];

/// The disk that `device` or `node-name` names.
fn device<'a>(arguments: &Arguments<'a>) -> Result<&'a str> {
    let node = arguments.text("node-name").map(block_info::device_of);
    let name = arguments.text("device").filter(|name| !name.is_empty()).or(node);
    name.ok_or_else(|| Error::new("Need exactly one of 'device' and 'node-name'"))
}

/// Changes the size of a disk to `size` bytes.
fn resize(control: &Control, name: &str, size: u64) -> Result<Pending> {
    let disk = find(control, name)?;
    Ok(control.start_on(disk, move |local| async move { local.resize(size).await }))
}

/// Continues in a new qcow2 overlay, or one that exists.
fn take_overlay(
    control: &Control,
    name: &str,
    file: &str,
    format: Option<&str>,
    reuse: bool,
) -> Result<Pending> {
    let disk = find(control, name)?;
    if let Some(other) = format.filter(|format| *format != "qcow2") {
        return Err(Error::new(format!("Invalid snapshot format '{other}': overlays are qcow2")));
    }
    let file = file.to_owned();
    Ok(control.start_on(disk, move |local| async move { local.take_overlay(&file, reuse).await }))
}

/// Writes what one disk has above its backing file back.
fn commit(control: &Control, name: &str) -> Result<Pending> {
    Ok(begin_commit(control, &[control.disk(name)?]))
}

/// The same for all disks that have a backing file.
pub fn commit_all(control: &Control) -> Pending {
    let has_backing = |disk: &&Disk| {
        let asked = Control::ask(&disk.drive, |local| async move { local.has_backing() });
        // One that does not answer has its error reported when it is tried.
        asked.unwrap_or(true) && !disk.drive.read_only()
    };
    let disks: Vec<_> = control.machine.disks().iter().filter(has_backing).collect();
    begin_commit(control, &disks)
}

fn begin_commit(control: &Control, disks: &[&Disk]) -> Pending {
    let describe = |name: &str, error: block::Error| {
        Error::plain(format!("'commit' error for '{name}': {}", Error::from(error)))
    };
    control.start(disks, describe, |local| async move { local.commit().await })
}

fn find<'a>(control: &'a Control, name: &str) -> Result<&'a Disk> {
    let message = || Error::new(format!("Cannot find device='{name}' nor node-name=''"));
    control.disk(name).map_err(|_| message())
}
