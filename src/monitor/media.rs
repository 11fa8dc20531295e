//! Media of removable drives: `change`, `eject`.

use super::hmp::table::{Command, Run};
use super::qmp::{self, Argument, Arguments, Kind, Reply};
use super::{Control, Error, Pending, Result};
use crate::block::drive::Medium;
use crate::vm::machine::Disk;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "eject",
        arguments: "[-f] device",
        words: 1..=1,
        flags: "f",
        help: "take a medium out (-f: also one whose last writes fail)",
        run: Run::Begin(|control, call| eject(control, call.word(0), call.has('f'))),
    },
    Command {
        name: "change",
        arguments: "device [-f] filename [format [read-only-mode]]",
        words: 2..=5,
        flags: "f",
        help: "put another medium in (read-only-mode: retain, read-only or read-write)",
        run: Run::Begin(|control, call| {
            let mut words = call.words.iter().map(String::as_str);
            let name = words.next().unwrap_or_default();
            let mut words = words.skip_while(|word| *word == "-f");
            let filename = words.next().ok_or_else(|| Error::plain("change: filename expected"))?.to_owned();
            let format = words.next().map(str::to_owned);
            let read_only = words.next().map_or(Ok(None), |mode| {
                read_only(mode).ok_or_else(|| Error::new(format!("invalid parameter value: {mode}")))
            })?;
            change(control, name, Medium { filename, format, read_only })
        }),
    },
];

const ID: Argument = Argument::optional("id", Kind::Text);
const FORCE: Argument = Argument::optional("force", Kind::Switch);

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command {
        name: "eject",
        arguments: &[qmp::DEVICE, ID, FORCE],
        run: |control, arguments| {
            let force = arguments.switch("force").unwrap_or(false);
            Ok(Reply::Pending(eject(control, device(arguments)?, force)?))
        },
    },
    qmp::Command {
        name: "blockdev-change-medium",
        arguments: &[
            qmp::DEVICE,
            ID,
            Argument::required("filename", Kind::Text),
            Argument::optional("format", Kind::Text),
            FORCE,
            Argument::optional("read-only-mode", Kind::Text),
        ],
        run: |control, arguments| {
            let read_only = arguments.text("read-only-mode").map_or(Ok(None), |mode| {
                let refusal = || format!("Parameter 'read-only-mode' does not accept value '{mode}'");
                read_only(mode).ok_or_else(|| Error::new(refusal()))
            })?;
            let filename = arguments.text("filename").unwrap_or_default().to_owned();
            let format = arguments.text("format").map(str::to_owned);
            let medium = Medium { filename, format, read_only };
            Ok(Reply::Pending(change(control, device(arguments)?, medium)?))
        },
    },
];

fn device<'a>(arguments: &Arguments<'a>) -> Result<&'a str> {
    match (arguments.text("device"), arguments.text("id")) {
        (Some(name), None) | (None, Some(name)) => Ok(name),
        _ => Err(Error::new("Need exactly one of 'device' and 'id'")),
    }
}

/// Whether the new medium is read-only; `Some(None)` as the one before, `None` for a word that there is not.
fn read_only(mode: &str) -> Option<Option<bool>> {
    match mode {
        "retain" => Some(None),
        "read-only" => Some(Some(true)),
        "read-write" => Some(Some(false)),
        _ => None,
    }
}

fn change(control: &Control, name: &str, medium: Medium) -> Result<Pending> {
    if medium.filename.is_empty() {
        return Err(Error::new("The 'file' block driver requires a file name"));
    }
    let disk = removable(control, name)?;
    Ok(control.start_on(disk, move |local| async move { local.change_medium(&medium).await }))
}

fn eject(control: &Control, name: &str, force: bool) -> Result<Pending> {
    let disk = removable(control, name)?;
    Ok(control.start_on(disk, move |local| async move { local.eject(force).await }))
}

/// The removable drive of that name. What was meant for the medium that is in must not meet another one.
fn removable<'a>(control: &'a Control, name: &str) -> Result<&'a Disk> {
    let disk = control
        .disk(name)
        .map_err(|_| Error::of_class("DeviceNotFound", format!("Device '{name}' not found")))?;
    if disk.drive.tray().is_none() {
        return Err(Error::new(format!("Device '{name}' is not removable")));
    }
    match control.failing.contains_key(name) {
        true => Err(Error::new(format!(
            "Device '{name}' has stopped the guest: its requests wait to be done again (type 'cont' or 'system_reset')"
        ))),
        false => Ok(disk),
    }
}
