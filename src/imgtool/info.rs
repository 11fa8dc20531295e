//! `info`: what an image says of itself.

use super::getopt::{Flag, Parser};
use super::output::{self, Failure, Form};
use super::{Command, HELP, engine, json, only_image, open};
use crate::block::graph::driver::{Qcow2Specifics, SnapshotInfo, Specifics};
use crate::block::ops::info::{NodeInfo, inspect};
use crate::block::options::OpenOptions;
use crate::util::size::human_size;
use crate::util::time::local_date;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

pub(super) const COMMAND: Command = Command {
    name: "info",
    summary: "Show facts about an image",
    usage: "[-f FMT] [--output=human|json] [--backing-chain] [-U] FILENAME",
    flags: &[
        HELP,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::value("output", "human|json", "form of the result"),
        Flag::switch("backing-chain", "show the backing files too, from the top down").short('b'),
        Flag::value("object", "OBJECT", "define an object, such as a secret").later(),
        Flag::switch("image-opts", "FILENAME is an option string").later(),
        Flag::switch("force-share", "look at the image although another process may write it").short('U'),
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let (mut options, mut form, mut chain) = (open::for_reading(), Form::Human, false);
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            "format" => options.format = Some(value),
            "output" => form = Form::parse(&value)?,
            "backing-chain" => chain = true,
            _ => options.force_share = true,
        }
    }
    let filename = only_image(parser)?;
    let images = collect(filename, options, chain)?;
    let text = match (form, &images[..]) {
        (Form::Human, _) => images.iter().map(to_text).collect::<Vec<_>>().join("\n"),
        (Form::Json, [image]) if !chain => json::to_text(&to_json(image)),
        (Form::Json, _) => json::to_text(&images.iter().map(to_json).collect()),
    };
    output::write(&text)?;
    Ok(0)
}

/// The facts of one image, or of all of its chain.
fn collect(filename: String, mut options: OpenOptions, chain: bool) -> Result<Vec<NodeInfo>, Failure> {
    let engine = engine()?;
    engine.block_on(async {
        let (mut images, mut seen) = (Vec::new(), HashSet::new());
        let mut next = Some(filename);
        while let Some(name) = next {
            if !seen.insert(name.clone()) {
                let message = format!("Backing file '{name}' creates an infinite loop.");
                return Err(Failure::message(message));
            }
            let image = inspect(&engine, &name, &options).await;
            let image = image.map_err(|error| Failure::open(&name, &error))?;
            next = None;
            if let (true, Some((_, full, format))) = (chain, image.backing()) {
                (next, options.format) = (Some(full), format);
            }
            images.push(image);
        }
        Ok(images)
    })?
}

fn to_text(image: &NodeInfo) -> String {
    let mut text = format!("image: {}\nfile format: {}\n", image.filename, image.format);
    text += &format!("virtual size: {} ({} bytes)\n", human_size(image.virtual_size), image.virtual_size);
    text += &disk_size(image);
    if let Some(facts) = image.qcow2() {
        text += &qcow2_text(image, facts);
    }
    if let Some(file) = &image.file {
        text += &child_text(file);
    }
    text
}

fn disk_size(image: &NodeInfo) -> String {
    match image.actual_size {
        Some(size) => format!("disk size: {}\n", human_size(size)),
        None => "disk size: unavailable\n".to_owned(),
    }
}

fn qcow2_text(image: &NodeInfo, facts: &Qcow2Specifics) -> String {
    let mut text = format!("cluster_size: {}\n", facts.cluster_size);
    if facts.dirty {
        text += "cleanly shut down: no\n";
    }
    if let Some((name, full, format)) = image.backing() {
        text += &format!("backing file: {name}");
        if full != name {
            text += &format!(" (actual path: {full})");
        }
        text += "\n";
        if let Some(format) = format {
            text += &format!("backing file format: {format}\n");
        }
    }
    if !facts.snapshots.is_empty() {
        text += "Snapshot list:\n";
        text += &snapshot_row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
        text.extend(facts.snapshots.iter().map(snapshot_text));
    }
    text += "Format specific information:\n";
    for (name, value) in facts_of(facts) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &format!("    {}: {value}\n", name.replace('-', " "));
    }
    text
}

