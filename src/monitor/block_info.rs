//! What the disks are and have done.

use super::hmp::Call;
use super::hmp::table::{Command, Run};
use super::qmp::{self, Argument, Kind, Reply};
use super::{Control, Result};
use crate::block::drive::{Count, Drive, Operation};
use crate::block::graph::{ChildRole, Connection, Node};
use crate::block::ops::info::NodeInfo;
use crate::block::options::{CacheMode, DetectZeroes, Removable};
use crate::imgtool::image_to_json;
use crate::util::size::human_size;
use serde_json::{Value, json};
use std::fmt::Write;
use std::rc::Rc;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "info block",
        arguments: "[-v] [device]",
        words: 0..=1,
        flags: "vn",
        help: "show the disks, or one (-v: with what their images are)",
        run: Run::Tell(show),
    },
    Command::show("info blockstats", "show what the disks have done", |control, out| {
        control.machine.disks().iter().for_each(|disk| show_counts(&disk.drive, out));
        Ok(())
    }),
];

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command::plain("query-block", |control, _| {
        let disks = control.machine.disks().iter();
        Ok(Reply::Value(disks.map(|disk| device(control, &disk.drive)).collect::<Result<_>>()?))
    }),
    qmp::Command {
        name: "query-blockstats",
        arguments: &[Argument::optional("query-nodes", Kind::Switch)],
        run: |control, _| {
            let disks = control.machine.disks().iter();
            Ok(Reply::Value(disks.map(|disk| statistics(&disk.drive)).collect()))
        },
    },
    qmp::Command {
        name: "query-named-block-nodes",
        arguments: &[Argument::optional("flat", Kind::Switch)],
        run: |control, _| {
            let mut nodes = Vec::new();
            for disk in control.machine.disks() {
                let layers = layers(&disk.drive)?;
                nodes.extend((0..layers.len()).map(|at| node(&disk.drive, &layers, at)));
            }
            Ok(Reply::Value(nodes.into()))
        },
    },
];

/// The name of a drive's top node.
pub(super) fn node_name(device: &str) -> String {
    format!("#{device}")
}

/// The drive whose top node has this name.
pub(super) fn device_of(node: &str) -> &str {
    node.strip_prefix('#').unwrap_or(node)
}

/// One image of a chain.
struct Layer {
    image: NodeInfo,
    read_only: bool,
    /// Of an image on storage that can go away.
    connection: Option<Connection>,
}

/// The images of a drive, from the top; none where there is no medium in it.
fn layers(drive: &Drive) -> Result<Vec<Layer>> {
    if drive.tray().is_some_and(|tray| !tray.inserted) {
        return Ok(Vec::new());
    }
    Control::ask(drive, |local| async move {
        let mut layers = Vec::new();
        let mut next: Option<Rc<Node>> = Some(local.root());
        while let Some(node) = next {
            layers.push(Layer {
                image: NodeInfo::of(&node),
                read_only: node.driver().read_only(),
                connection: Connection::below(&node),
            });
            next = node.child(ChildRole::Backing);
        }
        layers
    })
}

fn show(control: &mut Control, call: &Call, out: &mut String) -> Result<()> {
    let name = call.word(0);
    if !name.is_empty() {
        return describe(&control.disk(name)?.drive, call.has('v'), out);
    }
    for (index, disk) in control.machine.disks().iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        describe(&disk.drive, call.has('v'), out)?;
    }
    Ok(())
}

fn describe(drive: &Drive, verbose: bool, out: &mut String) -> Result<()> {
    let layers = layers(drive)?;
    let (id, read_only) = (drive.id(), if drive.read_only() { ", read-only" } else { "" });
    // Writing to a String cannot fail.
    let _ = match layers.first() {
        None => writeln!(out, "{id}: [not inserted]"),
        Some(Layer { image: NodeInfo { filename, format, .. }, .. }) => {
            writeln!(out, "{id} ({}): {filename} ({format}{read_only})", node_name(id))
        }
    };
    if let Some(tray) = drive.tray() {
        let door = if tray.open { "open" } else { "closed" };
        let _ = writeln!(out, "    Removable device: not locked, tray {door}");
    }
    let Some(top) = layers.first() else { return Ok(()) };
    let _ = writeln!(out, "    Cache mode:       {}", cache_mode(drive.options().cache));
    if drive.options().detect_zeroes != DetectZeroes::Off {
        let _ = writeln!(out, "    Detect zeroes:    {}", detect_zeroes(drive.options().detect_zeroes));
    }
    if let Some(connection) = &top.connection {
        let reason = connection.reason().map_or(String::new(), |reason| format!(" ({reason})"));
        let _ = writeln!(out, "    Connection:       {}{reason}", connection.word());
    }
    if let Some(backing) = layers.get(1) {
        let depth = layers.len() - 1;
        let _ = writeln!(out, "    Backing file:     {} (chain depth: {depth})", backing.image.filename);
    }
    if verbose {
        out.push_str("\nImages:\n");
        layers.iter().for_each(|layer| describe_image(&layer.image, out));
    }
    Ok(())
}

