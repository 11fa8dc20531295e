//! `convert`: the content of one or more images in a new one.
//!
//! ```text
//!   request ─▶ sources (snapshot) ─▶ target: values, draft, creation ─▶ copy ─▶ bitmaps ─▶ close, final name
//!                    └─ `-`: streams                └─ `-`: streams
//! ```

mod bitmaps;
mod request;
mod streams;
mod target;

use super::getopt::{Flag, Parser};
use super::interrupt::Interrupts;
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS, Progress};
use super::{Command, HELP, engine, snapshot_param};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::ops::copy::{CopyOptions, Layers, Reports, copy, total_size};
use crate::block::ops::create::Values;
use crate::block::{Error, graph::ChildRole};
use request::{Request, read};
use serde_json::json;
use std::rc::Rc;
use target::Target;

pub(super) const COMMAND: Command = Command {
    name: "convert",
    summary: "Copy images into a new one, in another format if wanted",
    usage: "[-f FMT] [-O FMT] [-o OPTIONS] [-B BACKING_FILE -F BACKING_FMT] [-c] [-n] [-p] [-q] [-S SIZE] \
            FILENAME... OUTPUT",
    flags: &[
        HELP,
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("image-opts", "sources are option strings"),
        Flag::switch("source-image-opts", "sources are option strings"),
        Flag::value("source-format", "FMT", "format of the sources (default: guessed)").short('f'),
        Flag::value("source-cache", "CACHE", "cache mode of the sources (default: writeback)").short('T'),
        Flag::value("snapshot", "SNAPSHOT", "copy an internal snapshot").short('l'),
        Flag::value("sparse-size", "SIZE", "leave out runs of so many zero bytes (default: 4k; 0: none)")
            .short('S'),
        Flag::switch("salvage", "go on after read errors"),
        Flag::switch("skip-broken-bitmaps", "leave out broken bitmaps"),
        Flag::value("output-format", "FMT", "format of the output (default: raw)")
            .short('O')
            .aliases(&["target-format"]),
        Flag::value("options", "OPTIONS", "options of the output's format; '-o help' lists them")
            .short('o')
            .aliases(&["target-options"]),
        Flag::value("output-cache", "CACHE", "cache mode of the output (default: unsafe)")
            .short('t')
            .aliases(&["target-cache"]),
        Flag::switch("oob-writes", "write out of order").short('W'),
        Flag::switch("target-image-opts", "OUTPUT is an option string"),
        Flag::switch("target-is-zero", "with -n: the output holds nothing but zeros"),
        Flag::value("backing", "BACKING_FILE", "leave what the output's backing file holds to it").short('B'),
        Flag::value("backing-format", "BACKING_FMT", "format of the backing file").short('F'),
        Flag::switch("bitmaps", "copy bitmaps too"),
        Flag::switch("compress", "compress the output").short('c'),
        Flag::switch("copy-range-offloading", "let the file system copy").short('C').in_full(),
        Flag::switch("force-share", "read sources although another process may write them").short('U'),
        Flag::value("parallel", "NUMBER", "pieces in flight, 1 to 16 (default: 8)").short('m'),
        Flag::switch("no-create", "write into an image that is there").short('n').in_full(),
        PROGRESS.in_full(),
        Flag::switch("quiet", "say nothing but errors").short('q'),
        Flag::value("rate", "RATE", "bytes a second").short('r'),
        OUTPUT,
    ],
    operands: &[
        ("FILENAME", "an image to copy; several are put one behind the other; - is standard input"),
        ("OUTPUT", "the new image; - is standard output"),
    ],
    run,
};

