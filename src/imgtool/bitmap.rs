//! `bitmap`: persistent dirty bitmaps of an image that nobody uses. Actions run in the order of the line; each
//! that succeeded stays when a later one fails.

use super::getopt::{Flag, Parser};
use super::info::bitmap_json;
use super::open::Sources;
use super::output::{self, Failure, Form, OUTPUT};
use super::{Command, HELP, engine, open, size_argument};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::graph::bitmaps::Bitmaps;
use crate::block::options::OpenOptions;
use crate::block::{Error, Kind};
use serde_json::json;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "bitmap",
    summary: "Change the dirty bitmaps of an image",
    usage: "(--add [-g SIZE]|--remove|--clear|--enable|--disable|--merge SOURCE)... [-b FILE [-F FMT]] [-f FMT] \
            FILENAME BITMAP",
    flags: &[
        HELP,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::switch("add", "make BITMAP; from now on it records what is written"),
        Flag::value("granularity", "SIZE", "what one bit stands for, with --add").short('g'),
        Flag::switch("remove", "remove BITMAP"),
        Flag::switch("clear", "forget what was recorded"),
        Flag::switch("enable", "record what is written"),
        Flag::switch("disable", "stop recording"),
        Flag::value("merge", "SOURCE", "add what the bitmap SOURCE has recorded"),
        Flag::value("source-file", "FILE", "SOURCE is a bitmap of this image").short('b'),
        Flag::value("source-format", "FMT", "format of that image").short('F'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        OUTPUT,
    ],
    operands: &[("FILENAME", "the image"), ("BITMAP", "the name of the bitmap")],
    run,
};

/// One step.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Action {
    fn word(&self) -> &'static str {
        match self {
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Clear => "clear",
            Action::Enable => "enable",
            Action::Disable => "disable",
            Action::Merge(_) => "merge",
        }
    }
}

/// What is to be done.
#[derive(Debug)]
struct Request {
    filename: String,
    bitmap: String,
    image: Sources,
    actions: Vec<Action>,
    granularity: Option<u64>,
    source: Option<String>,
    source_format: Option<String>,
    form: Form,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let request = read(parser)?;
    let engine = engine()?;
    let bitmaps = engine.block_on(async {
        let image = request.image.open(&engine, &request.filename).await?;
        let done = change(&engine, &image, &request).await;
        let bitmaps = image.driver().bitmaps().map(|bitmaps| bitmaps.list()).unwrap_or_default();
        let closed = image.close().await.map_err(|error| Failure::block(&request.filename, &error));
        done.and(closed).map(|()| bitmaps)
    })??;
    if request.form == Form::Json {
        output::write_json(&json!({
            "filename": request.filename,
            "bitmap": request.bitmap,
            "actions": request.actions.iter().map(Action::word).collect::<Vec<_>>(),
            "bitmaps": bitmaps.iter().map(bitmap_json).collect::<Vec<_>>(),
        }))?;
    }
    Ok(0)
}

fn read(mut parser: Parser) -> Result<Request, Failure> {
    let mut request = Request::new();
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            "add" => request.actions.push(Action::Add),
            // None is asked for by 0.
            "granularity" => {
                request.granularity = Some(size_argument("granularity", &value)?).filter(|&size| size > 0)
            }
            "remove" => request.actions.push(Action::Remove),
            "clear" => request.actions.push(Action::Clear),
            "enable" => request.actions.push(Action::Enable),
            "disable" => request.actions.push(Action::Disable),
            "merge" => request.actions.push(Action::Merge(value)),
            "source-file" => request.source = Some(value),
            "source-format" => request.source_format = Some(value),
            "output" => request.form = Form::parse(&value)?,
            _ => drop(request.image.take(name, &value)?),
        }
    }
    request.check()?;
    match <[String; 2]>::try_from(parser.operands()) {
        Ok([filename, bitmap]) => Ok(Request { filename, bitmap, ..request }),
        Err(_) => Err(Failure::message("Expecting filename and bitmap name")),
    }
}

impl Request {
    /// Nothing yet.
    fn new() -> Request {
        let mut image = Sources::new();
        image.options.read_only = false;
        image.options.backing = false;
        Request {
            filename: String::new(),
            bitmap: String::new(),
            image,
            actions: Vec::new(),
            granularity: None,
            source: None,
            source_format: None,
            form: Form::Human,
        }
    }

    /// Refuses options that do not go together.
    fn check(&self) -> Result<(), Failure> {
        let merges = self.actions.iter().any(|action| matches!(action, Action::Merge(_)));
        let mistakes = [
            (
                self.actions.is_empty(),
                "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
            ),
            (
                self.granularity.is_some() && !self.actions.contains(&Action::Add),
                "granularity only supported with --add",
            ),
            (self.source_format.is_some() && self.source.is_none(), "-F only supported with -b"),
            (self.source.is_some() && !merges, "Merge bitmap source file only supported with --merge"),
        ];
        match mistakes.into_iter().find(|(made, _)| *made) {
            Some((_, message)) => Err(Failure::message(message)),
            None => Ok(()),
        }
    }
}

async fn change(engine: &Rc<Engine>, image: &Node, request: &Request) -> Result<(), Failure> {
    let source = match &request.source {
        Some(filename) => {
            let format = request.source_format.clone();
            let secrets = request.image.options.secrets.clone();
            let options = OpenOptions { format, backing: false, secrets, ..open::for_reading() };
            Some(open::image(engine, filename, &options).await?)
        }
        None => None,
    };
    for action in &request.actions {
        act(action, image, source.as_deref().unwrap_or(image), request).await.map_err(|error| {
            let what = format!("Operation {} on bitmap {} failed", action.word(), request.bitmap);
            Failure::block(&what, &error)
        })?;
    }
    Ok(())
}

async fn act(action: &Action, image: &Node, source: &Node, request: &Request) -> Result<(), Error> {
    let name = &request.bitmap;
    if let (Action::Add, None) = (action, image.driver().bitmaps()) {
        let message =
            format!("Can't store persistent bitmaps to {}: Operation not supported", image.filename());
        return Err(Error::new(Kind::Unsupported, message).remedy("convert the image to qcow2"));
    }
    let bitmaps = bitmaps_of(image, name)?;
    match action {
        Action::Add => bitmaps.add(name, request.granularity, true).await,
        Action::Remove => bitmaps.remove(name).await,
        Action::Clear => bitmaps.clear(name).await,
        Action::Enable => bitmaps.set_enabled(name, true).await,
        Action::Disable => bitmaps.set_enabled(name, false).await,
        Action::Merge(from) => {
            // A bitmap that is not there is told of before one that cannot be.
            let source = match bitmaps.list().iter().any(|bitmap| bitmap.name == *name) {
                true => bitmaps_of(source, from)?,
                false => bitmaps,
            };
            bitmaps.merge(name, source, from).await
        }
    }
}

fn bitmaps_of<'a>(image: &'a Node, name: &str) -> Result<&'a dyn Bitmaps, Error> {
    image
        .driver()
        .bitmaps()
        .ok_or_else(|| Error::new(Kind::InvalidArgument, format!("Dirty bitmap '{name}' not found")))
}
