//! `dd`: a run of blocks of an image in a new one.
//!
//! Deliberate differences from qemu-img: `count` counts the blocks that are copied, as the manual and dd(1) have
//! it, not the skipped ones too; zeros stay holes; an output that is its own input is refused, not emptied.

use super::getopt::{Flag, Parser};
use super::interrupt::Interrupts;
use super::numbers::{number, size};
use super::open::Sources;
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS_IN_FULL, Progress, Wanted};
use super::{Command, HELP, engine};
use crate::block::aio::Engine;
use crate::block::error::errno_text;
use crate::block::filename::check_protocol;
use crate::block::filter::Window;
use crate::block::graph::Node;
use crate::block::ops::copy::{CopyOptions, Reports, copy};
use crate::block::ops::create::{NewImage, Template};
use crate::block::options::OpenOptions;
use crate::block::{Error, Kind};
use crate::util::keyval::Options;
use serde_json::json;
use std::io;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "dd",
    summary: "Copy a run of blocks of an image into a new one",
    usage: "[-f FMT] [-O FMT] [-U] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    flags: &[
        HELP,
        Flag::value("format", "FMT", "format of INPUT (default: guessed)").short('f'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("image-opts", "INPUT is an option string"),
        Flag::value("output-format", "FMT", "format of OUTPUT (default: raw)").short('O'),
        Flag::switch("force-share", "read INPUT although another process may write it").short('U'),
        PROGRESS_IN_FULL,
        OUTPUT,
    ],
    operands: &[
        ("bs=SIZE", "bytes of a block (default: 512)"),
        ("count=BLOCKS", "how many blocks to copy (default: all that are left)"),
        ("skip=BLOCKS", "how many blocks of INPUT to skip (default: 0)"),
        ("if=INPUT", "the image to copy from"),
        ("of=OUTPUT", "the new image; an existing file is replaced"),
    ],
    run,
};

/// Shortest run of zeros that is left a hole, in bytes: shorter ones cost more requests than they save space.
const SPARSE: u64 = 64 << 10;
/// Pieces in flight.
const WORKERS: usize = 8;

/// What is to be done.
struct Request {
    source: Sources,
    input: Option<String>,
    output: Option<String>,
    format: String,
    block: u64,
    count: Option<u64>,
    skip: u64,
    progress: Wanted,
    form: Form,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let mut request = read(parser)?;
    let wanted = std::mem::take(&mut request.progress);
    // Before there are threads: they must hold them back too.
    let interrupts = Interrupts::hold()?;
    let progress = Progress::later(wanted.unless(request.form == Form::Json));
    let engine = engine()?;
    let size = engine.block_on(interrupts.run(&engine, dd(&engine, &request, &progress)))??;
    progress.finish();
    progress.complete();
    drop(progress);
    if request.form == Form::Json {
        output::write_json(&json!({
            "input": request.input,
            "output": request.output,
            "format": request.format,
            "virtual-size": size,
        }))?;
    }
    Ok(0)
}

fn read(mut parser: Parser) -> Result<Request, Failure> {
    let mut request = Request {
        source: Sources::new(),
        input: None,
        output: None,
        format: "raw".to_owned(),
        block: 512,
        count: None,
        skip: 0,
        progress: Wanted::default(),
        form: Form::Human,
    };
    while let Some((name, value)) = parser.next()? {
        match name {
            _ if request.source.take(name, &value)? => {}
            "help" => return Err(Failure::Help),
            "progress" => request.progress.take(&value)?,
            // qemu-img takes it for a shortened --output-format.
            "output" => match Form::parse(&value) {
                Ok(form) => request.form = form,
                Err(_) => request.format = value,
            },
            _ => request.format = value,
        }
    }
    parser.operands().iter().try_for_each(|operand| request.take(operand))?;
    Ok(request)
}

impl Request {
    /// Takes one operand.
    fn take(&mut self, operand: &str) -> Result<(), Failure> {
        let (name, value) = operand.split_once('=').unwrap_or((operand, ""));
        let blocks = || number(name, value, 0, i64::MAX as u64);
        match (name, operand.contains('=')) {
            ("if", true) => self.input = Some(value.to_owned()),
            ("of", true) => self.output = Some(value.to_owned()),
            ("bs", true) => self.block = size(name, value, 1, i32::MAX as u64)?,
            ("count", true) => self.count = Some(blocks()?),
            ("skip", true) => self.skip = blocks()?,
            _ => return Err(Failure::message(format!("unrecognized operand {name}"))),
        }
        Ok(())
    }

    /// The run of bytes that is wanted: its start and its length at most.
    fn range(&self) -> (u64, u64) {
        let bytes = |blocks: u64| blocks.saturating_mul(self.block);
        (bytes(self.skip), self.count.map_or(u64::MAX, bytes))
    }
}

/// Bytes of the new disk.
async fn dd(engine: &Rc<Engine>, request: &Request, progress: &Progress) -> Result<u64, Failure> {
    let (Some(input), Some(output)) = (&request.input, &request.output) else {
        return Err(Failure::message("Must specify both input and output files"));
    };
    let source = request.source.open(engine, input).await?;
    let template = Template::new(&request.format, true).map_err(unknown_format)?;
    check_protocol(output).map_err(|error| Failure::message(error.message()))?;
    let (start, len) = request.range();
    let skips_too_far = start > source.size();
    let source = Node::new(input.clone(), Box::new(Window::new(source, start, len)));
    let size = source.size();
    let new = make(engine, request, &template, output, size).await;
    let what = format!("{output}: error while creating output image");
    let new = new.map_err(|error| Failure::block(&what, &error))?;
    let options = OpenOptions { unmap: true, ..OpenOptions::default() };
    let target = new.open(engine, options).await.map_err(|error| Failure::open(output, &error))?;
    let options = CopyOptions {
        sparse: SPARSE,
        workers: WORKERS,
        target_is_zero: new.values().reads_as_zeros_in(&target),
        target_is_new: true,
        ..CopyOptions::default()
    };
    let report = |done: u64, total: u64| progress.report(done, total);
    let shown: Option<&dyn Fn(u64, u64)> = if progress.is_shown() { Some(&report) } else { None };
    let reports = Reports { progress: shown, warn: &|_, _, _| {} };
    copy(engine, &[source], &target, &options, &reports).await.map_err(|error| failed(&error))?;
    let done = new.finish(engine, &target).await;
    done.map_err(|error| Failure::block(&format!("Could not write '{output}'"), &error))?;
    match skips_too_far {
        // Said, but no failure.
        true => Err(Failure::message(format!("{input}: cannot skip to specified offset")).with_code(0)),
        false => Ok(size),
    }
}

fn unknown_format(error: Error) -> Failure {
    match error.kind() {
        Kind::InvalidArgument => Failure::message("Unknown file format"),
        _ => Failure::message(error.message()),
    }
}

/// Makes the output, for a disk of `size` bytes.
async fn make(
    engine: &Rc<Engine>,
    request: &Request,
    template: &Template,
    output: &str,
    size: u64,
) -> Result<NewImage, Error> {
    let mut values = template.values(&Options::default())?;
    values.set("size", &size.to_string())?;
    NewImage::make(engine, output, &values, &request.source.options.secrets).await
}

/// In the words of this command; the copy's own say on which side it was.
fn failed(error: &Error) -> Failure {
    let reading = error.message().starts_with("error while reading");
    let doing = if reading { "reading from input" } else { "writing to output" };
    let cause = errno_text(&io::Error::from_raw_os_error(error.errno()));
    Failure::message(format!("error while {doing} image file: {cause}"))
}
