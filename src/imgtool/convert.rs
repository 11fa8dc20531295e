//! `convert`: the content of one or more images in a new one.

use super::create::check_filename;
use super::create_options::{OptionLists, show_help};
use super::getopt::{Flag, Parser};
use super::open::Sources;
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS, Progress, Wanted};
use super::{Command, HELP, engine, open, size_argument};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::ops::copy::{CopyOptions, copy, total_size};
use crate::block::ops::create::{Template, Values, create};
use crate::block::ops::encrypt_options::key_option;
use crate::block::options::{CacheMode, OpenOptions};
use crate::block::{Error, graph::ChildRole};
use crate::util::keyval::Options;
use serde_json::json;
use std::rc::Rc;

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
        Flag::value("snapshot", "SNAPSHOT", "copy an internal snapshot").short('l').later(),
        Flag::value("sparse-size", "SIZE", "leave out runs of so many zero bytes (default: 4k; 0: none)")
            .short('S'),
        Flag::switch("salvage", "go on after read errors").later(),
        Flag::switch("skip-broken-bitmaps", "leave out broken bitmaps").later(),
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
        Flag::switch("target-image-opts", "OUTPUT is an option string").later(),
        Flag::switch("target-is-zero", "with -n: the output holds nothing but zeros").later(),
        Flag::value("backing", "BACKING_FILE", "leave what the output's backing file holds to it").short('B'),
        Flag::value("backing-format", "BACKING_FMT", "format of the backing file").short('F'),
        Flag::switch("bitmaps", "copy bitmaps too").later(),
        Flag::switch("compress", "compress the output").short('c'),
        Flag::switch("copy-range-offloading", "let the file system copy").short('C').in_full().later(),
        Flag::switch("force-share", "read sources although another process may write them").short('U'),
        Flag::value("parallel", "NUMBER", "pieces in flight, 1 to 16 (default: 8)").short('m'),
        Flag::switch("no-create", "write into an image that is there").short('n').in_full(),
        PROGRESS.in_full(),
        Flag::switch("quiet", "say nothing but errors").short('q'),
        Flag::value("rate", "RATE", "bytes a second").short('r').later(),
        OUTPUT,
    ],
    operands: &[
        ("FILENAME", "an image to copy; several are put one behind the other"),
        ("OUTPUT", "the new image"),
    ],
    run,
};

/// Longest run of zeros that can be asked for, in bytes.
const MAX_SPARSE: u64 = 16 << 20;

/// What is to be done.
#[derive(Debug)]
struct Request {
    sources: Vec<String>,
    source: Sources,
    output: String,
    format: String,
    cache: CacheMode,
    options: OptionLists,
    backing: Option<String>,
    backing_format: Option<String>,
    sparse: u64,
    workers: usize,
    out_of_order: bool,
    create: bool,
    compress: bool,
    progress: Wanted,
    quiet: bool,
    form: Form,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let Some(mut request) = read(parser)? else { return Ok(0) };
    let wanted = std::mem::take(&mut request.progress);
    let progress = Progress::start(wanted.unless(request.quiet || request.form == Form::Json));
    let engine = engine()?;
    let size = engine.block_on(convert(&engine, &request, &progress))??;
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

/// Reads the command line; `None` if it only asked for the list of options.
fn read(mut parser: Parser) -> Result<Option<Request>, Failure> {
    let mut request = Request::new();
    let (mut cache, mut source_cache) = (None, None);
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            "output-cache" => cache = Some(value),
            "source-cache" => source_cache = Some(value),
            _ if request.source.take(name, &value)? => {}
            _ => request.take(name, value)?,
        }
    }
    let mut names = parser.operands();
    if !request.create && request.options.is_given() {
        return Err(Failure::message("-o has no effect when skipping image creation"));
    }
    if request.options.wants_help() {
        return show_help(&request.format, !names.is_empty()).map(|()| None);
    }
    let output = names.pop().filter(|_| !names.is_empty());
    request.output = output.ok_or_else(|| Failure::message("Must specify image file name"))?;
    request.sources = names;
    request.cache = cache.map_or(Ok(CacheMode::UNSAFE), |word| open::target_cache(&word))?;
    request.source.options.cache =
        source_cache.map_or(Ok(CacheMode::WRITEBACK), |word| open::source_cache(&word))?;
    Ok(Some(request))
}

impl Request {
    /// What is done where no option says otherwise.
    fn new() -> Request {
        Request {
            sources: Vec::new(),
            source: Sources::new(),
            output: String::new(),
            format: "raw".to_owned(),
            cache: CacheMode::UNSAFE,
            options: OptionLists::default(),
            backing: None,
            backing_format: None,
            sparse: 4096,
            workers: 8,
            out_of_order: false,
            create: true,
            compress: false,
            progress: Wanted::default(),
            quiet: false,
            form: Form::Human,
        }
    }

    /// Takes one option.
    fn take(&mut self, name: &str, value: String) -> Result<(), Failure> {
        match name {
            "output-format" => self.format = value,
            "options" => self.options.add(&value)?,
            "backing" => self.backing = Some(value),
            "backing-format" => self.backing_format = Some(value),
            "sparse-size" => self.sparse = parse_sparse(&value)?,
            "parallel" => self.workers = parse_workers(&value)?,
            "oob-writes" => self.out_of_order = true,
            "no-create" => self.create = false,
            "compress" => self.compress = true,
            "progress" => self.progress.take(&value)?,
            "output" => self.form = Form::parse(&value)?,
            _ => self.quiet = true,
        }
        Ok(())
    }
}

