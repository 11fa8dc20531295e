//! `checksum`: one number for the content of a disk, whatever holds it. qemu-img has no such command.

use super::getopt::{Flag, Parser};
use super::open::{self, Sources};
use super::output::{self, Failure, Form, OUTPUT};
use super::progress::{PROGRESS, Progress, Wanted};
use super::{Command, HELP, engine, json, only_image};
use crate::block::aio::Engine;
use crate::block::ops::checksum::checksum;
use serde_json::json;
use std::rc::Rc;

pub(super) const COMMAND: Command = Command {
    name: "checksum",
    summary: "Print the SHA-256 of the content of a disk, whatever the format",
    usage: "[-f FMT] [--output=human|json] [-T CACHE] [-U] [-p] FILENAME",
    flags: &[
        HELP,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        OUTPUT,
        Flag::value("cache", "CACHE", "cache mode: writeback (default), none, …").short('T'),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::switch("force-share", "read the image although another process may write it").short('U'),
        PROGRESS,
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

/// The name of the algorithm, for programs.
const ALGORITHM: &str = "sha256";

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let (mut source, mut form, mut progress) = (Sources::new(), Form::Human, Wanted::default());
    while let Some((name, value)) = parser.next()? {
        match name {
            _ if source.take(name, &value)? => {}
            "help" => return Err(Failure::Help),
            "cache" => source.options.cache = open::source_cache(&value)?,
            "output" => form = Form::parse(&value)?,
            _ => progress.take(&value)?,
        }
    }
    let filename = only_image(parser)?;
    let progress = Progress::later(progress.unless(form == Form::Json));
    let engine = engine()?;
    let (size, digest) = engine.block_on(hash(&engine, &filename, &source, &progress))??;
    progress.complete();
    drop(progress);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    output::write(&match form {
        Form::Human => format!("{digest}  {filename}\n"),
        Form::Json => json::to_text(&json!({
            "filename": filename,
            "algorithm": ALGORITHM,
            "checksum": digest,
            "virtual-size": size,
        })),
    })?;
    Ok(0)
}

/// The size of the disk, and its checksum.
async fn hash(
    engine: &Rc<Engine>,
    filename: &str,
    source: &Sources,
    progress: &Progress,
) -> Result<(u64, [u8; 32]), Failure> {
    let node = source.open(engine, filename).await?;
    progress.begin();
    let size = node.size();
    let report = |done: u64| progress.report(done, size);
    let digest = checksum(engine, &node, &report).await;
    let digest = digest.map_err(|error| Failure::block(&format!("Could not read '{filename}'"), &error))?;
    node.close().await.map_err(|error| Failure::block(filename, &error))?;
    Ok((size, digest))
}
