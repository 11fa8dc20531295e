//! `info`: what an image says of itself.

use super::getopt::{Flag, Parser};
use super::open::Sources;
use super::output::{self, Failure, Form};
use super::{Command, HELP, engine, json, only_image};
use crate::block::crypto::luks::STRIPES;
use crate::block::graph::bitmaps::BitmapInfo;
use crate::block::graph::driver::{EncryptionFacts, LuksFacts, Qcow2Specifics, SnapshotInfo, Specifics};
use crate::block::ops::info::{NodeInfo, inspect};
use crate::block::protocol::Location;
use crate::util::keyval::Options;
use crate::util::size::human_size;
use crate::util::text;
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
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::switch("force-share", "look at the image although another process may write it").short('U'),
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let (mut source, mut form, mut chain) = (Sources::new(), Form::Human, false);
    while let Some((name, value)) = parser.next()? {
        match name {
            _ if source.take(name, &value)? => {}
            "help" => return Err(Failure::Help),
            "output" => form = Form::parse(&value)?,
            _ => chain = true,
        }
    }
    let filename = only_image(parser)?;
    let images = collect(&filename, &source, chain)?;
    let text = match (form, &images[..]) {
        (Form::Human, _) => images.iter().map(to_text).collect::<Vec<_>>().join("\n"),
        (Form::Json, [image]) if !chain => json::to_text(&to_json(image)),
        (Form::Json, _) => json::to_text(&images.iter().map(to_json).collect()),
    };
    output::write(&text)?;
    Ok(0)
}

/// The facts of one image, or of all of its chain.
fn collect(operand: &str, source: &Sources, chain: bool) -> Result<Vec<NodeInfo>, Failure> {
    let engine = engine()?;
    let (filename, mut options) = source.named(operand)?;
    engine.block_on(async {
        let (mut images, mut seen) = (Vec::new(), HashSet::new());
        let mut next = Some(filename);
        while let Some(name) = next {
            if !seen.insert(name.clone()) {
                let message = format!("Backing file '{name}' creates an infinite loop.");
                return Err(Failure::message(message));
            }
            let shown = if images.is_empty() { operand } else { &name };
            if !images.is_empty() {
                // A name that stands in an image.
                let location = Location::from_image(&name).map_err(|error| Failure::open(shown, &error))?;
                options.location = Some(location);
            }
            let image = inspect(&engine, &name, &options).await;
            let mut image = image.map_err(|error| Failure::open(shown, &error))?;
            next = None;
            if let (true, Some((_, full, format))) = (chain, image.backing()) {
                (next, options.format) = (Some(full), format);
            }
            if let Some(described) = describe(&image, &options.driver) {
                image.filename = described;
            }
            // They are for the image that was named.
            options.driver = Options::default();
            images.push(image);
        }
        Ok(images)
    })?
}

/// The name of an image that takes more than a file's name to open: the secret with its key, a part of the file.
fn describe(image: &NodeInfo, driver: &Options) -> Option<String> {
    // In the order in which qemu-img has them.
    const BEFORE: &[&str] = &["encrypt.key-secret", "offset"];
    const MIDDLE: &[&str] = &["size"];
    const AFTER: &[&str] = &["key-secret"];
    let mut members = Map::new();
    let put = |members: &mut Map<String, Value>, names: &[&str]| {
        for name in names {
            members.extend(driver.get(name).map(|value| ((*name).to_owned(), json!(value))));
        }
    };
    put(&mut members, BEFORE);
    members.insert("driver".to_owned(), json!(image.format));
    let protocol = image.file.as_ref().map_or("file", |file| file.format);
    put(&mut members, MIDDLE);
    members.insert("file".to_owned(), json!({"driver": protocol, "filename": image.filename}));
    put(&mut members, AFTER);
    (members.len() > 2).then(|| format!("json:{}", json::to_line(&Value::Object(members))))
}

fn to_text(image: &NodeInfo) -> String {
    let mut text = format!("image: {}\nfile format: {}\n", image.filename, image.format);
    text += &format!("virtual size: {} ({} bytes)\n", human_size(image.virtual_size), image.virtual_size);
    text += &disk_size(image);
    if is_encrypted(image) {
        text += "encrypted: yes\n";
    }
    if let Some(Specifics::Luks(facts)) = &image.specifics {
        text += "Format specific information:\n";
        text += &facts_text(&luks_facts(facts, None));
    }
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
        text += &snapshot_list(&facts.snapshots);
    }
    text += "Format specific information:\n";
    text + &facts_text(&facts_of(facts))
}

fn facts_text(facts: &Map<String, Value>) -> String {
    facts.iter().map(|(name, value)| fact_text(name, value, 1)).collect()
}

fn is_encrypted(image: &NodeInfo) -> bool {
    let luks = matches!(image.specifics, Some(Specifics::Luks(_)));
    luks || image.qcow2().is_some_and(|facts| facts.encryption.is_some())
}