/// The facts that only qcow2 has, by the names that programs know; an old version has fewer.
fn facts_of(facts: &Qcow2Specifics) -> Vec<(&'static str, Value)> {
    let mut list = vec![("compat", json!(facts.compat)), ("compression-type", json!(facts.compression_type))];
    let new = facts.compat != "0.10";
    if new {
        list.push(("lazy-refcounts", json!(facts.lazy_refcounts)));
    }
    list.push(("refcount-bits", json!(facts.refcount_bits)));
    if new {
        list.extend(facts.data_file.as_ref().map(|name| ("data-file", json!(name))));
        list.extend(facts.data_file_raw.map(|raw| ("data-file-raw", json!(raw))));
        list.push(("corrupt", json!(facts.corrupt)));
        list.push(("extended-l2", json!(facts.extended_l2)));
    }
    list
}

fn child_text(file: &NodeInfo) -> String {
    let size = file.virtual_size;
    format!(
        "Child node '/file':\n    filename: {}\n    protocol type: {}\n    file length: {} ({size} bytes)\n    {}",
        file.filename,
        file.format,
        human_size(size),
        disk_size(file),
    )
}

fn snapshot_text(snapshot: &SnapshotInfo) -> String {
    let (seconds, millis) =
        (snapshot.vm_clock_nsec / 1_000_000_000, snapshot.vm_clock_nsec / 1_000_000 % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    snapshot_row(
        &snapshot.id,
        &snapshot.name,
        &human_size(snapshot.vm_state_size),
        &local_date(i64::from(snapshot.date.0)),
        &format!("{hours:04}:{minutes:02}:{seconds:02}.{millis:03}"),
        &snapshot.icount.map_or("--".to_owned(), |count| count.to_string()),
    )
}

fn snapshot_row(id: &str, tag: &str, size: &str, date: &str, clock: &str, icount: &str) -> String {
    // The columns are as many bytes, not characters, wide.
    let pad = |text: &str, width: usize| " ".repeat(width.saturating_sub(text.len()));
    let (after_id, after_tag) = (pad(id, 7), pad(tag, 16));
    format!("{id}{after_id} {tag}{after_tag} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
}

/// The members of an image, in the order in which qemu-img writes them.
fn to_json(image: &NodeInfo) -> Value {
    let facts = image.qcow2();
    let backing = image.backing();
    let mut members = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            members.insert(name.to_owned(), value);
        }
    };
    let children = image.file.iter().map(|file| json!({"name": "file", "info": to_json(file)}));
    put("children", Some(children.collect()));
    put(
        "backing-filename-format",
        backing.as_ref().and_then(|(_, _, format)| format.clone().map(Value::from)),
    );
    let snapshots = facts.map(|facts| &facts.snapshots).filter(|list| !list.is_empty());
    put("snapshots", snapshots.map(|list| list.iter().map(snapshot_json).collect()));
    put("virtual-size", Some(json!(image.virtual_size)));
    put("filename", Some(json!(image.filename)));
    put("cluster-size", facts.map(|facts| json!(facts.cluster_size)));
    put("format", Some(json!(image.format)));
    put("actual-size", image.actual_size.map(Value::from));
    put("format-specific", image.specifics.as_ref().map(specifics_json));
    put("full-backing-filename", backing.as_ref().map(|(_, full, _)| json!(full)));
    put("backing-filename", backing.as_ref().map(|(name, _, _)| json!(name)));
    put("dirty-flag", Some(json!(facts.is_some_and(|facts| facts.dirty))));
    Value::Object(members)
}

fn specifics_json(specifics: &Specifics) -> Value {
    match specifics {
        Specifics::File => json!({"type": "file", "data": {}}),
        Specifics::Qcow2(facts) => {
            let data: Map<String, Value> =
                facts_of(facts).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            json!({"type": "qcow2", "data": data})
        }
    }
}

fn snapshot_json(snapshot: &SnapshotInfo) -> Value {
    let mut members = Map::new();
    if let Some(count) = snapshot.icount {
        members.insert("icount".to_owned(), json!(count));
    }
    let rest = json!({
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
        "name": snapshot.name,
        "date-sec": snapshot.date.0,
        "date-nsec": snapshot.date.1,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "id": snapshot.id,
        "vm-state-size": snapshot.vm_state_size,
    });
    if let Value::Object(rest) = rest {
        members.extend(rest);
    }
    Value::Object(members)
}
