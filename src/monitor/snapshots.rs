//! `savevm`, `loadvm`, `delvm`, `info snapshots`: snapshots of the whole machine.

use super::hmp::table::{Command, Run};
use super::qmp::{self, Argument, Arguments, Kind, Reply};
use super::{Control, Error, Result, block_info};
use crate::block::graph::driver::SnapshotInfo;
use crate::util::time::local_date;
use crate::vm::snapshots::SnapshotList;

pub(super) const COMMANDS: &[Command] = &[
    command("savevm", "[tag]", 0, "take a VM snapshot, or replace one", save),
    command("loadvm", "tag|id", 1, "go back to a VM snapshot", load),
    command("delvm", "tag|id", 1, "remove a VM snapshot", delete),
    Command::show("info snapshots", "show the VM snapshots", |control, out| {
        match control.machine.list_snapshots() {
            Ok(list) => out.push_str(&show(&list)),
            Err(error) => return Err(Error::plain(error.to_string())),
        }
        Ok(())
    }),
];

/// A command that takes a name, which may be missing where `least` is 0.
const fn command(
    name: &'static str,
    arguments: &'static str,
    least: usize,
    help: &'static str,
    run: fn(&mut Control, &str) -> Result<()>,
) -> Command {
    Command { name, arguments, words: least..=1, flags: "", help, run: Run::Named(run) }
}

const JOB: Argument = Argument::required("job-id", Kind::Text);
const TAG: Argument = Argument::required("tag", Kind::Text);
const VM_STATE: Argument = Argument::required("vmstate", Kind::Text);
const DEVICES: Argument = Argument::required("devices", Kind::List);

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command {
        name: "snapshot-save",
        arguments: &[JOB, TAG, VM_STATE, DEVICES],
        run: |control, arguments| job(control, "snapshot-save", arguments, save),
    },
    qmp::Command {
        name: "snapshot-load",
        arguments: &[JOB, TAG, VM_STATE, DEVICES],
        run: |control, arguments| job(control, "snapshot-load", arguments, load),
    },
    qmp::Command {
        name: "snapshot-delete",
        arguments: &[JOB, TAG, DEVICES],
        run: |control, arguments| job(control, "snapshot-delete", arguments, delete),
    },
];

fn save(control: &mut Control, tag: &str) -> Result<()> {
    Ok(control.machine.save_snapshot(Some(tag)).map(drop)?)
}

fn load(control: &mut Control, which: &str) -> Result<()> {
    Ok(control.machine.load_snapshot(which)?)
}

fn delete(control: &mut Control, which: &str) -> Result<()> {
    Ok(control.machine.delete_snapshot(which)?)
}

/// Does something to a snapshot as a job. A snapshot is always of all writable disks; the ones that are named must be
/// there.
fn job(
    control: &mut Control,
    kind: &'static str,
    arguments: &Arguments,
    work: fn(&mut Control, &str) -> Result<()>,
) -> Result<Reply> {
    let (id, tag) = (arguments.text("job-id").unwrap_or_default(), arguments.text("tag").unwrap_or_default());
    let nodes = arguments.list("devices").into_iter().chain(arguments.text("vmstate"));
    let missing = nodes.into_iter().find(|node| control.disk(block_info::device_of(node)).is_err());
    control.check_job_id(id)?;
    control.run_job(id, kind, |control| match missing {
        Some(node) => Err(Error::new(format!("No block device node '{node}'"))),
        None => work(control, tag),
    });
    Ok(Reply::nothing())
}

/// The list as users know it from QEMU's manual; below it, what cannot be loaded.
fn show(list: &SnapshotList) -> String {
    let mut text = match (&list.complete[..], &list.devices[..]) {
        ([], _) | (_, []) => "There is no snapshot available.\n".to_owned(),
        (snapshots, devices @ [first, ..]) => {
            let title = format!("Snapshot devices: {}\nSnapshot list (from {first}):\n", devices.join(" "));
            title + &table(snapshots.iter())
        }
    };
    for device in &list.devices {
        let mut partial = list.partial.iter().filter(|(of, _)| of == device).peekable();
        if partial.peek().is_some() {
            text += &format!("\nList of partial (non-loadable) snapshots on '{device}':\n");
            text += &table(partial.map(|(_, snapshot)| snapshot));
        }
    }
    text
}

