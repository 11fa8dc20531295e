//! Opening images for a command: the options that all commands have in common.

use super::output::Failure;
use crate::block::aio::Engine;
use crate::block::describe;
use crate::block::graph::Node;
use crate::block::open::open;
use crate::block::options::{CacheMode, OpenOptions};
use crate::block::secret::Secrets;
use std::rc::Rc;

/// How a command that only reads opens images; other processes must not write them meanwhile.
pub(super) fn for_reading() -> OpenOptions {
    OpenOptions { exclusive: true, ..OpenOptions::default() }
}

/// The images that a command reads, as the command line describes them: `-f`, `-U`, `--object`, `--image-opts`.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) options: OpenOptions,
    /// Operands are option strings.
    described: bool,
}

impl Sources {
    /// No option was given yet.
    pub(super) fn new() -> Sources {
        Sources { options: for_reading(), described: false }
    }

    /// Takes one of the options above, by its long name; false if it is none of them.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<bool, Failure> {
        match name {
            "format" | "source-format" => self.options.format = Some(value.to_owned()),
            "force-share" => self.options.force_share = true,
            "object" => define(&mut self.options.secrets, value)?,
            "image-opts" | "source-image-opts" => self.described = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether operands are option strings.
    pub(super) fn is_described(&self) -> bool {
        self.described
    }

    /// The file that an operand names, and how it is to be opened.
    pub(super) fn named(&self, operand: &str) -> Result<(String, OpenOptions), Failure> {
        if self.described && self.options.format.is_some() {
            return Err(Failure::message("--image-opts and --format are mutually exclusive"));
        }
        let described = match self.described {
            true => describe::from_options(operand, &self.options).map(Some),
            false => describe::from_name(operand, &self.options),
        };
        let described = described.map_err(|error| Failure::open(operand, &error))?;
        Ok(described.unwrap_or_else(|| (operand.to_owned(), self.options.clone())))
    }

    /// Opens the image that an operand names.
    pub(super) async fn open(&self, engine: &Rc<Engine>, operand: &str) -> Result<Rc<Node>, Failure> {
        let (filename, options) = self.named(operand)?;
        open(engine, &filename, &options).await.map_err(|error| Failure::open(operand, &error))
    }
}

/// Defines an object (`--object`).
pub(super) fn define(secrets: &mut Secrets, text: &str) -> Result<(), Failure> {
    secrets.define(text).map_err(|error| Failure::message(error.message()))
}

/// Closes an image after work on it; an error of the work counts more.
pub(super) async fn close<T>(image: &Node, done: Result<T, Failure>) -> Result<T, Failure> {
    let closed = image.close().await.map_err(|error| Failure::plain(&error));
    done.and_then(|result| closed.map(|()| result))
}

/// Opens an image.
pub(super) async fn image(
    engine: &Rc<Engine>,
    filename: &str,
    options: &OpenOptions,
) -> Result<Rc<Node>, Failure> {
    open(engine, filename, options).await.map_err(|error| Failure::open(filename, &error))
}

/// Reads the value of `-T`.
pub(super) fn source_cache(word: &str) -> Result<CacheMode, Failure> {
    CacheMode::parse(word).map_err(|_| Failure::message(format!("Invalid source cache option: {word}")))
}

/// Reads the value of `-t`.
pub(super) fn target_cache(word: &str) -> Result<CacheMode, Failure> {
    CacheMode::parse(word).map_err(|_| Failure::message(format!("Invalid cache option: {word}")))
}