/// A fact for people: lists and what is in them are indented, `level` times.
fn fact_text(name: &str, value: &Value, level: usize) -> String {
    let head = format!("{}{}:", "    ".repeat(level), name.replace('-', " "));
    match value {
        Value::Array(items) => {
            let items = items.iter().enumerate();
            let items = items.map(|(at, item)| fact_text(&format!("[{at}]"), item, level + 1));
            format!("{head}\n{}", items.collect::<String>())
        }
        Value::Object(members) => {
            let members = members.iter().map(|(name, member)| fact_text(name, member, level + 1));
            format!("{head}\n{}", members.collect::<String>())
        }
        Value::String(text) => format!("{head} {text}\n"),
        plain => format!("{head} {plain}\n"),
    }
}

/// The facts that only qcow2 has, by the names that programs know; an old version has fewer.
fn facts_of(facts: &Qcow2Specifics) -> Map<String, Value> {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
    put("compat", json!(facts.compat));
    put("compression-type", json!(facts.compression_type));
    let new = facts.compat != "0.10";
    if new {
        put("lazy-refcounts", json!(facts.lazy_refcounts));
    }
    if !facts.bitmaps.is_empty() {
        put("bitmaps", facts.bitmaps.iter().map(bitmap_json).collect());
    }
    put("refcount-bits", json!(facts.refcount_bits));
    match &facts.encryption {
        Some(EncryptionFacts::Aes) => drop(put("encrypt", json!({"format": "aes"}))),
        Some(EncryptionFacts::Luks(luks)) => drop(put("encrypt", luks_facts(luks, Some("luks")).into())),
        None => {}
    }
    if new {
        facts.data_file.iter().for_each(|name| drop(put("data-file", json!(name))));
        facts.data_file_raw.iter().for_each(|raw| drop(put("data-file-raw", json!(raw))));
        put("corrupt", json!(facts.corrupt));
        put("extended-l2", json!(facts.extended_l2));
    }
    members
}

/// The facts of a LUKS header; with `format` where it is one of several.
fn luks_facts(facts: &LuksFacts, format: Option<&str>) -> Map<String, Value> {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
    put("ivgen-alg", json!(facts.iv));
    put("detached-header", json!(false));
    put("hash-alg", json!(facts.hash));
    put("cipher-alg", json!(facts.cipher));
    put("uuid", json!(facts.uuid));
    if let Some(hash) = facts.iv_hash {
        put("ivgen-hash-alg", json!(hash));
    }
    if let Some(format) = format {
        put("format", json!(format));
    }
    put("cipher-mode", json!(facts.mode));
    put("slots", facts.slots.iter().map(|&(offset, iterations)| slot_json(offset, iterations)).collect());
    put("payload-offset", json!(facts.payload_offset));
    put("master-key-iters", json!(facts.digest_iterations));
    members
}

fn slot_json(offset: u64, iterations: Option<u32>) -> Value {
    match iterations {
        Some(count) => {
            json!({"active": true, "iters": count, "key-offset": offset, "stripes": STRIPES})
        }
        None => json!({"active": false, "key-offset": offset}),
    }
}

/// A bitmap, as qemu-img has it.
pub(super) fn bitmap_json(bitmap: &BitmapInfo) -> Value {
    let flags = [("in-use", bitmap.in_use), ("auto", bitmap.enabled)];
    let flags: Vec<&str> = flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    json!({"flags": flags, "name": bitmap.name, "granularity": bitmap.granularity})
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

/// Internal snapshots as a table for people.
pub(super) fn snapshot_list(snapshots: &[SnapshotInfo]) -> String {
    let rows = snapshots.iter().map(snapshot_text).collect::<String>();
    format!("Snapshot list:\n{}{rows}", snapshot_row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"))
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
    let pad = |name: &str, width: usize| " ".repeat(width.saturating_sub(text::to_bytes(name).len()));
    let (after_id, after_tag) = (pad(id, 7), pad(tag, 16));
    format!("{id}{after_id} {tag}{after_tag} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
}

/// The members of an image, in the order in which qemu-img writes them.
/// What there is to say of an image, in the words of QMP's `ImageInfo`.
pub(crate) fn to_json(image: &NodeInfo) -> Value {
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
    put("encrypted", is_encrypted(image).then_some(json!(true)));
    put("backing-filename", backing.as_ref().map(|(name, _, _)| json!(name)));
    // A server has nothing to be dirty.
    put("dirty-flag", (!is_remote(image)).then(|| json!(facts.is_some_and(|facts| facts.dirty))));
    Value::Object(members)
}

/// Whether it is an export, or a raw disk on one.
fn is_remote(image: &NodeInfo) -> bool {
    let file = image.file.as_deref().filter(|_| image.format == "raw");
    file.unwrap_or(image).format == "nbd"
}

fn specifics_json(specifics: &Specifics) -> Value {
    match specifics {
        Specifics::Luks(facts) => json!({"type": "luks", "data": luks_facts(facts, None)}),
        Specifics::File => json!({"type": "file", "data": {}}),
        Specifics::Qcow2(facts) => {
            json!({"type": "qcow2", "data": facts_of(facts)})
        }
    }
}

/// An internal snapshot, as qemu-img has it.
pub(super) fn snapshot_json(snapshot: &SnapshotInfo) -> Value {
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