fn parse_sparse(text: &str) -> Result<u64, Failure> {
    let what = "buffer size for sparse output";
    match size_argument(what, text)? {
        size if size <= MAX_SPARSE && size.is_multiple_of(512) => Ok(size),
        _ => Err(Failure::message(format!(
            "Invalid {what} specified. Valid sizes are multiples of 512 up to {MAX_SPARSE}. Select 0 to disable \
             sparse detection (fully allocates output)."
        ))),
    }
}

fn parse_workers(text: &str) -> Result<usize, Failure> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Failure::message(format!("Invalid number of coroutines specified: '{text}'.")));
    }
    match text.parse() {
        Ok(workers @ 1..=16) => Ok(workers),
        _ => Err(Failure::message("Invalid number of coroutines specified. Must be between 1 and 16.")),
    }
}

/// Bytes of the disk that was copied.
async fn convert(engine: &Rc<Engine>, request: &Request, progress: &Progress) -> Result<u64, Failure> {
    let mut sources = Vec::new();
    for source in &request.sources {
        sources.push(request.source.open(engine, source).await?);
    }
    let size = total_size(&sources);
    let made = if request.create {
        let values = prepare(request, size)?;
        let what = format!("{}: error while converting {}", request.output, request.format);
        let secrets = &request.source.options.secrets;
        let created = create(engine, &request.output, &values, secrets).await;
        created.map_err(|error| Failure::block(&what, &error))?;
        Some(values)
    } else {
        None
    };
    let target = open_target(engine, request, made.as_ref()).await?;
    if request.compress && !Template::new(&request.format, true).is_ok_and(|format| format.has_compression())
    {
        return Err(Failure::message("Compression not supported for this file format"));
    }
    if target.size() < size {
        return Err(Failure::message("output file is smaller than input file"));
    }
    let options = copy_options(request, &target, made.as_ref());
    copy_all(&sources, &target, &options, progress).await?;
    finish(&target, request).await?;
    progress.finish();
    Ok(size)
}

/// The options of the new image.
fn prepare(request: &Request, size: u64) -> Result<Values, Failure> {
    let plain = |error: Error| Failure::message(error.message());
    let template = Template::new(&request.format, true).map_err(plain)?;
    check_filename(&request.output).map_err(plain)?;
    let mut values = template.values(request.options.options()).map_err(plain)?;
    if request.backing.is_some() && !template.has_backing() {
        let message = format!("Backing file not supported for file format '{}'", request.format);
        return Err(Failure::message(message));
    }
    if request.backing_format.is_some() && !template.has_backing() {
        let message = format!("Backing file format not supported for file format '{}'", request.format);
        return Err(Failure::message(message));
    }
    values.set("size", &size.to_string()).map_err(plain)?;
    if let Some(name) = &request.backing {
        values.set("backing_file", name).map_err(plain)?;
    }
    if let Some(format) = &request.backing_format {
        values.set("backing_fmt", format).map_err(plain)?;
    }
    let has_backing = values.get("backing_file").is_some();
    if has_backing && values.get("backing_fmt").is_none() {
        return Err(Failure::message("Use of backing file requires explicit backing format"));
    }
    if has_backing && request.sources.len() > 1 {
        let message = "Having a backing file for the target makes no sense when concatenating multiple input \
                       images";
        return Err(Failure::message(message));
    }
    if request.compress {
        check_compression(&template, &values)?;
    }
    Ok(values)
}

/// Refuses what cannot be compressed.
fn check_compression(template: &Template, values: &Values) -> Result<(), Failure> {
    let is_set = |name, off| values.get(name).is_some_and(|value| value != off);
    let message = if !template.has_compression() {
        "Compression not supported for this file format"
    } else if is_set("encryption", "off") || is_set("encrypt.format", "") {
        "Compression and encryption not supported at the same time"
    } else if is_set("preallocation", "off") {
        "Compression and preallocation not supported at the same time"
    } else {
        return Ok(());
    };
    Err(Failure::message(message))
}

/// `made`: what it was made with, if it was.
async fn open_target(
    engine: &Rc<Engine>,
    request: &Request,
    made: Option<&Values>,
) -> Result<Rc<Node>, Failure> {
    let mut driver = Options::default();
    if let Some((option, id)) = made.and_then(key_option) {
        driver.set(option, id);
    }
    let options = OpenOptions {
        driver,
        secrets: request.source.options.secrets.clone(),
        format: Some(request.format.clone()),
        read_only: false,
        cache: request.cache,
        unmap: request.sparse > 0,
        ..OpenOptions::default()
    };
    open::image(engine, &request.output, &options).await
}

fn copy_options(request: &Request, target: &Node, made: Option<&Values>) -> CopyOptions {
    let has_backing = made.is_some_and(|values| values.get("backing_file").is_some());
    let backing = target.child(ChildRole::Backing);
    CopyOptions {
        sparse: request.sparse,
        workers: request.workers,
        out_of_order: request.out_of_order,
        compress: request.compress,
        target_is_zero: made.is_some_and(Values::reads_as_zeros) && !has_backing,
        target_backing: backing.filter(|_| has_backing).map(|backing| backing.size()),
    }
}

async fn copy_all(
    sources: &[Rc<Node>],
    target: &Rc<Node>,
    options: &CopyOptions,
    progress: &Progress,
) -> Result<(), Failure> {
    let report = |done: u64, total: u64| progress.report(done, total);
    let shown: Option<&dyn Fn(u64, u64)> = if progress.is_shown() { Some(&report) } else { None };
    copy(sources, target, options, shown).await.map_err(|error| Failure::plain(&error))
}

async fn finish(target: &Rc<Node>, request: &Request) -> Result<(), Failure> {
    let flushed = target.flush().await;
    let done = flushed.and(target.close().await);
    done.map_err(|error| Failure::block(&format!("Could not write '{}'", request.output), &error))
}
