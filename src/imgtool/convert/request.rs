//! The command line of `convert`, and what in it cannot be.

use super::super::create_options::{OptionLists, show_help};
use super::super::getopt::Parser;
use super::super::open::{self, Sources};
use super::super::output::{Failure, Form};
use super::super::progress::Wanted;
use super::super::size_argument;
use crate::block::options::{CacheMode, OpenOptions};
use crate::block::{Error, describe};
use std::fs;

/// Longest run of zeros that can be asked for, in bytes.
const MAX_SPARSE: u64 = 16 << 20;
/// What stands for standard input or output.
const STREAM: &str = "-";
/// The name of standard input.
const STDIN: &str = "/dev/stdin";

/// What is to be done.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) sources: Vec<String>,
    pub(super) source: Sources,
    pub(super) snapshot: Option<String>,
    pub(super) output: String,
    pub(super) format: String,
    /// As it was given.
    cache: Option<String>,
    pub(super) options: OptionLists,
    /// The output is an option string.
    pub(super) describes_target: bool,
    pub(super) target_is_zero: bool,
    pub(super) backing: Option<String>,
    pub(super) backing_format: Option<String>,
    /// As it was given: shorter runs of zeros are written as data.
    pub(super) sparse: u64,
    pub(super) workers: usize,
    pub(super) out_of_order: bool,
    pub(super) create: bool,
    pub(super) compress: bool,
    pub(super) offload: bool,
    pub(super) salvage: bool,
    pub(super) bitmaps: bool,
    pub(super) skip_broken_bitmaps: bool,
    pub(super) rate: u64,
    pub(super) progress: Wanted,
    pub(super) quiet: bool,
    pub(super) form: Form,
    /// What only decides whether options go together.
    given: Given,
}

/// Which options were given.
#[derive(Debug, Default)]
struct Given {
    format: bool,
    sparse: bool,
}

/// Reads the command line; `None` if it only asked for the list of options.
pub(super) fn read(mut parser: Parser) -> Result<Option<Request>, Failure> {
    let mut request = Request::new();
    let mut source_cache = None;
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            "source-cache" => source_cache = Some(value),
            _ if request.source.take(name, &value)? => {}
            _ => request.take(name, value)?,
        }
    }
    let mut names = parser.operands();
    request.check()?;
    if request.options.wants_help() {
        return show_help(&request.format, !names.is_empty()).map(|()| None);
    }
    let output = names.pop().filter(|_| !names.is_empty());
    request.output = output.ok_or_else(|| Failure::message("Must specify image file name"))?;
    request.sources = names.into_iter().map(seekable).collect();
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
            snapshot: None,
            output: String::new(),
            format: "raw".to_owned(),
            cache: None,
            options: OptionLists::default(),
            describes_target: false,
            target_is_zero: false,
            backing: None,
            backing_format: None,
            sparse: 4096,
            workers: 8,
            out_of_order: false,
            create: true,
            compress: false,
            offload: false,
            salvage: false,
            bitmaps: false,
            skip_broken_bitmaps: false,
            rate: 0,
            progress: Wanted::default(),
            quiet: false,
            form: Form::Human,
            given: Given::default(),
        }
    }

    /// Takes one option.
    fn take(&mut self, name: &str, value: String) -> Result<(), Failure> {
        match name {
            "output-format" => (self.format, self.given.format) = (value, true),
            "options" => self.options.add(&value)?,
            "output-cache" => self.cache = Some(value),
            "snapshot" => self.snapshot = Some(checked_snapshot(value)?),
            "target-image-opts" => self.describes_target = true,
            "target-is-zero" => self.target_is_zero = true,
            "backing" => self.backing = Some(value),
            "backing-format" => self.backing_format = Some(value),
            "sparse-size" => (self.sparse, self.given.sparse) = (parse_sparse(&value)?, true),
            "parallel" => self.workers = parse_workers(&value)?,
            "oob-writes" => self.out_of_order = true,
            "no-create" => self.create = false,
            "compress" => self.compress = true,
            "copy-range-offloading" => self.offload = true,
            "salvage" => self.salvage = true,
            "bitmaps" => self.bitmaps = true,
            "skip-broken-bitmaps" => self.skip_broken_bitmaps = true,
            "rate" => self.rate = parse_rate(&value)?,
            "progress" => self.progress.take(&value)?,
            "output" => self.form = Form::parse(&value)?,
            _ => self.quiet = true,
        }
        Ok(())
    }

    /// Refuses options that do not go together.
    fn check(&self) -> Result<(), Failure> {
        let mistakes = [
            (self.skip_broken_bitmaps && !self.bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"),
            (self.offload && self.compress, "Cannot enable copy offloading when -c is used"),
            (self.offload && self.given.sparse, "Cannot enable copy offloading when -S is used"),
            (self.offload && self.salvage, "Cannot use copy offloading in salvaging mode"),
            (self.describes_target && self.create, "--target-image-opts requires use of -n flag"),
            (self.target_is_zero && self.create, "--target-is-zero requires use of -n flag"),
            (!self.create && self.options.is_given(), "-o has no effect when skipping image creation"),
        ];
        match mistakes.into_iter().find(|(made, _)| *made) {
            Some((_, message)) => Err(Failure::message(message)),
            None => Ok(()),
        }
    }

    /// The cache mode of the output.
    pub(super) fn output_cache(&self) -> Result<CacheMode, Failure> {
        self.cache.as_deref().map_or(Ok(CacheMode::UNSAFE), open::target_cache)
    }

    /// Whether one end is a pipe.
    pub(super) fn uses_streams(&self) -> bool {
        self.reads_stream() || self.writes_stream()
    }

    /// Whether a source is standard input.
    pub(super) fn reads_stream(&self) -> bool {
        self.sources.iter().any(|source| source == STREAM)
    }

    /// Whether the output is standard output.
    pub(super) fn writes_stream(&self) -> bool {
        self.output == STREAM
    }

    /// The format that the sources are said to have.
    pub(super) fn source_format(&self) -> Option<&str> {
        self.source.options.format.as_deref()
    }

    /// The output's file, and how the option string that it is says to open it.
    pub(super) fn described_target(&self, options: &OpenOptions) -> Result<(String, OpenOptions), Failure> {
        let failed = |error: Error| Failure::open(&self.output, &error);
        if !self.describes_target {
            return Ok((
                self.output.clone(),
                OpenOptions { format: Some(self.format.clone()), ..options.clone() },
            ));
        }
        if self.given.format {
            return Err(Failure::message("--image-opts and --format are mutually exclusive"));
        }
        describe::from_options(&self.output, options).map_err(failed)
    }
}

/// Standard input that is a file is read as one.
fn seekable(source: String) -> String {
    let is_file = || fs::metadata(STDIN).is_ok_and(|metadata| metadata.is_file());
    if source == STREAM && is_file() { STDIN.to_owned() } else { source }
}

/// An option string is looked at when it is met.
fn checked_snapshot(text: String) -> Result<String, Failure> {
    super::snapshot_param::parse(&text).map(|_| text)
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

fn parse_rate(text: &str) -> Result<u64, Failure> {
    size_argument("rate limit", text)
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
