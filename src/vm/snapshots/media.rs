//! What was in the removable drives when a snapshot was taken. The guest may have files of a medium open: it goes on
//! only where the same one is in the drive again. The same is: the same file, of the same size, write-protected or not
//! as it was. Doors are as they are.

use crate::block::drive::Drive;
use crate::vm::machine::Disk;
use crate::vm::{Error, Result};
use crate::vmstate::{Section, Sections};
use serde::{Deserialize, Serialize};
use std::path::{Path, absolute};

const NAME: &str = "media";

/// The removable drives of a machine, in the order of their slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MediaV1 {
    drives: Vec<DriveV1>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DriveV1 {
    drive: String,
    medium: Option<MediumV1>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MediumV1 {
    /// Absolute, if it is a file's.
    filename: String,
    size: u64,
    read_only: bool,
}

/// The section, for a machine with removable drives.
pub(super) fn section(disks: &[Disk]) -> Result<Option<Section>> {
    let media = now(disks);
    match media.drives.is_empty() {
        true => Ok(None),
        false => Ok(Some(Section::new(NAME, 1, &media)?)),
    }
}

/// Refuses a state that was taken with other media than are in now.
pub(super) fn check(disks: &[Disk], sections: &mut Sections) -> Result<()> {
    let now = now(disks);
    if now.drives.is_empty() {
        return Ok(());
    }
    let then: MediaV1 = sections.read(NAME)?;
    for now in &now.drives {
        match then.drives.iter().find(|then| then.drive == now.drive) {
            Some(then) if then.medium != now.medium => return Err(refusal(then, now)),
            _ => {}
        }
    }
    Ok(())
}

fn refusal(then: &DriveV1, now: &DriveV1) -> Error {
    let drive = &now.drive;
    let of = |medium: &Option<MediumV1>| match medium {
        None => "no medium".to_owned(),
        Some(MediumV1 { filename, size, read_only }) => {
            format!("'{filename}' ({size} bytes{})", if *read_only { ", read-only" } else { "" })
        }
    };
    let remedy = match &then.medium {
        Some(medium) => format!("put it in first: change {drive} {}", medium.filename),
        None => format!("take it out first: eject {drive}"),
    };
    Error::new(format!(
        "the snapshot was taken with {} in {drive}, and now there is {}",
        of(&then.medium),
        of(&now.medium)
    ))
    .remedy(remedy)
}

fn now(disks: &[Disk]) -> MediaV1 {
    let removable = disks.iter().map(|disk| &*disk.drive).filter(|drive| drive.tray().is_some());
    MediaV1 { drives: removable.map(state_of).collect() }
}

fn state_of(drive: &Drive) -> DriveV1 {
    let inserted = drive.tray().is_some_and(|tray| tray.inserted);
    let medium = || MediumV1 {
        filename: whole_name(drive.filename()),
        size: drive.size(),
        read_only: drive.read_only(),
    };
    DriveV1 { drive: drive.id().to_owned(), medium: inserted.then(medium) }
}

/// A file's name whatever folder the next process is started in; other names as they are.
fn whole_name(name: String) -> String {
    match Path::new(&name).exists() {
        true => absolute(&name).map_or(name, |path| path.to_string_lossy().into_owned()),
        false => name,
    }
}
