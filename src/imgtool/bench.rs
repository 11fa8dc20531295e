//! `bench`: how fast an image takes requests.

use super::getopt::{Flag, Parser};
use super::numbers::{number, size};
use super::open::Sources;
use super::output::{self, Failure, Form, OUTPUT};
use super::{Command, HELP, only_image};
use crate::block::aio::{Backend, Engine};
use crate::block::error::errno_text;
use crate::block::ops::bench::{Load, run as send};
use crate::block::options::CacheMode;
use crate::block::{Error, Kind};
use serde_json::{Value, json};
use std::io;
use std::rc::Rc;
use std::time::Instant;

pub(super) const COMMAND: Command = Command {
    name: "bench",
    summary: "Measure how fast an image takes requests",
    usage: "[-f FMT] [-t CACHE] [-i AIO] [-c COUNT] [-d DEPTH] [-o OFFSET] [-s SIZE] [-S STEP] [-w] FILENAME",
    flags: &[
        HELP,
        Flag::switch("quiet", "accepted, and nothing else").short('q').in_full(),
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::value("cache", "CACHE", "cache mode: writeback (default), none, …").short('t'),
        Flag::value("count", "COUNT", "how many requests (default: 75000)").short('c'),
        Flag::value("depth", "DEPTH", "how many at a time (default: 64)").short('d'),
        Flag::value("offset", "OFFSET", "where the first one begins (default: 0)").short('o'),
        Flag::value("buffer-size", "SIZE", "bytes of a request (default: 4k)").short('s'),
        Flag::value("step-size", "STEP", "from one request to the next (default: SIZE)").short('S'),
        Flag::switch("write", "write (the content is lost)").short('w'),
        Flag::value("pattern", "BYTE", "with -w: what to write (default: 0)"),
        Flag::value("flush-interval", "COUNT", "with -w: flush after so many requests"),
        Flag::value("aio", "AIO", "threads, native or io_uring").short('i'),
        Flag::switch("native", "as -i native").short('n'),
        Flag::switch("no-drain", "flush while requests are in flight"),
        Flag::switch("force-share", "open the image although another process may write it").short('U'),
        OUTPUT,
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

/// Most that most options take.
const MAX: u64 = i32::MAX as u64;

/// What is to be done.
struct Request {
    source: Sources,
    load: Load,
    step: Option<u64>,
    pattern: u8,
    write: bool,
    aio: Option<String>,
    form: Form,
}

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let mut request = Request::new();
    while let Some((name, value)) = parser.next()? {
        match name {
            _ if request.source.take(name, &value)? => {}
            "help" => return Err(Failure::Help),
            _ => request.take(name, value)?,
        }
    }
    let filename = only_image(parser)?;
    request.check(&filename)?;
    let engine = Engine::new(request.backend())?;
    engine.block_on(bench(&engine, &filename, &request))??;
    Ok(0)
}

impl Request {
    fn new() -> Request {
        let load = Load {
            count: 75_000,
            depth: 64,
            offset: 0,
            len: 4096,
            step: 0,
            write: None,
            flush_interval: 0,
            drain: true,
        };
        Request {
            source: Sources::new(),
            load,
            step: None,
            pattern: 0,
            write: false,
            aio: None,
            form: Form::Human,
        }
    }

    /// Takes one option.
    fn take(&mut self, name: &str, value: String) -> Result<(), Failure> {
        let load = &mut self.load;
        match name {
            "cache" => self.source.options.cache = cache(&value)?,
            "count" => load.count = number("request count", &value, 1, MAX)?,
            "depth" => load.depth = number("queue depth", &value, 1, MAX)?,
            "offset" => load.offset = size("offset", &value, 0, i64::MAX as u64)?,
            "buffer-size" => load.len = size("buffer size", &value, 1, MAX)?,
            "step-size" => self.step = Some(size("step size", &value, 0, MAX)?),
            "write" => self.write = true,
            "pattern" => self.pattern = number("pattern byte", &value, 0, 255)? as u8,
            "flush-interval" => load.flush_interval = number("flush interval", &value, 0, MAX)?,
            "aio" => self.aio = Some(aio(value)?),
            "native" => self.aio = Some("native".to_owned()),
            "no-drain" => load.drain = false,
            "output" => self.form = Form::parse(&value)?,
            _ => {}
        }
        Ok(())
    }

    /// Completes what depends on other options, and refuses what does not go together.
    fn check(&mut self, filename: &str) -> Result<(), Failure> {
        self.load.step = self.step.filter(|&step| step > 0).unwrap_or(self.load.len);
        self.load.write = self.write.then_some(self.pattern);
        self.source.options.read_only = !self.write;
        if self.load.flush_interval > 0 && !self.write {
            return Err(Failure::message("--flush-interval is only available in write tests"));
        }
        if self.load.flush_interval > 0 && self.load.flush_interval < self.load.depth {
            return Err(Failure::message("Flush interval can't be smaller than depth"));
        }
        let native = self.aio.as_deref() == Some("native");
        let mistake = if self.write && self.source.options.force_share {
            "force-share=on can only be used with read-only images"
        } else if native && !self.source.options.cache.direct {
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        } else {
            return Ok(());
        };
        Err(Failure::open(filename, &Error::new(Kind::InvalidArgument, mistake)))
    }

    /// Both `native` and `io_uring` are the ring here.
    fn backend(&self) -> Backend {
        match self.aio.as_deref() {
            Some("threads") => Backend::Threads,
            Some(_) => Backend::Auto,
            None => Backend::from_environment(),
        }
    }

    /// What was done, and how long it took.
    fn result(&self, filename: &str, seconds: f64) -> Value {
        let Load { count, len, depth, offset, step, flush_interval, .. } = self.load;
        json!({
            "filename": filename,
            "write": self.write,
            "requests": count,
            "request-size": len,
            "depth": depth,
            "offset": offset,
            "step-size": step,
            "flush-interval": flush_interval,
            "seconds": seconds,
        })
    }

    /// What is announced.
    fn plan(&self) -> String {
        let Load { count, len, depth, offset, step, flush_interval, .. } = self.load;
        let kind = if self.write { "write" } else { "read" };
        let mut text = format!(
            "Sending {count} {kind} requests, {len} bytes each, {depth} in parallel (starting at offset {offset}, \
             step size {step})\n"
        );
        if flush_interval > 0 {
            text += &format!("Sending flush every {flush_interval} requests\n");
        }
        text
    }
}

fn cache(word: &str) -> Result<CacheMode, Failure> {
    CacheMode::parse(word).map_err(|_| Failure::message("Invalid cache mode"))
}

fn aio(word: String) -> Result<String, Failure> {
    match word.as_str() {
        "threads" | "native" | "io_uring" => Ok(word),
        _ => Err(Failure::message(format!("Invalid aio option: {word}"))),
    }
}

async fn bench(engine: &Rc<Engine>, filename: &str, request: &Request) -> Result<(), Failure> {
    let node = request.source.open(engine, filename).await?;
    if request.form == Form::Human {
        output::write(&request.plan())?;
    }
    let start = Instant::now();
    let sent = send(engine, &node, &request.load).await;
    let seconds = start.elapsed().as_secs_f64();
    let closed = sent.and(node.close().await);
    closed.map_err(|error| Failure::message(format!("Failed request: {}", cause(&error))))?;
    let told = match request.form {
        Form::Human => output::write(&format!("Run completed in {seconds:.3} seconds.\n")),
        Form::Json => output::write_json(&request.result(filename, seconds)),
    };
    Ok(told?)
}

/// What the host said; else the error's own words.
fn cause(error: &Error) -> String {
    match error.kind() {
        Kind::Io => errno_text(&io::Error::from_raw_os_error(error.errno())),
        _ => error.message().to_owned(),
    }
}