fn run(parser: Parser) -> Result<u8, Failure> {
    let Some(mut request) = read(parser)? else { return Ok(0) };
    if request.uses_streams() {
        streams::check(&request)?;
    }
    let wanted = std::mem::take(&mut request.progress);
    // Before there are threads: they must hold them back too.
    let interrupts = Interrupts::hold()?;
    let progress = Progress::start(wanted.unless(request.quiet || request.form == Form::Json));
    let engine = engine()?;
    let size = engine.block_on(interrupts.run(&engine, convert(&engine, &request, &progress)))??;
    progress.complete();
    if request.form == Form::Json && !request.quiet {
        output::write_json(&json!({
            "filenames": request.sources,
            "output": request.output,
            "format": request.format,
            "virtual-size": size,
        }))?;
    }
    Ok(0)
}

/// Bytes of the disk that was copied.
async fn convert(engine: &Rc<Engine>, request: &Request, progress: &Progress) -> Result<u64, Failure> {
    if request.uses_streams() {
        return streams::convert(engine, request, progress).await;
    }
    let Sources { disks: sources, images } = open_sources(engine, request).await?;
    let size = total_size(&sources);
    let target = Target::make(engine, request, &images, size).await?;
    let options = copy_options(request, &target);
    copy_all(engine, request, &sources, &target, &options, progress).await?;
    if request.bitmaps {
        bitmaps::copy(&images[0], &target.node, request.skip_broken_bitmaps).await?;
    }
    target.finish(engine, request).await?;
    progress.finish();
    Ok(size)
}

/// What is copied.
struct Sources {
    images: Vec<Rc<Node>>,
    /// Theirs, or that of an internal snapshot.
    disks: Vec<Rc<Node>>,
}

async fn open_sources(engine: &Rc<Engine>, request: &Request) -> Result<Sources, Failure> {
    let mut images = Vec::new();
    for source in &request.sources {
        images.push(request.source.open(engine, source).await?);
    }
    let mut disks = images.clone();
    let Some(word) = &request.snapshot else { return Ok(Sources { images, disks }) };
    if images.len() > 1 && snapshot_param::is_plain(word) {
        return Err(Failure::message("No support for concatenating multiple snapshot"));
    }
    disks[0] = snapshot_param::open(&images[0], &snapshot_param::parse(word)?).await?;
    Ok(Sources { images, disks })
}

fn copy_options(request: &Request, target: &Target) -> CopyOptions {
    let made = target.values();
    let has_backing = made.is_some_and(|values| values.get("backing_file").is_some());
    let is_empty = |values: &Values| values.get("preallocation").is_none_or(|mode| mode == "off");
    let backing = target.node.child(ChildRole::Backing);
    let left_to_backing = if made.is_some() { has_backing } else { request.backing.is_some() };
    CopyOptions {
        // A backing file that is not there has an end that nobody knows.
        layers: match left_to_backing {
            true => Layers::Top(backing.map_or(u64::MAX, |backing| backing.size())),
            false => Layers::All,
        },
        sparse: request.sparse,
        workers: request.workers,
        out_of_order: request.out_of_order,
        compress: request.compress,
        offload: request.offload,
        target_is_zero: request.target_is_zero
            || made.is_some_and(|made| made.reads_as_zeros_in(&target.node)) && !has_backing,
        target_is_new: made.is_some_and(is_empty),
        salvage: request.salvage,
        rate: request.rate,
    }
}

async fn copy_all(
    engine: &Rc<Engine>,
    request: &Request,
    sources: &[Rc<Node>],
    target: &Target,
    options: &CopyOptions,
    progress: &Progress,
) -> Result<(), Failure> {
    let report = |done: u64, total: u64| progress.report(done, total);
    let shown: Option<&dyn Fn(u64, u64)> = if progress.is_shown() { Some(&report) } else { None };
    let warn = |doing: &str, at: u64, error: &Error| {
        if !request.quiet {
            super::warn(&format!("error while {doing} offset {at}: {}", error.message()));
        }
    };
    let reports = Reports { progress: shown, warn: &warn };
    let done = copy(engine, sources, &target.node, options, &reports).await;
    done.map_err(|error| Failure::plain(&target.told(error)))
}
