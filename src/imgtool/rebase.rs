//! `rebase`: an image over another backing file, with the same disk; or, unsafe, with whatever comes of it.

use super::getopt::{Flag, Parser};
use super::open::{self, Sources};
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS, Progress, Wanted};
use super::{Command, HELP, engine, only_image};
use crate::block::aio::Engine;
use crate::block::filename::beside;
use crate::block::graph::Node;
use crate::block::graph::overlay::BackingName;
use crate::block::open::open;
use crate::block::ops::create::is_known_format;
use crate::block::ops::rebase::{merge, rename};
use crate::block::options::{CacheMode, OpenOptions};
use crate::block::{Error, Kind};
use serde_json::json;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "rebase",
    summary: "Put an image over another backing file",
    usage: "[-f FMT] [-b BACKING_FILE [-F BACKING_FMT]] [-u] [-c] [-t CACHE] [-T CACHE] [-p] [-q] [-U] FILENAME",
    flags: &[
        HELP,
        Flag::switch("quiet", "say nothing but errors").short('q'),
        PROGRESS,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::value("cache", "CACHE", "cache mode of the image (default: writeback)").short('t'),
        Flag::value("backing", "BACKING_FILE", "the new backing file; '' for none").short('b'),
        Flag::value("backing-format", "BACKING_FMT", "its format").short('F'),
        Flag::value("backing-cache", "CACHE", "its cache mode (default: writeback)").short('T'),
        Flag::switch("backing-unsafe", "only change the name, whatever the disk shows then").short('u'),
        Flag::switch("compress", "compress what is written").short('c'),
        Flag::switch("force-share", "read backing files although another process may write them").short('U'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        OUTPUT,
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

/// What is to be done.
#[derive(Debug)]
struct Request {
    image: Sources,
    filename: String,
    /// What is to be the backing file; `None` for none.
    backing: Option<String>,
    format: Option<String>,
    backing_cache: CacheMode,
    /// Nothing is looked at.
    blind: bool,
    compress: bool,
    /// Backing files are read although others may write them.
    share: bool,
    quiet: bool,
    form: Form,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let (request, progress) = read(parser)?;
    let progress = Progress::start(progress);
    let engine = engine()?;
    engine.block_on(open_and_rebase(&engine, &request, &progress))??;
    progress.complete();
    if request.form == Form::Json && !request.quiet {
        output::write_json(&json!({
            "filename": request.filename,
            "backing-filename": request.backing,
            "backing-filename-format": request.backing.as_ref().and(request.format.as_ref()),
        }))?;
    }
    Ok(0)
}

fn read(mut parser: Parser) -> Result<(Request, Wanted), Failure> {
    let (mut image, mut backing, mut format) = (Sources::new(), None, None);
    let (mut cache, mut backing_cache) = (None, None);
    let (mut blind, mut compress, mut share, mut quiet) = (false, false, false, false);
    let (mut progress, mut form) = (Wanted::default(), Form::Human);
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            // The image itself is written to: nobody else may do so.
            "force-share" => share = true,
            _ if image.take(name, &value)? => {}
            "cache" => cache = Some(value),
            "backing" => backing = Some(value),
            "backing-format" => format = Some(value),
            "backing-cache" => backing_cache = Some(value),
            "backing-unsafe" => blind = true,
            "compress" => compress = true,
            "progress" => progress.take(&value)?,
            "output" => form = Form::parse(&value)?,
            _ => quiet = true,
        }
    }
    let filename = only_image(parser)?;
    if backing.is_none() && !blind {
        let message = "Must specify backing file (-b) or use unsafe mode (-u)";
        return Err(Failure::Usage(message.to_owned()));
    }
    image.options.read_only = false;
    image.options.backing = !blind;
    image.options.cache = cache.map_or(Ok(CacheMode::WRITEBACK), |word| open::target_cache(&word))?;
    let backing_cache = backing_cache.map_or(Ok(CacheMode::WRITEBACK), |word| open::source_cache(&word))?;
    let backing = backing.filter(|name| !name.is_empty());
    let progress = progress.unless(quiet || form == Form::Json);
    let request =
        Request { image, filename, backing, format, backing_cache, blind, compress, share, quiet, form };
    Ok((request, progress))
}

async fn open_and_rebase(engine: &Rc<Engine>, request: &Request, progress: &Progress) -> Result<(), Failure> {
    let image = request.image.open(engine, &request.filename).await?;
    let done = rebase(engine, &image, request, progress).await;
    open::close(&image, done).await
}

async fn rebase(
    engine: &Rc<Engine>,
    image: &Rc<Node>,
    request: &Request,
    progress: &Progress,
) -> Result<(), Failure> {
    if request.compress && !image.driver().clusters().is_some_and(|clusters| clusters.compressed) {
        return Err(Failure::message("Compression not supported for this file format"));
    }
    if let Some(format) = request.format.as_ref().filter(|format| !is_known_format(format)) {
        return Err(Failure::message(format!("Invalid format name: '{format}'")));
    }
    let new = if request.blind { None } else { open_backing(engine, image, request).await? };
    let name = request.backing_name().inspect_err(|_| progress.finish())?;
    // What cannot get another backing file is not written to.
    if !request.blind && image.driver().overlay().is_some() {
        let report = |done: u64, total: u64| progress.report(done, total);
        let merged = merge(image, new.as_ref(), request.compress, &report).await;
        merged.map_err(|error| Failure::plain(&error))?;
    }
    progress.finish();
    rename(image, name.as_ref()).await.map_err(|error| request.not_changed(&error.terse()))
}

async fn open_backing(
    engine: &Rc<Engine>,
    image: &Node,
    request: &Request,
) -> Result<Option<Rc<Node>>, Failure> {
    let Some(name) = &request.backing else { return Ok(None) };
    let options = OpenOptions {
        format: request.format.clone(),
        cache: request.backing_cache,
        force_share: request.share,
        exclusive: true,
        secrets: request.image.options.secrets.clone(),
        ..OpenOptions::default()
    };
    let opened = open(engine, &beside(image.filename(), name), &options).await;
    opened
        .map(Some)
        .map_err(|error| Failure::block(&format!("Could not open new backing file '{name}'"), &error))
}

impl Request {
    /// The backing file as the image is to name it; its format must be named too.
    fn backing_name(&self) -> Result<Option<BackingName>, Failure> {
        match (&self.backing, &self.format) {
            (None, _) => Ok(None),
            (Some(file), Some(format)) => {
                Ok(Some(BackingName { file: file.clone(), format: Some(format.clone()) }))
            }
            (Some(_), None) => {
                let error = Error::new(Kind::InvalidArgument, "backing format must be specified");
                Err(self.not_changed(&error.remedy("add -F FORMAT")))
            }
        }
    }

    fn not_changed(&self, error: &Error) -> Failure {
        let name = self.backing.as_deref().unwrap_or_default();
        Failure::block(&format!("Could not change the backing file to '{name}'"), error)
    }
}
