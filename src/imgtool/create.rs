//! `create`: a new image.

use super::create_options::{OptionLists, show_help};
use super::getopt::{Flag, Parser};
use super::interrupt::Interrupts;
use super::open::define;
use super::output::{self, Failure, Form, OUTPUT};
use super::{Command, HELP, engine, json, size_argument};
use crate::block::Error;
use crate::block::aio::Engine;
use crate::block::filename::{beside, check_protocol};
use crate::block::open::open;
use crate::block::ops::create::{Template, Values, create};
use crate::block::options::OpenOptions;
use crate::block::secret::Secrets;
use serde_json::{Map, Value, json};
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "create",
    summary: "Make a new image",
    usage: "[-f FMT] [-o OPTIONS] [-b BACKING_FILE -F BACKING_FMT] [-u] [-q] FILENAME [SIZE]",
    flags: &[
        HELP,
        Flag::switch("quiet", "say nothing but errors").short('q'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::value("format", "FMT", "format of the image (default: raw)").short('f'),
        Flag::value("backing", "BACKING_FILE", "keep only what differs from this file").short('b'),
        Flag::value("backing-format", "BACKING_FMT", "format of the backing file").short('F'),
        Flag::switch("backing-unsafe", "do not look at the backing file").short('u'),
        Flag::value("options", "OPTIONS", "options of the format; '-o help' lists them").short('o'),
        OUTPUT,
    ],
    operands: &[
        ("FILENAME", "the image; an existing file is replaced"),
        ("SIZE", "size of the disk in bytes, or with k, M, G, T, P, E; default: that of the backing file"),
    ],
    run,
};

/// What is to be made.
#[derive(Debug, Default)]
struct Request {
    filename: String,
    format: String,
    size: Option<u64>,
    options: OptionLists,
    backing: Option<String>,
    backing_format: Option<String>,
    secrets: Secrets,
    /// The backing file is not looked at.
    blind: bool,
    quiet: bool,
    form: Form,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let Some(request) = read(parser)? else { return Ok(0) };
    // Before there are threads: they must hold them back too.
    let interrupts = Interrupts::hold()?;
    let engine = engine()?;
    let prefix = request.filename.clone();
    let made = engine.block_on(interrupts.run(&engine, make(&engine, &request)))?;
    made.map_err(|error| Failure::block(&prefix, &error))?;
    Ok(0)
}

/// Reads the command line; `None` if it only asked for the list of options.
fn read(mut parser: Parser) -> Result<Option<Request>, Failure> {
    let mut request = Request { format: "raw".to_owned(), ..Request::default() };
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            "object" => define(&mut request.secrets, &value)?,
            "quiet" => request.quiet = true,
            "format" => request.format = value,
            "backing" => request.backing = Some(value),
            "backing-format" => request.backing_format = Some(value),
            "backing-unsafe" => request.blind = true,
            "output" => request.form = Form::parse(&value)?,
            _ => request.options.add(&value)?,
        }
    }
    let mut operands = parser.operands().into_iter();
    let filename = operands.next();
    if request.options.wants_help() {
        return show_help(&request.format, filename.is_some()).map(|()| None);
    }
    let missing = || Failure::Usage("Expecting image file name".to_owned());
    request.filename = filename.ok_or_else(missing)?;
    request.size = operands.next().map(|size| size_argument("image size", &size)).transpose()?;
    match operands.next() {
        Some(extra) => Err(Failure::Usage(format!("Unexpected argument: {extra}"))),
        None => Ok(Some(request)),
    }
}

async fn make(engine: &Rc<Engine>, request: &Request) -> Result<(), Error> {
    let template = Template::new(&request.format, true)?;
    check_protocol(&request.filename)?;
    let mut values = template.values(request.options.options())?;
    set_size(&mut values, request.size)?;
    set_backing(&template, &mut values, request)?;
    values.refuse_unsupported()?;
    let backing_size = look_at_backing(engine, &values, request).await?;
    match (values.size(), backing_size) {
        (Some(_), _) => {}
        (None, Some(size)) => values.set("size", &size.to_string())?,
        (None, None) => return Err(Error::invalid_argument("Image creation needs a size parameter")),
    }
    if !request.quiet && request.form == Form::Human {
        let line =
            format!("Formatting '{}', fmt={} {}\n", request.filename, request.format, values.describe());
        output::write(&line)?;
    }
    create(engine, &request.filename, &values, &request.secrets).await?;
    if !request.quiet && request.form == Form::Json {
        output::write(&json::to_text(&to_json(request, &values)))?;
    }
    Ok(())
}

/// What was made: all options that have a value, as they were shown to people.
fn to_json(request: &Request, values: &Values) -> Value {
    let options: Map<String, Value> =
        values.pairs().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json!({
        "filename": request.filename,
        "format": request.format,
        "virtual-size": values.size(),
        "options": options,
    })
}

fn set_size(values: &mut Values, size: Option<u64>) -> Result<(), Error> {
    match (size, values.size()) {
        (Some(_), Some(_)) => Err(Error::invalid_argument("The image size must be specified only once")),
        (Some(size), None) => values.set("size", &size.to_string()),
        (None, _) => Ok(()),
    }
}

fn set_backing(template: &Template, values: &mut Values, request: &Request) -> Result<(), Error> {
    let unsupported = |what: &str| {
        Error::invalid_argument(format!(
            "Backing file{what} not supported for file format '{}'",
            request.format
        ))
    };
    match &request.backing {
        Some(_) if !template.has_backing() => return Err(unsupported("")),
        Some(name) => values.set("backing_file", name)?,
        None => {}
    }
    match &request.backing_format {
        Some(_) if !template.has_backing() => return Err(unsupported(" format")),
        Some(format) => values.set("backing_fmt", format)?,
        None => {}
    }
    match values.get("backing_file") {
        Some("") => Err(Error::invalid_argument("Expected backing file name, got empty string")),
        Some(name) if name == request.filename => Err(Error::invalid_argument(
            "Error: Trying to create an image with the same filename as the backing file",
        )),
        _ => Ok(()),
    }
}

/// Opens the backing file, as the new image will; returns its size.
async fn look_at_backing(
    engine: &Rc<Engine>,
    values: &Values,
    request: &Request,
) -> Result<Option<u64>, Error> {
    let Some(name) = values.get("backing_file") else { return Ok(None) };
    let format = values.get("backing_fmt");
    if request.blind {
        return if format.is_some() { Ok(None) } else { Err(no_format("")) };
    }
    // A base that others use at this moment is as good as any.
    let options = OpenOptions {
        format: format.map(str::to_owned),
        force_share: true,
        // No data is read.
        metadata_only: true,
        ..OpenOptions::default()
    };
    let base = open(engine, &beside(&request.filename, name), &options).await.map_err(not_opened)?;
    let size = base.size();
    let detected = base.driver().format_name();
    base.close().await?;
    if format.is_none() {
        return Err(no_format(&format!("\nDetected format of {detected}."))
            .remedy(format!("add -F {detected} if that is what it is")));
    }
    Ok(Some(size))
}

fn no_format(detected: &str) -> Error {
    Error::invalid_argument(format!("Backing file specified without backing format{detected}"))
}

fn not_opened(error: Error) -> Error {
    let told = Error::new(error.kind(), format!("{}\nCould not open backing image.", error.message()));
    match error.hint() {
        Some(hint) => told.remedy(hint),
        None => told,
    }
}
