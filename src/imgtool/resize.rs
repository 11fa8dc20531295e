//! `resize`: another size of the disk. What a smaller disk would lose is lost only on the user's word.

use super::getopt::{Flag, Parser};
use super::open::{self, Sources};
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS_IN_FULL, Progress, Wanted};
use super::{Command, HELP, engine};
use crate::block::aio::Engine;
use crate::block::graph::Node;
use crate::block::options::{Preallocation, size_option};
use serde_json::json;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "resize",
    summary: "Change the size of an image's disk",
    usage: "[-f FMT] [--preallocation=PREALLOC] [--shrink] [-q] FILENAME [+|-]SIZE",
    flags: &[
        HELP,
        Flag::switch("quiet", "say nothing but errors").short('q'),
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::switch("shrink", "what lies behind a smaller size may be lost"),
        Flag::value(
            "preallocation",
            "PREALLOC",
            "what is allocated of the new part: off, metadata, falloc, full",
        ),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        PROGRESS_IN_FULL,
        OUTPUT,
    ],
    operands: &[
        ("FILENAME", "the image"),
        (
            "[+|-]SIZE",
            "the new size in bytes, or with k, M, G, T, P, E; with + or - the difference to the old one",
        ),
    ],
    run,
};

/// Said to whoever would lose data.
const SHRINK_REFUSED: &str = "Use the --shrink option to perform a shrink operation.";
const SHRINK_WARNING: &str = "warning: Shrinking an image will delete all data beyond the shrunken image's end. \
                              Before performing such an operation, make sure there is no important data there.";

/// What is to be done.
#[derive(Debug)]
struct Request {
    source: Sources,
    filename: String,
    size: NewSize,
    shrink: bool,
    preallocation: Preallocation,
    quiet: bool,
    form: Form,
}

/// A size, or a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewSize {
    Is(u64),
    Grows(u64),
    Shrinks(u64),
}

impl NewSize {
    fn parse(text: &str) -> Result<NewSize, Failure> {
        let bytes = |text| size_option("size", text).map_err(|error| Failure::plain(&error));
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => bytes(more).map(NewSize::Grows),
            (_, Some(less)) => bytes(less).map(NewSize::Shrinks),
            _ => bytes(text).map(NewSize::Is),
        }
    }

    /// The size in bytes, where there can be a disk of it.
    fn of(self, current: u64) -> Option<u64> {
        let size = match self {
            NewSize::Is(size) => Some(size),
            NewSize::Grows(more) => current.checked_add(more),
            NewSize::Shrinks(less) => current.checked_sub(less),
        };
        size.filter(|&size| size > 0 && i64::try_from(size).is_ok())
    }
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let (request, progress) = read(parser)?;
    let progress = Progress::later(progress);
    let engine = engine()?;
    progress.listen(&engine);
    let [old, new] = engine.block_on(open_and_resize(&engine, &request))??;
    progress.complete();
    drop(progress);
    match request.form {
        _ if request.quiet => {}
        Form::Human => output::write("Image resized.\n")?,
        Form::Json => output::write_json(&json!({
            "filename": request.filename,
            "virtual-size": new,
            "previous-size": old,
        }))?,
    }
    Ok(0)
}

fn read(parser: Parser) -> Result<(Request, Wanted), Failure> {
    let mut parser = parser.with_negative_second();
    let (mut source, mut shrink, mut quiet) = (Sources::new(), false, false);
    let (mut preallocation, mut progress, mut form) = (Preallocation::Off, Wanted::default(), Form::Human);
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Err(Failure::Help),
            _ if source.take(name, &value)? => {}
            "shrink" => shrink = true,
            "preallocation" => preallocation = parse_preallocation(&value)?,
            "progress" => progress.take(&value)?,
            "output" => form = Form::parse(&value)?,
            _ => quiet = true,
        }
    }
    let operands = parser.operands();
    let (filename, size) = match &operands[..] {
        [filename, size] => (filename.clone(), NewSize::parse(size)?),
        [] | [_] => return Err(Failure::Usage("Expecting image file name and size".to_owned())),
        _ => return Err(Failure::Usage("Extra argument(s) in command line".to_owned())),
    };
    source.options.read_only = false;
    let progress = progress.unless(quiet || form == Form::Json);
    Ok((Request { source, filename, size, shrink, preallocation, quiet, form }, progress))
}

fn parse_preallocation(word: &str) -> Result<Preallocation, Failure> {
    let invalid = || Failure::message(format!("Invalid preallocation mode '{word}'"));
    Preallocation::parse(word).ok_or_else(invalid)
}

/// The old size and the new one.
async fn open_and_resize(engine: &Rc<Engine>, request: &Request) -> Result<[u64; 2], Failure> {
    let image = request.source.open(engine, &request.filename).await?;
    let old = image.size();
    let done = resize(&image, request).await;
    let sizes = done.map(|()| [old, image.size()]);
    open::close(&image, sizes).await
}

async fn resize(image: &Node, request: &Request) -> Result<(), Failure> {
    let old = image.size();
    let positive = || Failure::message("New image size must be positive");
    let new = request.size.of(old).ok_or_else(positive)?;
    if new <= old && request.preallocation != Preallocation::Off {
        return Err(Failure::message("Preallocation can only be used for growing images"));
    }
    if new < old && !request.shrink {
        return Err(Failure::Twice { first: SHRINK_REFUSED.to_owned(), then: SHRINK_WARNING.to_owned() });
    }
    image.truncate(new, request.preallocation).await.map_err(|error| Failure::plain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expectations were read off `qemu-img resize`.
    #[test]
    fn sizes_are_absolute_or_differences_and_stay_positive() {
        let of = |text: &str| NewSize::parse(text).unwrap().of(8192);
        for (text, size) in [("1k", 1024), ("+1k", 9216), ("++1", 8193), ("-1k", 7168), ("-0", 8192)] {
            assert_eq!(of(text), Some(size), "{text}");
        }
        for text in ["0", "-8k", "-9k", "8E", "+8E"] {
            assert_eq!(of(text), None, "{text}");
        }
        for text in ["", "+", "-", "+-1", "=1", "16E"] {
            assert!(NewSize::parse(text).is_err(), "{text}");
        }
    }
}