fn describe_image(image: &NodeInfo, out: &mut String) {
    // As above.
    let _ = writeln!(out, "image: {}\nfile format: {}", image.filename, image.format);
    let _ = writeln!(out, "virtual size: {} ({} bytes)", human_size(image.virtual_size), image.virtual_size);
    if let Some(size) = image.actual_size {
        let _ = writeln!(out, "disk size: {}", human_size(size));
    }
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

fn detect_zeroes(mode: DetectZeroes) -> &'static str {
    match mode {
        DetectZeroes::Off => "off",
        DetectZeroes::On => "on",
        DetectZeroes::Unmap => "unmap",
    }
}

/// QMP's `BlockInfo`.
fn device(control: &Control, drive: &Drive) -> Result<Value> {
    let status = match control.failing.get(drive.id()) {
        None => "ok",
        Some(true) => "nospace",
        Some(false) => "failed",
    };
    let (layers, tray) = (layers(drive)?, drive.tray());
    let mut info = json!({
        "io-status": status,
        "device": drive.id(),
        "locked": false,
        "removable": tray.is_some(),
    });
    if !layers.is_empty() {
        info["inserted"] = node(drive, &layers, 0);
    }
    // Other drives have no door.
    if let Some(tray) = tray.filter(|tray| tray.kind == Removable::Cdrom) {
        info["tray_open"] = json!(tray.open);
    }
    info["type"] = json!("unknown");
    Ok(info)
}

/// QMP's `BlockDeviceInfo` of the layer at `at`.
fn node(drive: &Drive, layers: &[Layer], at: usize) -> Value {
    let top = node_name(drive.id());
    let name = if at == 0 { top } else { format!("{top}-{at}") };
    let options = drive.options();
    let mut info = json!({
        "iops_rd": 0,
        "detect_zeroes": detect_zeroes(if at == 0 { options.detect_zeroes } else { DetectZeroes::Off }),
        "active": true,
        "image": image_chain(&layers[at..]),
        "iops_wr": 0,
        "ro": layers[at].read_only,
        "node-name": name,
        "backing_file_depth": layers.len() - 1 - at,
        "drv": layers[at].image.format,
        "iops": 0,
        "bps_wr": 0,
        "write_threshold": 0,
        "encrypted": image_to_json(&layers[at].image).get("encrypted").is_some(),
        "bps": 0,
        "bps_rd": 0,
        "cache": {
            "no-flush": options.cache.no_flush,
            "direct": options.cache.direct,
            "writeback": options.cache.writeback,
        },
        "file": layers[at].image.filename,
    });
    if let Some(connection) = &layers[at].connection {
        info["connection"] = json!({"state": connection.word(), "reason": connection.reason()});
    }
    if let Some(backing) = layers.get(at + 1) {
        info["backing_file"] = json!(backing.image.filename);
    }
    info
}

/// QMP's `ImageInfo` of the first layer, with those below in it.
fn image_chain(layers: &[Layer]) -> Value {
    let mut below = None;
    for layer in layers.iter().rev() {
        let mut image = image_to_json(&layer.image);
        if let Some(members) = image.as_object_mut() {
            // What qemu-img shows of the node below, QMP has nodes of their own for.
            members.shift_remove("children");
            members.extend(below.take().map(|below| ("backing-image".to_owned(), below)));
        }
        below = Some(image);
    }
    below.unwrap_or_default()
}

/// In the order of [`Operation`]: the letters that begin the names of an operation's counts.
const COUNTED: [(Operation, &str); 4] = [
    (Operation::Read, "rd"),
    (Operation::Write, "wr"),
    (Operation::Flush, "flush"),
    (Operation::Discard, "unmap"),
];

fn show_counts(drive: &Drive, out: &mut String) {
    let [rd, wr, flush, _] = COUNTED.map(|(operation, _)| drive.count(operation));
    // As above.
    let _ = writeln!(
        out,
        "{}: rd_bytes={} wr_bytes={} rd_operations={} wr_operations={} flush_operations={} wr_total_time_ns={} \
         rd_total_time_ns={} flush_total_time_ns={} rd_merged=0 wr_merged=0",
        drive.id(),
        rd.bytes,
        wr.bytes,
        rd.operations,
        wr.operations,
        flush.operations,
        wr.nanoseconds,
        rd.nanoseconds,
        flush.nanoseconds,
    );
}

/// QMP's `BlockStats`.
fn statistics(drive: &Drive) -> Value {
    let mut stats = json!({"wr_highest_offset": 0, "account_invalid": true, "account_failed": true});
    for (operation, word) in COUNTED {
        let Count { operations, bytes, nanoseconds, failures } = drive.count(operation);
        stats[format!("{word}_operations")] = json!(operations);
        stats[format!("{word}_total_time_ns")] = json!(nanoseconds);
        stats[format!("failed_{word}_operations")] = json!(failures);
        stats[format!("invalid_{word}_operations")] = json!(0);
        if operation != Operation::Flush {
            stats[format!("{word}_bytes")] = json!(bytes);
            stats[format!("{word}_merged")] = json!(0);
        }
    }
    stats["timed_stats"] = json!([]);
    json!({"device": drive.id(), "node-name": node_name(drive.id()), "stats": stats})
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
