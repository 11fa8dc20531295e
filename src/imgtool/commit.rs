//! `commit`: what an image has goes into its backing file, or into one further down.

use super::getopt::{Flag, Parser};
use super::open::{self, Sources};
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS, Progress, Wanted};
use super::{Command, HELP, engine, only_image, size_argument};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::ops::commit::{CommitOptions, base_of, commit};
use crate::block::options::{Base, CacheMode};
use serde_json::json;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "commit",
    summary: "Write what an image has into its backing file",
    usage: "[-f FMT] [-b BASE] [-d] [-r RATE] [-t CACHE] [-p] [-q] FILENAME",
    flags: &[
        HELP,
        Flag::switch("quiet", "say nothing but errors").short('q'),
        PROGRESS,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::value("cache", "CACHE", "cache mode (default: writeback)").short('t'),
        Flag::switch("drop", "leave the image as it is, not empty").short('d'),
        Flag::value("base", "BASE", "the image of the backing chain to write to; implies -d").short('b'),
        Flag::value("rate", "RATE", "bytes a second").short('r'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        OUTPUT,
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

/// What is to be done.
#[derive(Debug)]
struct Request {
    source: Sources,
    filename: String,
    base: Option<String>,
    options: CommitOptions,
    quiet: bool,
    form: Form,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let (request, progress) = read(parser)?;
    let progress = Progress::later(progress);
    let engine = engine()?;
    let base = engine.block_on(open_and_commit(&engine, &request, &progress))??;
    progress.complete();
    drop(progress);
    match request.form {
        _ if request.quiet => {}
        Form::Human => output::write("Image committed.\n")?,
        Form::Json => output::write_json(&json!({
            "filename": request.filename,
            "base": base,
            "emptied": request.options.make_empty,
        }))?,
    }
    Ok(0)
}

fn read(mut parser: Parser) -> Result<(Request, Wanted), Failure> {
    let (mut source, mut base, mut cache) = (Sources::new(), None, None);
    let (mut rate, mut drop, mut quiet) = (0, false, false);
    let (mut progress, mut form) = (Wanted::default(), Form::Human);
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            _ if source.take(name, &value)? => {}
            "cache" => cache = Some(value),
            "drop" => drop = true,
            "base" => base = Some(value),
            "rate" => rate = size_argument("rate limit", &value)?,
            "progress" => progress.take(&value)?,
            "output" => form = Form::parse(&value)?,
            _ => quiet = true,
        }
    }
    let filename = only_image(parser)?;
    let options = CommitOptions { rate, make_empty: !drop && base.is_none() };
    source.options.read_only = false;
    source.options.unmap = true;
    source.options.cache = cache.map_or(Ok(CacheMode::WRITEBACK), |word| open::target_cache(&word))?;
    source.options.base = Some(base.clone().map_or(Base::Nearest, Base::Named));
    let progress = progress.unless(quiet || form == Form::Json);
    Ok((Request { source, filename, base, options, quiet, form }, progress))
}

/// The file that it went into.
async fn open_and_commit(
    engine: &Rc<Engine>,
    request: &Request,
    progress: &Progress,
) -> Result<String, Failure> {
    let image = request.source.open(engine, &request.filename).await?;
    progress.begin();
    let done = commit_to_base(engine, &image, request, progress).await;
    open::close(&image, done).await
}

async fn commit_to_base(
    engine: &Rc<Engine>,
    image: &Rc<Node>,
    request: &Request,
    progress: &Progress,
) -> Result<String, Failure> {
    let missing = || match &request.base {
        Some(base) => format!("Did not find '{base}' in the backing chain of '{}'", request.filename),
        None => "Image does not have a backing file".to_owned(),
    };
    let base = base_of(image).ok_or_else(|| Failure::message(missing()))?;
    let report = |done: u64, total: u64| progress.report(done, total);
    let shown: Option<&dyn Fn(u64, u64)> = if progress.is_shown() { Some(&report) } else { None };
    let done = commit(engine, image, &base, &request.options, shown).await;
    done.map_err(|error| Failure::plain(&error))?;
    progress.finish();
    Ok(base.filename().to_owned())
}
