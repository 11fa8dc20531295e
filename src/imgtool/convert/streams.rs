//! `-` for the source or the output: standard input and output, read or written once from start to end, with nothing put
//! aside. What cannot be done so is refused by name.

use super::super::output::{Failure, Form};
use super::super::progress::Progress;
use super::request::Request;
use super::target::{Target, prepare};
use super::{copy_options, open_sources};
use crate::block::aio::Engine;
use crate::block::ops::copy::{CopyOptions, total_size};
use crate::block::ops::streams::{read_stream, write_stream};
use crate::block::{Error, Kind, probe};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

/// Bytes of the disk that was copied.
pub(super) async fn convert(
    engine: &Rc<Engine>,
    request: &Request,
    progress: &Progress,
) -> Result<u64, Failure> {
    let size = match request.writes_stream() {
        true => write(engine, request).await?,
        false => read(engine, request).await?,
    };
    progress.finish();
    Ok(size)
}

/// Refuses what needs to go back in a stream, or to know what comes.
pub(super) fn check(request: &Request) -> Result<(), Failure> {
    let (reads, writes) = (request.reads_stream(), request.writes_stream());
    let mistakes = [
        (reads && writes, "standard input to standard output"),
        (reads && request.sources.len() > 1, "more than one source with standard input"),
        (reads && request.snapshot.is_some(), "-l with standard input"),
        (request.backing.is_some(), "-B with a stream"),
        (reads && is_preallocated(request), "preallocation with standard input"),
        (reads && request.salvage, "--salvage with standard input"),
        (reads && request.rate > 0, "-r with standard input"),
        (reads && request.source.is_described(), "--image-opts with standard input"),
        (
            reads && request.source_format().is_some_and(|format| format != "raw"),
            "formats other than raw from standard input",
        ),
        (writes && request.compress, "-c to standard output"),
        (request.bitmaps, "--bitmaps with a stream"),
        (request.offload, "-C with a stream"),
        (!request.create, "-n with a stream"),
        (writes && request.progress.is_shown() && !request.quiet, "-p with standard output"),
        (writes && request.form == Form::Json, "--output=json with standard output"),
    ];
    match mistakes.into_iter().find(|(made, _)| *made) {
        Some((_, what)) => Err(Failure::plain(
            &Error::new(
                Kind::Unsupported,
                format!("{what} cannot be done: a stream is read or written once"),
            )
            .remedy("use a file"),
        )),
        None => Ok(()),
    }
}

/// Whether the output is to have its space before it has its data.
fn is_preallocated(request: &Request) -> bool {
    request.options.options().get("preallocation").is_some_and(|mode| mode != "off")
}

async fn write(engine: &Rc<Engine>, request: &Request) -> Result<u64, Failure> {
    let sources = open_sources(engine, request).await?.disks;
    let values = prepare(request, total_size(&sources))?;
    let options = CopyOptions {
        sparse: request.sparse,
        workers: request.workers,
        target_is_new: true,
        salvage: request.salvage,
        rate: request.rate,
        ..CopyOptions::default()
    };
    let out = stream(io::stdout().as_fd().try_clone_to_owned())?;
    let done = write_stream(engine, &sources, &values, out, &options).await;
    done.map_err(|error| Failure::plain(&error))
}

async fn read(engine: &Rc<Engine>, request: &Request) -> Result<u64, Failure> {
    let input = stream(io::stdin().as_fd().try_clone_to_owned())?;
    let target = Target::make(engine, request, &[], 0).await?;
    let options = copy_options(request, &target);
    let guesses = request.source_format().is_none();
    let accept = |head: &[u8]| match probe::looks_like(head).filter(|_| guesses) {
        Some(format) => {
            let message = format!("an image of format {format} cannot be read from a pipe");
            let remedy = "use a file; or say -f raw, if these are the bytes of the disk";
            Err(Error::new(Kind::Unsupported, message).remedy(remedy))
        }
        None => Ok(()),
    };
    let done = read_stream(engine, input, &target.node, &options, accept);
    let size = done.await.map_err(|error| Failure::plain(&target.told(error)))?;
    target.finish(engine, request).await?;
    Ok(size)
}

fn stream(fd: io::Result<std::os::fd::OwnedFd>) -> Result<File, Failure> {
    Ok(File::from(fd?))
}
