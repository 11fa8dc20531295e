//! `compare`: whether two images hold the same disk.

use super::getopt::{Flag, Parser};
use super::open::{self, Sources};
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS, Progress, Wanted};
use super::{Command, HELP, engine};
use crate::block::aio::Engine;
use crate::block::error::errno_text;
use crate::block::graph::Node;
use crate::block::ops::compare::{Failed, Verdict, compare, compare_rest};
use serde_json::json;
use std::io;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "compare",
    summary: "Check whether two images have the same content",
    usage: "[-f FMT] [-F FMT] [-s] [-T CACHE] [-U] [-p] [-q] FILENAME1 FILENAME2",
    flags: &[
        HELP,
        Flag::switch("quiet", "say nothing but errors").short('q'),
        PROGRESS,
        Flag::value("a-format", "FMT", "format of the first image (default: guessed)").short('f'),
        Flag::value("b-format", "FMT", "format of the second image (default: guessed)").short('F'),
        Flag::switch("image-opts", "FILENAME1 and FILENAME2 are option strings"),
        Flag::switch("strict", "sizes and what is allocated must be the same too").short('s'),
        Flag::value("cache", "CACHE", "cache mode of both images (default: writeback)").short('T'),
        Flag::switch("force-share", "look at the images although another process may write them").short('U'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        OUTPUT,
    ],
    operands: &[("FILENAME1, FILENAME2", "the images")],
    run,
};

/// Exit status: the images differ.
const DIFFERENT: u8 = 1;
/// Exit status: an image could not be opened, or options of opening make no sense.
const NOT_OPENED: u8 = 2;
/// Exit status: it could not be found out what is allocated.
const NO_STATUS: u8 = 3;
/// Exit status: data could not be read.
const NOT_READ: u8 = 4;
/// What differs when nothing does.
const IDENTICAL: &str = "";
/// Progress is told in steps of more than so many percent.
const PROGRESS_STEP: f64 = 2.0;

/// What is to be done.
struct Request {
    filenames: [String; 2],
    sources: [Sources; 2],
    strict: bool,
    quiet: bool,
    form: Form,
}

fn run(parser: Parser) -> Result<u8, Failure> {
    let (request, progress) = read(parser)?;
    let progress = Progress::silent(progress, PROGRESS_STEP);
    let engine = engine()?;
    let code = engine.block_on(judge(&engine, &request, &progress))??;
    progress.complete();
    Ok(code)
}

fn read(mut parser: Parser) -> Result<(Request, Wanted), Failure> {
    let (mut source, mut formats, mut cache) = (Sources::new(), [None, None], None);
    let (mut strict, mut quiet, mut progress, mut form) = (false, false, Wanted::default(), Form::Human);
    let not_opened = |failure: Failure| failure.with_code(NOT_OPENED);
    while let Some((name, value)) = parser.next()? {
        match name {
            _ if source.take(name, &value).map_err(not_opened)? => {}
            "help" => return Err(Failure::Help),
            "a-format" => formats[0] = Some(value),
            "b-format" => formats[1] = Some(value),
            "cache" => cache = Some(value),
            "strict" => strict = true,
            "progress" => progress.take(&value)?,
            "output" => form = Form::parse(&value)?,
            _ => quiet = true,
        }
    }
    let Ok(filenames) = <[String; 2]>::try_from(parser.operands()) else {
        return Err(Failure::Usage("Expecting two image file names".to_owned()));
    };
    if let Some(word) = cache {
        source.options.cache = open::source_cache(&word).map_err(not_opened)?;
    }
    let sources = formats.map(|format| {
        let mut source = source.clone();
        source.options.format = format;
        source
    });
    let progress = progress.unless(quiet || form == Form::Json);
    Ok((Request { filenames, sources, strict, quiet, form }, progress))
}

async fn judge(engine: &Rc<Engine>, request: &Request, progress: &Progress) -> Result<u8, Failure> {
    let one = request.open(engine, 0).await?;
    let other = request.open(engine, 1).await?;
    let images = [&one, &other];
    let whole = one.size().max(other.size());
    let report = |done: u64| progress.report(done, whole);
    progress.begin();
    let same_size = one.size() == other.size();
    if request.strict && !same_size {
        request.tell("Strict mode: Image size mismatch!")?;
        return request.conclude("size", None, same_size);
    }
    let mut verdict = compare(engine, images, request.strict, &report).await;
    if matches!(verdict, Ok(Verdict::Identical)) && !same_size {
        request.tell("Warning: Image size mismatch!")?;
        verdict = compare_rest(engine, images, &report).await;
    }
    close(images).await;
    match verdict {
        Ok(Verdict::Identical) => {
            request.tell("Images are identical.")?;
            request.conclude(IDENTICAL, None, same_size)
        }
        Ok(Verdict::ContentDiffers(at)) => {
            request.tell(&format!("Content mismatch at offset {at}!"))?;
            request.conclude("content", Some(at), same_size)
        }
        Ok(Verdict::StatusDiffers(at)) => {
            request.tell(&format!("Strict mode: Offset {at} block status mismatch!"))?;
            request.conclude("allocation", Some(at), same_size)
        }
        Err(failed) => Err(request.failure(&failed)),
    }
}

/// Nothing was written: there is nothing that could be lost.
async fn close(images: [&Rc<Node>; 2]) {
    for image in images {
        let _ = image.close().await;
    }
}

impl Request {
    async fn open(&self, engine: &Rc<Engine>, image: usize) -> Result<Rc<Node>, Failure> {
        let opened = self.sources[image].open(engine, &self.filenames[image]).await;
        opened.map_err(|failure| failure.with_code(NOT_OPENED))
    }

    fn tell(&self, line: &str) -> io::Result<()> {
        if self.quiet || self.form == Form::Json { Ok(()) } else { output::write(&format!("{line}\n")) }
    }

    /// Says in JSON, if that is wanted, what differs first and where, and returns the exit status.
    fn conclude(&self, differs: &str, at: Option<u64>, same_size: bool) -> Result<u8, Failure> {
        let is_identical = differs == IDENTICAL;
        if self.form == Form::Json && !self.quiet {
            output::write_json(&json!({
                "filenames": self.filenames,
                "identical": is_identical,
                "difference": Some(differs).filter(|_| !is_identical),
                "offset": at,
                "same-size": same_size,
            }))?;
        }
        Ok(if is_identical { 0 } else { DIFFERENT })
    }

    fn failure(&self, failed: &Failed) -> Failure {
        let filename = &self.filenames[failed.image];
        let cause = errno_text(&io::Error::from_raw_os_error(failed.error.errno()));
        let (message, code) = match failed.at {
            Some(at) => (format!("Error while reading offset {at} of {filename}: {cause}"), NOT_READ),
            None => (format!("Sector allocation test failed for {filename}"), NO_STATUS),
        };
        Failure::Other { message, remedy: failed.error.hint().map(str::to_owned), code }
    }
}
