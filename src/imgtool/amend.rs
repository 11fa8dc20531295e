//! `amend`: options of an image that exists, and its key slots.

use super::create_options::{OptionLists, list_text};
use super::getopt::{Flag, Parser};
use super::open::{self, Sources};
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS, Progress, Wanted};
use super::{Command, HELP, engine};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::ops::amend::{Changes, amendable};
use crate::block::options::CacheMode;
use serde_json::{Map, Value, json};
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "amend",
    summary: "Change options of an image",
    usage: "[-f FMT] [-t CACHE] [--force] [-p] [-q] -o OPTIONS FILENAME",
    flags: &[
        HELP,
        Flag::value("options", "OPTIONS", "options to change; '-o help' lists them").short('o'),
        Flag::switch("quiet", "say nothing but errors").short('q'),
        PROGRESS,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::value("cache", "CACHE", "cache mode (default: writeback)").short('t'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("force", "also erase or overwrite the last key slot that opens the image"),
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
    options: OptionLists,
    force: bool,
}

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let (mut source, mut options, mut cache) = (Sources::new(), OptionLists::default(), None);
    let (mut force, mut quiet, mut progress, mut form) = (false, false, Wanted::default(), Form::Human);
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            _ if source.take(name, &value)? => {}
            "options" => options.add(&value)?,
            "cache" => cache = Some(value),
            "force" => force = true,
            "progress" => progress.take(&value)?,
            "output" => form = Form::parse(&value)?,
            _ => quiet = true,
        }
    }
    if !options.is_given() {
        return Err(Failure::Usage("Must specify options (-o)".to_owned()));
    }
    if let (true, Some(format)) = (options.wants_help(), &source.options.format) {
        return show_help(format).map(|()| 0);
    }
    let progress = Progress::silent(progress.unless(quiet || form == Form::Json), 1.0);
    let one_image = |_| Failure::message("Expecting one image file name");
    let [filename] = <[String; 1]>::try_from(parser.operands()).map_err(one_image)?;
    source.options.read_only = false;
    source.options.cache = cache.map_or(Ok(CacheMode::WRITEBACK), |word| open::target_cache(&word))?;
    let request = Request { source, filename, options, force };
    let engine = engine()?;
    progress.listen(&engine);
    let format = engine.block_on(open_and_amend(&engine, &request, &progress))??;
    progress.complete();
    if form == Form::Json && !quiet && !request.options.wants_help() {
        output::write_json(&request.result(format))?;
    }
    Ok(0)
}

impl Request {
    /// What was changed: all options that were given.
    fn result(&self, format: &str) -> Value {
        let given = self.options.options().pairs().iter();
        let options: Map<String, Value> =
            given.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        json!({"filename": self.filename, "format": format, "options": options})
    }
}

/// The format of the image.
async fn open_and_amend(
    engine: &Rc<Engine>,
    request: &Request,
    progress: &Progress,
) -> Result<&'static str, Failure> {
    let image = request.source.open(engine, &request.filename).await?;
    let done = amend(&image, request, progress).await;
    let format = image.driver().format_name();
    open::close(&image, done.map(|()| format)).await
}

async fn amend(image: &Node, request: &Request, progress: &Progress) -> Result<(), Failure> {
    let format = image.driver().format_name();
    if request.options.wants_help() {
        return show_help(format);
    }
    let plain = |error| Failure::plain(&error);
    let changes = Changes::read(format, request.options.options()).map_err(plain)?;
    progress.begin();
    let done = changes.apply(image, &request.source.options.secrets, request.force).await;
    progress.finish();
    done.map_err(plain)
}

fn show_help(format: &str) -> Result<(), Failure> {
    let options = amendable(format).map_err(|error| Failure::plain(&error))?;
    Ok(output::write(&format!("Amend options for '{format}':\n{}", list_text(options)))?)
}
