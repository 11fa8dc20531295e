//! `map`: which part of the disk stands where, in which file of the backing chain.

use super::getopt::{Flag, Parser};
use super::open::Sources;
use super::output::{self, Failure, Form};
use super::{Command, HELP, engine, only_image, size_argument};
use crate::block::graph::Node;
use crate::block::ops::map::{Extent, Walk};
use std::fmt::Write as _;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "map",
    summary: "Show where the data of an image is",
    usage: "[-f FMT] [--output=human|json] [--start-offset=OFFSET] [--max-length=LENGTH] [-U] FILENAME",
    flags: &[
        HELP,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::value("start-offset", "OFFSET", "begin there (default: 0)").short('s'),
        Flag::value("max-length", "LENGTH", "end after so many bytes (default: at the disk's end)")
            .short('l'),
        Flag::value("output", "human|json", "form of the result"),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::switch("force-share", "look at the image although another process may write it").short('U'),
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

/// Results are written in portions of this many bytes.
const PORTION: usize = 64 << 10;

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let (mut source, mut form) = (Sources::new(), Form::Human);
    let (mut start, mut max) = (0, None);
    while let Some((name, value)) = parser.next()? {
        match name {
            _ if source.take(name, &value)? => {}
            "help" => return Err(Failure::Help),
            "start-offset" => start = size_argument("start offset", &value)?,
            "max-length" => max = Some(size_argument("max length", &value)?),
            _ => form = Form::parse(&value)?,
        }
    }
    let filename = only_image(parser)?;
    map(&filename, &source, form, start, max)?;
    Ok(0)
}

fn map(filename: &str, source: &Sources, form: Form, start: u64, max: Option<u64>) -> Result<(), Failure> {
    let engine = engine()?;
    engine.block_on(async {
        let node = source.open(&engine, filename).await?;
        let end = max.map_or(u64::MAX, |max| start.saturating_add(max));
        match form {
            Form::Human => print_table(&node, start, end).await,
            Form::Json => print_json(&node, start, end).await,
        }
    })?
}

async fn print_table(node: &Rc<Node>, start: u64, end: u64) -> Result<(), Failure> {
    let mut text = format!("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File");
    let mut walk = Walk::new(node, start, end);
    while let Some(extent) = next(&mut walk, &mut text).await? {
        if extent.zero || !extent.data {
            continue;
        }
        let Some((file, offset)) = extent.mapped else {
            output::write(&text)?;
            let message = "File contains external, encrypted or compressed clusters.";
            return Err(Failure::message(message));
        };
        text += &format!("{:<16}{:<16}{:<16}{file}\n", hex(extent.start), hex(extent.len), hex(offset));
    }
    Ok(output::write(&text)?)
}

/// As C's `%#x` prints it: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

async fn print_json(node: &Rc<Node>, start: u64, end: u64) -> Result<(), Failure> {
    let mut text = String::from("[");
    let mut walk = Walk::new(node, start, end);
    let mut first = true;
    while let Some(extent) = next(&mut walk, &mut text).await? {
        if !std::mem::take(&mut first) {
            text += ",\n";
        }
        push_object(&mut text, &extent);
    }
    if first {
        push_object(&mut text, &nothing(start));
    }
    text += "]\n";
    Ok(output::write(&text)?)
}

/// What the map of no bytes at all consists of.
fn nothing(start: u64) -> Extent {
    let (present, zero, data, compressed) = (false, false, false, false);
    Extent { start, len: 0, depth: 0, present, zero, data, compressed, mapped: None }
}

fn push_object(text: &mut String, extent: &Extent) {
    // A string takes all that is written to it.
    let _ = write!(
        text,
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
         \"compressed\": {}",
        extent.start, extent.len, extent.depth, extent.present, extent.zero, extent.data, extent.compressed,
    );
    if let Some((_, offset)) = &extent.mapped {
        let _ = write!(text, ", \"offset\": {offset}");
    }
    text.push('}');
}

/// The next extent; writes out `text` when it has become long.
async fn next(walk: &mut Walk, text: &mut String) -> Result<Option<Extent>, Failure> {
    if text.len() >= PORTION {
        output::write(text)?;
        text.clear();
    }
    let found = walk.next().await;
    if found.is_err() {
        output::write(text)?;
    }
    found.map_err(|error| Failure::block("Failed to read image metadata", &error))
}
