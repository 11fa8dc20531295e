//! `measure`: how large the file of a new image gets.

use super::create_options::OptionLists;
use super::getopt::{Flag, Parser};
use super::open::Sources;
use super::output::{self, Failure, Form};
use super::{Command, HELP, engine, json, size_argument, snapshot_param};
use crate::block::aio::Engine;
use crate::block::graph::snapshots::Selector;
use crate::block::ops::create::{Template, Values};
use crate::block::ops::measure::{Content, Measured, measure};
use crate::block::{Error, Kind};
use serde_json::Value;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "measure",
    summary: "Tell how large the file of a new image gets",
    usage: "[-O FMT] [-o OPTIONS] [--output=human|json] (--size SIZE | [-f FMT] [-l SNAPSHOT] [-U] FILENAME)",
    flags: &[
        HELP,
        Flag::value("target-format", "FMT", "format of the new image (default: raw)").short('O'),
        Flag::value("format", "FMT", "format of FILENAME (default: guessed)").short('f'),
        Flag::value("options", "OPTIONS", "options of the new image").short('o'),
        Flag::value("snapshot", "SNAPSHOT", "the copy is one of an internal snapshot").short('l'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::value("output", "human|json", "form of the result"),
        Flag::value("size", "SIZE", "the new image is empty, with a disk of this size").short('s'),
        Flag::switch("force-share", "look at FILENAME although another process may write it").short('U'),
    ],
    operands: &[("FILENAME", "the new image is a copy of this one")],
    run,
};

/// What is to be done.
struct Request {
    source: Sources,
    filename: Option<String>,
    size: Option<u64>,
    snapshot: Option<Selector>,
    format: String,
    options: OptionLists,
    form: Form,
    /// An option was given that speaks of FILENAME.
    describes_source: bool,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let request = read(parser)?;
    let engine = engine()?;
    let measured = engine.block_on(look(&engine, &request))??;
    output::write(&match request.form {
        Form::Human => to_text(&measured),
        Form::Json => json::to_text(&to_json(&measured)),
    })?;
    Ok(0)
}

fn read(mut parser: Parser) -> Result<Request, Failure> {
    let mut request = Request {
        source: Sources::new(),
        filename: None,
        size: None,
        snapshot: None,
        format: "raw".to_owned(),
        options: OptionLists::default(),
        form: Form::Human,
        describes_source: false,
    };
    while let Some((name, value)) = parser.next()? {
        request.describes_source |= ["format", "image-opts", "snapshot"].contains(&name);
        match name {
            _ if request.source.take(name, &value)? => {}
            "help" => return Err(Failure::Help),
            "target-format" => request.format = value,
            "options" => request.options.add(&value)?,
            "snapshot" => request.snapshot = Some(snapshot_param::parse(&value)?),
            "output" => request.form = Form::parse(&value)?,
            _ => request.size = Some(size_argument("image size", &value)?),
        }
    }
    let mut operands = parser.operands().into_iter();
    request.filename = operands.next();
    if operands.next().is_some() {
        return Err(Failure::message("At most one filename argument is allowed."));
    }
    request.check()?;
    Ok(request)
}

impl Request {
    /// Refuses what does not go together.
    fn check(&self) -> Result<(), Failure> {
        let message = match (&self.filename, self.size) {
            (None, _) if self.describes_source => "--image-opts, -f, and -l require a filename argument.",
            (None, None) => "Either --size N or one filename must be specified.",
            (Some(_), Some(_)) => "--size N cannot be used together with a filename.",
            _ => return Ok(()),
        };
        Err(Failure::message(message))
    }

    /// The options of the new image.
    fn values(&self) -> Result<Values, Failure> {
        let template = Template::new(&self.format, true).map_err(|error| match error.kind() {
            Kind::Unsupported => {
                Failure::message(format!("Block driver '{}' does not support size measurement", self.format))
            }
            _ => Failure::message(error.message()),
        })?;
        template.values(self.options.options()).map_err(|error| Failure::Twice {
            first: error.message().to_owned(),
            then: format!("Invalid options for file format '{}'", self.format),
        })
    }
}

async fn look(engine: &Rc<Engine>, request: &Request) -> Result<Measured, Failure> {
    let plain = |error: Error| Failure::message(error.message());
    let secrets = &request.source.options.secrets;
    let Some(filename) = &request.filename else {
        let content = Content::Empty(request.size.unwrap_or(0));
        return measure(&request.values()?, content, secrets).await.map_err(plain);
    };
    let image = request.source.open(engine, filename).await?;
    let disk = match &request.snapshot {
        Some(which) => snapshot_param::open(&image, which).await?,
        None => image.clone(),
    };
    let measured = measure(&request.values()?, Content::Of(&disk, &image), secrets).await.map_err(plain)?;
    drop(disk);
    image.close().await.map_err(plain)?;
    Ok(measured)
}

fn to_text(measured: &Measured) -> String {
    let bitmaps = measured.bitmaps.map(|bytes| format!("bitmaps size: {bytes}\n")).unwrap_or_default();
    format!("required size: {}\nfully allocated size: {}\n{bitmaps}", measured.required, measured.full)
}

fn to_json(measured: &Measured) -> Value {
    let members = [
        ("bitmaps", measured.bitmaps),
        ("required", Some(measured.required)),
        ("fully-allocated", Some(measured.full)),
    ];
    let written = members.into_iter().filter_map(|(name, bytes)| Some((name.to_owned(), bytes?.into())));
    Value::Object(written.collect())
}
