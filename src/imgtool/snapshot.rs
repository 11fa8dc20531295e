//! `snapshot`: internal snapshots, listed, made, gone back to and removed.

use super::getopt::{Flag, Parser};
use super::info::{snapshot_json, snapshot_list};
use super::open::{self, Sources};
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS_IN_FULL, Progress, Wanted};
use super::{Command, HELP, engine, only_image};
use crate::block::graph::Node;
use crate::block::graph::driver::SnapshotInfo;
use crate::block::graph::snapshots::{NewSnapshot, Selector, Snapshots};
use crate::block::{Error, Kind};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const COMMAND: Command = Command {
    name: "snapshot",
    summary: "List, make, apply or delete internal snapshots",
    usage: "[-l | -a SNAPSHOT | -c SNAPSHOT | -d SNAPSHOT] [-f FMT] [-U] [-q] FILENAME",
    flags: &[
        HELP,
        Flag::switch("quiet", "say nothing but errors").short('q'),
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::switch("force-share", "list although another process may write the image").short('U'),
        Flag::switch("list", "list the snapshots (the default)").short('l'),
        Flag::value("create", "SNAPSHOT", "make a snapshot of this name").short('c'),
        Flag::value("apply", "SNAPSHOT", "make the disk what it was: by ID, or else by name").short('a'),
        Flag::value("delete", "SNAPSHOT", "remove the first snapshot of this name").short('d'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        PROGRESS_IN_FULL,
        OUTPUT,
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    List,
    Create(String),
    Apply(String),
    Delete(String),
}

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let (mut source, mut action, mut quiet) = (Sources::new(), None, false);
    let (mut progress, mut form) = (Wanted::default(), Form::Human);
    while let Some((name, value)) = parser.next()? {
        let wanted = match name {
            "help" => return Err(Failure::Help),
            _ if source.take(name, &value)? => continue,
            "quiet" => {
                quiet = true;
                continue;
            }
            "progress" => {
                progress.take(&value)?;
                continue;
            }
            "output" => {
                form = Form::parse(&value)?;
                continue;
            }
            "create" => Action::Create(value),
            "apply" => Action::Apply(value),
            "delete" => Action::Delete(value),
            _ => Action::List,
        };
        if action.replace(wanted).is_some() {
            return Err(Failure::Usage("Cannot mix '-l', '-a', '-c', '-d'".to_owned()));
        }
    }
    let filename = only_image(parser)?;
    let progress = Progress::later(progress.unless(quiet || form == Form::Json));
    let action = action.unwrap_or(Action::List);
    let snapshots = carry_out(&action, source, &filename, &progress)?;
    progress.complete();
    match (form, action) {
        (Form::Human, Action::List) if !snapshots.is_empty() => output::write(&snapshot_list(&snapshots))?,
        (Form::Json, action) if !quiet || action == Action::List => {
            output::write_json(&action.result(&filename, &snapshots))?;
        }
        _ => {}
    }
    Ok(0)
}

impl Action {
    /// What was done, and what snapshots there are then.
    fn result(&self, filename: &str, snapshots: &[SnapshotInfo]) -> Value {
        let (word, name) = match self {
            Action::List => ("list", None),
            Action::Create(name) => ("create", Some(name)),
            Action::Apply(name) => ("apply", Some(name)),
            Action::Delete(name) => ("delete", Some(name)),
        };
        let snapshots: Vec<Value> = snapshots.iter().map(snapshot_json).collect();
        json!({"filename": filename, "action": word, "snapshot": name, "snapshots": snapshots})
    }
}

/// The snapshots that there are in the end.
fn carry_out(
    action: &Action,
    mut source: Sources,
    filename: &str,
    progress: &Progress,
) -> Result<Vec<SnapshotInfo>, Failure> {
    source.options.read_only = *action == Action::List;
    if source.options.force_share && !source.options.read_only {
        let message = "force-share=on can only be used with read-only images";
        return Err(Failure::message(format!("Could not open '{filename}': {message}")));
    }
    let engine = engine()?;
    progress.listen(&engine);
    engine.block_on(async {
        let image = source.open(&engine, filename).await?;
        let done = act(action, &image).await;
        let snapshots = image.driver().snapshots();
        let left = done.map(|()| snapshots.map(|snapshots| snapshots.list()).unwrap_or_default());
        open::close(&image, left).await
    })?
}

async fn act(action: &Action, image: &Node) -> Result<(), Failure> {
    let snapshots = image.driver().snapshots();
    match action {
        Action::List => Ok(()),
        Action::Create(name) => create(snapshots, name).await,
        Action::Apply(name) => apply(snapshots, name).await,
        Action::Delete(name) => delete(snapshots, name).await,
    }
}

async fn create(snapshots: Option<&dyn Snapshots>, name: &str) -> Result<(), Failure> {
    let new = NewSnapshot { name: name.to_owned(), date: now(), icount: Some(0), ..NewSnapshot::default() };
    let made = match snapshots {
        Some(snapshots) => snapshots.create(&new).await,
        None => Err(Error::new(Kind::Unsupported, "this format has no snapshots")),
    };
    made.map(drop)
        .map_err(|error| Failure::block(&format!("Could not create snapshot '{name}'"), &error.terse()))
}

/// Seconds and nanoseconds since the epoch, the latter in whole microseconds as QEMU has them.
fn now() -> (u32, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_micros() * 1000)
}

async fn apply(snapshots: Option<&dyn Snapshots>, name: &str) -> Result<(), Failure> {
    let applied = match snapshots {
        Some(snapshots) => snapshots.apply(&Selector::IdOrName(name.to_owned())).await.map_err(not_loaded),
        None => Err(Error::new(Kind::Unsupported, "Block driver does not support snapshots")),
    };
    applied.map_err(|error| Failure::block(&format!("Could not apply snapshot '{name}'"), &error))
}

/// What keeps a snapshot from being applied, unless the image is none that it can be applied to.
fn not_loaded(error: Error) -> Error {
    match error.kind() {
        Kind::InvalidArgument => error,
        _ => error.terse().context("Failed to load snapshot"),
    }
}

async fn delete(snapshots: Option<&dyn Snapshots>, name: &str) -> Result<(), Failure> {
    let deleted = match snapshots {
        Some(snapshots) => snapshots.delete(&Selector::Name(name.to_owned())).await,
        None => Err(Error::new(Kind::NotFound, "snapshot not found")),
    };
    deleted.map_err(|error| Failure::block(&format!("Could not delete snapshot '{name}'"), &error))
}
