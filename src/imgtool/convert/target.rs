//! The output of `convert`: a new image under a name of its own until it is complete, or one that is there.

use super::super::output::Failure;
use super::request::Request;
use crate::block::Error;
use crate::block::aio::Engine;
use crate::block::filename::check_protocol;
use crate::block::graph::Node;
use crate::block::open::open;
use crate::block::ops::create::{NewImage, Template, Values};
use crate::block::options::OpenOptions;
use std::rc::Rc;

/// An image that is written to.
pub(super) struct Target {
    pub(super) node: Rc<Node>,
    /// It was made for this.
    new: Option<NewImage>,
}

impl Target {
    /// Makes or opens the output for the disks of `sources`, `size` bytes.
    pub(super) async fn make(
        engine: &Rc<Engine>,
        request: &Request,
        sources: &[Rc<Node>],
        size: u64,
    ) -> Result<Target, Failure> {
        let values = if request.create { Some(prepare(request, size)?) } else { None };
        if request.bitmaps {
            super::bitmaps::check_source(sources, request.skip_broken_bitmaps)?;
        }
        request.output_cache()?;
        let new = match values {
            Some(values) => Some(make(engine, request, &values).await?),
            None => None,
        };
        let node = open_target(engine, request, new.as_ref()).await?;
        check(request, &node, size)?;
        Ok(Target { node, new })
    }

    /// What it was made with, if it was.
    pub(super) fn values(&self) -> Option<&Values> {
        self.new.as_ref().map(NewImage::values)
    }

    /// A failure to fill it, that names it as users do.
    pub(super) fn told(&self, error: Error) -> Error {
        match &self.new {
            Some(new) => new.told(error),
            None => error,
        }
    }

    /// Brings everything to the file, which then gets its name.
    pub(super) async fn finish(self, engine: &Rc<Engine>, request: &Request) -> Result<(), Failure> {
        let done = match self.new {
            Some(new) => new.finish(engine, &self.node).await,
            None => {
                let flushed = self.node.flush().await;
                flushed.and(self.node.close().await)
            }
        };
        done.map_err(|error| Failure::block(&format!("Could not write '{}'", request.output), &error))
    }
}

/// Refuses what cannot be written to the open output.
fn check(request: &Request, target: &Node, size: u64) -> Result<(), Failure> {
    let format = target.driver().format_name();
    if request.target_is_zero && request.backing.is_some() {
        let message = "Cannot use --target-is-zero when the destination image has a backing file";
        // For qemu-img it is no failure, though nothing was copied.
        return Err(Failure::message(message).with_code(0));
    }
    if request.bitmaps && !super::bitmaps::are_stored_by(target) {
        return Err(Failure::message(format!("Format driver '{format}' does not support bitmaps")));
    }
    if request.compress && !target.driver().clusters().is_some_and(|clusters| clusters.compressed) {
        return Err(Failure::message("Compression not supported for this file format"));
    }
    match target.size() < size {
        true => Err(Failure::message("output file is smaller than input file")),
        false => Ok(()),
    }
}

/// Makes the new image.
async fn make(engine: &Rc<Engine>, request: &Request, values: &Values) -> Result<NewImage, Failure> {
    let what = format!("{}: error while converting {}", request.output, request.format);
    let made = NewImage::make(engine, &request.output, values, &request.source.options.secrets).await;
    made.map_err(|error| Failure::block(&what, &error))
}

async fn open_target(
    engine: &Rc<Engine>,
    request: &Request,
    new: Option<&NewImage>,
) -> Result<Rc<Node>, Failure> {
    let options = OpenOptions {
        secrets: request.source.options.secrets.clone(),
        read_only: false,
        cache: request.output_cache()?,
        unmap: request.sparse > 0,
        ..OpenOptions::default()
    };
    let opened = match new {
        Some(new) => new.open(engine, options).await,
        None => {
            let (filename, options) = request.described_target(&options)?;
            open(engine, &filename, &options).await
        }
    };
    opened.map_err(|error| Failure::open(&request.output, &error))
}

/// The options of the new image.
pub(super) fn prepare(request: &Request, size: u64) -> Result<Values, Failure> {
    let plain = |error: Error| Failure::message(error.message());
    let template = Template::new(&request.format, true).map_err(plain)?;
    check_protocol(&request.output).map_err(plain)?;
    let mut values = template.values(request.options.options()).map_err(plain)?;
    if request.backing.is_some() && !template.has_backing() {
        let message = format!("Backing file not supported for file format '{}'", request.format);
        return Err(Failure::message(message));
    }
    if request.backing_format.is_some() && !template.has_backing() {
        let message = format!("Backing file format not supported for file format '{}'", request.format);
        return Err(Failure::message(message));
    }
    values.set("size", &size.to_string()).map_err(plain)?;
    if let Some(name) = &request.backing {
        values.set("backing_file", name).map_err(plain)?;
    }
    if let Some(format) = &request.backing_format {
        values.set("backing_fmt", format).map_err(plain)?;
    }
    let has_backing = values.get("backing_file").is_some();
    if has_backing && values.get("backing_fmt").is_none() {
        return Err(Failure::message("Use of backing file requires explicit backing format"));
    }
    if has_backing && request.sources.len() > 1 {
        let message = "Having a backing file for the target makes no sense when concatenating multiple input \
                       images";
        return Err(Failure::message(message));
    }
    if request.compress {
        check_compression(&template, &values)?;
    }
    Ok(values)
}

/// Refuses what cannot be compressed.
fn check_compression(template: &Template, values: &Values) -> Result<(), Failure> {
    let is_set = |name, off| values.get(name).is_some_and(|value| value != off);
    let message = if !template.has_compression() {
        "Compression not supported for this file format"
    } else if is_set("encryption", "off") || is_set("encrypt.format", "") {
        "Compression and encryption not supported at the same time"
    } else if is_set("preallocation", "off") {
        "Compression and preallocation not supported at the same time"
    } else {
        return Ok(());
    };
    Err(Failure::message(message))
}