fn table<'a>(snapshots: impl Iterator<Item = &'a SnapshotInfo>) -> String {
    let title = row("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK");
    let line = |snapshot: &SnapshotInfo| {
        row(
            &snapshot.id,
            &snapshot.name,
            &vm_size(snapshot.vm_state_size),
            &local_date(i64::from(snapshot.date.0)),
            &vm_clock(snapshot.vm_clock_nsec),
        )
    };
    title + &snapshots.map(line).collect::<String>()
}

fn row(id: &str, tag: &str, size: &str, date: &str, clock: &str) -> String {
    format!("{id:<10}{tag:<20}{size:>7}{date:>20}{clock:>15}\n")
}

/// Three digits and a letter: `41M`, `1.5G`.
fn vm_size(bytes: u64) -> String {
    if bytes < 1000 {
        return bytes.to_string();
    }
    let mut unit = 1u64;
    for letter in ["K", "M", "G", "T"] {
        unit <<= 10;
        if bytes < 10 * unit {
            return format!("{:.1}{letter}", bytes as f64 / unit as f64);
        }
        if bytes < 1000 * unit {
            return format!("{}{letter}", (bytes + unit / 2) / unit);
        }
    }
    format!("{}T", bytes / unit)
}

/// Hours, minutes, seconds.
fn vm_clock(nsec: u64) -> String {
    let (seconds, millis) = (nsec / 1_000_000_000, nsec / 1_000_000 % 1000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, name: &str, size: u64, date: u32, clock: u64) -> SnapshotInfo {
        SnapshotInfo {
            id: id.into(),
            name: name.into(),
            vm_state_size: size,
            date: (date, 0),
            vm_clock_nsec: clock * 1_000_000,
            icount: None,
        }
    }

    /// The example of the manual's chapter on disk images.
    #[test]
    fn the_list_is_laid_out_as_in_the_manual() {
        let list = SnapshotList {
            devices: vec!["hda".into()],
            complete: vec![
                snapshot("1", "start", 41 << 20, 1_154_867_882, 14_954),
                snapshot("2", "", 40 << 20, 1_154_868_209, 18_633),
                snapshot("3", "msys", 40 << 20, 1_154_868_244, 23_514),
            ],
            partial: Vec::new(),
        };
        let date = |seconds: i64| local_date(seconds);
        let expected = format!(
            "Snapshot devices: hda\n\
             Snapshot list (from hda):\n\
             ID        TAG                 VM SIZE                DATE       VM CLOCK\n\
             1         start                   41M {}   00:00:14.954\n\
             2                                 40M {}   00:00:18.633\n\
             3         msys                    40M {}   00:00:23.514\n",
            date(1_154_867_882),
            date(1_154_868_209),
            date(1_154_868_244)
        );
        assert_eq!(show(&list), expected);
    }

    #[test]
    fn what_cannot_be_loaded_is_listed_apart() {
        let mut list = SnapshotList { devices: vec!["hda".into(), "hdb".into()], ..SnapshotList::default() };
        assert_eq!(show(&list), "There is no snapshot available.\n");
        list.partial.push(("hdb".into(), snapshot("1", "x", 0, 0, 0)));
        assert!(show(&list).contains("\nList of partial (non-loadable) snapshots on 'hdb':\nID "));
    }

    #[test]
    fn sizes_have_three_digits() {
        let sizes = [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (450_560, "440K"),
            (3 << 19, "1.5M"),
            (1 << 30, "1.0G"),
            (999 << 30, "999G"),
            (5 << 50, "5120T"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(vm_size(bytes), text);
        }
    }
}
