//! The options of `cowvm nbd`: those of qemu-nbd, read in the order of the line, so that the first mistake is the one
//! that is reported.

use super::Failure;
use super::flags::FLAGS;
use super::task::{Task, Wish};
use super::tls::Tls;
use crate::block::graph::snapshots::Selector;
use crate::block::options::{CacheMode, DetectZeroes, OpenOptions};
use crate::block::protocol::nbd::Address;
use crate::block::trace::Trace;
use crate::util::getopt::Parser;
use crate::util::nbd::{DEFAULT_PORT, MAX_STRING};
use std::time::Duration;

/// How long a handshake may take where nothing else is said.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// What was read so far.
struct Line {
    wish: Wish,
    list: bool,
    disconnect: bool,
    bind: Option<String>,
    port: Option<String>,
    socket: Option<String>,
    cache: Option<CacheMode>,
    aio: Option<String>,
    discard: Option<bool>,
    tls: Tls,
}

/// Reads a command line of `program`, and begins to trace if it says so.
pub(super) fn read(program: &str, args: Vec<String>) -> Result<Task, Failure> {
    let mut parser = Parser::new(FLAGS, args);
    let (mut line, mut trace) = (Line::new(), Trace::default());
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Ok(Task::Help),
            "version" => return Ok(Task::Version),
            "trace" if value == "help" => return Ok(Task::Events),
            "trace" => trace.add(program, &value).map_err(|error| Failure::plain(&error))?,
            "list" => line.list = true,
            "disconnect" => line.disconnect = true,
            _ if line.take_place(name, &value)? || line.take_image(name, &value)? => {}
            _ => line.take_server(name, value)?,
        }
    }
    trace.start().map_err(|error| Failure::plain(&error))?;
    line.finish(parser.operands())
}

impl Line {
    fn new() -> Line {
        let wish = Wish {
            file: String::new(),
            described: false,
            open: OpenOptions { read_only: false, ..OpenOptions::default() },
            address: Address::Unix(String::new()),
            shared: 1,
            persistent: false,
            name: None,
            description: None,
            handshake_limit: Some(HANDSHAKE_LIMIT),
            offset: None,
            allocation_depth: false,
            bitmaps: Vec::new(),
            overlay: false,
            snapshot: None,
            fork: false,
            pid_file: None,
            device: None,
            tls: None,
        };
        Line {
            wish,
            list: false,
            disconnect: false,
            bind: None,
            port: None,
            socket: None,
            cache: None,
            aio: None,
            discard: None,
            tls: Tls::default(),
        }
    }

    /// Takes an option of where the server listens.
    fn take_place(&mut self, name: &str, value: &str) -> Result<bool, Failure> {
        match name {
            "port" => self.port = Some(value.to_owned()),
            "bind" => self.bind = Some(value.to_owned()),
            "socket" if !value.starts_with('/') => {
                return Err(Failure::message("socket path must be absolute"));
            }
            "socket" => self.socket = Some(value.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes an option of how the image is opened.
    fn take_image(&mut self, name: &str, value: &str) -> Result<bool, Failure> {
        let open = &mut self.wish.open;
        match name {
            "format" => open.format = Some(value.to_owned()),
            "read-only" => open.read_only = true,
            "image-opts" => self.wish.described = true,
            "object" => open.secrets.define(value).map_err(|error| Failure::plain(&error))?,
            "snapshot" => self.wish.overlay = true,
            "load-snapshot" => {
                let which = Selector::parse(value);
                self.wish.snapshot = Some(which.map_err(|error| {
                    let message = format!("Failed in parsing snapshot param '{value}': {}", error.message());
                    Failure::message(message)
                })?);
                open.read_only = true;
            }
            "nocache" | "cache" => {
                let word = if name == "nocache" { "none" } else { value };
                if self.cache.is_some() {
                    return Err(Failure::message("-n and --cache can only be specified once"));
                }
                let mode = CacheMode::parse(word);
                self.cache =
                    Some(mode.map_err(|_| Failure::message(format!("Invalid cache mode `{value}'")))?);
            }
            "aio" => self.take_aio(value)?,
            "discard" => self.take_discard(value)?,
            "detect-zeroes" => open.detect_zeroes = detect_zeroes(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_aio(&mut self, value: &str) -> Result<(), Failure> {
        if self.aio.is_some() {
            return Err(Failure::message("--aio can only be specified once"));
        }
        if !["native", "io_uring", "threads"].contains(&value) {
            return Err(Failure::message(format!("Invalid aio mode '{value}'")));
        }
        self.aio = Some(value.to_owned());
        Ok(())
    }

    fn take_discard(&mut self, value: &str) -> Result<(), Failure> {
        if self.discard.is_some() {
            return Err(Failure::message("--discard can only be specified once"));
        }
        self.discard = Some(match value {
            "unmap" | "on" => true,
            "ignore" | "off" => false,
            _ => return Err(Failure::message(format!("Invalid discard mode `{value}'"))),
        });
        Ok(())
    }

    /// Takes an option of the server.
    fn take_server(&mut self, name: &str, value: String) -> Result<(), Failure> {
        let wish = &mut self.wish;
        let bad = |what: &str| Failure::message(format!("Invalid {what} '{value}'"));
        match name {
            "shared" => {
                let count = number(&value).and_then(|count| i32::try_from(count).ok());
                wish.shared = count.ok_or_else(|| bad("shared device number"))? as usize;
            }
            "handshake-limit" => {
                let limit = number(&value).and_then(|limit| u32::try_from(limit).ok());
                let limit = u64::from(limit.ok_or_else(|| bad("handshake limit"))?);
                wish.handshake_limit = (limit > 0).then(|| Duration::from_secs(limit));
            }
            "offset" => {
                let digits = value.strip_prefix('-').unwrap_or(&value);
                let count = number(digits).ok_or_else(|| bad("offset"))?;
                let sign = if digits.len() < value.len() { "-" } else { "" };
                wish.offset = Some(format!("{sign}{count}"));
            }
            "export-name" if value.len() > MAX_STRING => {
                return Err(Failure::message(format!("export name '{value}' too long")));
            }
            "description" if value.len() > MAX_STRING => {
                return Err(Failure::message(format!("export description '{value}' too long")));
            }
            "export-name" => wish.name = Some(value),
            "description" => wish.description = Some(value),
            "persistent" => wish.persistent = true,
            // There is nothing more to say.
            "verbose" => {}
            "allocation-depth" => wish.allocation_depth = true,
            "bitmap" => wish.bitmaps.push(value),
            "fork" => wish.fork = true,
            "pid-file" => wish.pid_file = Some(value),
            "tls-creds" | "tls-hostname" | "tls-authz" => self.tls.take(name, value),
            "selinux-label" => {
                return Err(Failure::unsupported("--selinux-label", "label the socket with: chcon"));
            }
            _ => wish.device = Some(value),
        }
        Ok(())
    }

    fn finish(mut self, operands: Vec<String>) -> Result<Task, Failure> {
        self.tls.check(self.list)?;
        if self.list {
            return self.finish_list(&operands);
        }
        let [file] = <[String; 1]>::try_from(operands).map_err(|_| Failure::Operands)?;
        if self.disconnect {
            return Ok(Task::Disconnect(file));
        }
        if self.wish.device.is_some() && self.bind.is_some() {
            return Err(Failure::message("-c cannot be combined with -b or -p"));
        }
        if self.wish.described && self.wish.open.format.is_some() {
            return Err(Failure::message("--image-opts and -f are mutually exclusive"));
        }
        let cache = self.cache.unwrap_or(CacheMode::WRITEBACK);
        if self.aio.as_deref() == Some("native") && !cache.direct {
            let what = "aio=native was specified, but it requires cache.direct=on, which was not specified.";
            return Err(Failure::message(format!("Failed to blk_new_open '{file}': {what}")));
        }
        let unmap = self.discard == Some(true);
        if self.wish.open.detect_zeroes == DetectZeroes::Unmap && !unmap {
            let what =
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap";
            return Err(Failure::message(what));
        }
        self.wish.tls = self.tls.server(&self.wish)?;
        self.wish.file = file;
        (self.wish.open.cache, self.wish.open.unmap) = (cache, unmap);
        self.wish.address = self.address();
        Ok(Task::Serve(Box::new(self.wish)))
    }

    fn finish_list(self, operands: &[String]) -> Result<Task, Failure> {
        let refuse = |what| Err(Failure::message(format!("List mode is incompatible with {what}")));
        let wish = &self.wish;
        if !operands.is_empty() {
            return refuse("a file name");
        }
        let per_device = wish.name.is_some()
            || wish.description.is_some()
            || wish.offset.is_some()
            || wish.device.is_some()
            || self.disconnect
            || wish.open.format.is_some()
            || wish.open.read_only
            || wish.overlay
            || !wish.bitmaps.is_empty()
            || wish.allocation_depth
            || self.discard.is_some()
            || self.cache.is_some()
            || self.aio.is_some();
        if per_device {
            return refuse("per-device settings");
        }
        if wish.fork {
            return refuse("forking");
        }
        let credentials = self.tls.client(&self.wish, &self.address())?;
        Ok(Task::List(self.address(), credentials))
    }

    fn address(&self) -> Address {
        match &self.socket {
            Some(path) => Address::Unix(path.clone()),
            None => Address::Tcp(
                self.bind.clone().unwrap_or_else(|| "0.0.0.0".to_owned()),
                self.port.clone().unwrap_or_else(|| DEFAULT_PORT.to_string()),
            ),
        }
    }
}

/// A number as C reads it: decimal, or hexadecimal behind `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn detect_zeroes(value: &str) -> Result<DetectZeroes, Failure> {
    Ok(match value {
        "off" => DetectZeroes::Off,
        "on" => DetectZeroes::On,
        "unmap" => DetectZeroes::Unmap,
        _ => {
            let what = "Failed to parse detect_zeroes mode: invalid parameter value";
            return Err(Failure::message(format!("{what}: {value}")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(line: &str) -> String {
        match read("qemu-nbd", line.split_whitespace().map(str::to_owned).collect()) {
            Err(Failure::Other { message, .. }) => message,
            Err(Failure::Options(mistake)) => mistake.to_string(),
            Err(Failure::Operands) => "operands".to_owned(),
            Ok(_) => "taken".to_owned(),
        }
    }

    // Read off qemu-nbd.
    #[test]
    fn mistakes_are_told_in_the_words_of_qemu_nbd() {
        for (line, message) in [
            ("", "operands"),
            ("a b", "operands"),
            ("-k s a b", "socket path must be absolute"),
            ("--bogus", "unrecognized option '--bogus'"),
            ("-e x a", "Invalid shared device number 'x'"),
            ("-e -1 a", "Invalid shared device number '-1'"),
            ("--handshake-limit=x y", "Invalid handshake limit 'x'"),
            ("--cache=foo x", "Invalid cache mode `foo'"),
            ("--aio=foo x", "Invalid aio mode 'foo'"),
            ("--discard=foo x", "Invalid discard mode `foo'"),
            ("-n --cache=none x", "-n and --cache can only be specified once"),
            ("-o 5M x", "Invalid offset '5M'"),
            ("-L x", "List mode is incompatible with a file name"),
            ("-L -x a", "List mode is incompatible with per-device settings"),
            ("-L --fork", "List mode is incompatible with forking"),
            ("--image-opts -f raw x", "--image-opts and -f are mutually exclusive"),
            ("-k /s -e 0x10 --handshake-limit=0x5 -o -5 x", "taken"),
        ] {
            assert_eq!(failure(line), message, "{line}");
        }
    }

    #[test]
    fn the_place_is_a_socket_or_host_and_port() {
        for (line, place) in [("-k /s -p 1 a", "/s"), ("a", "0.0.0.0:10809"), ("-b h -p 1 a", "h:1")] {
            match read("qemu-nbd", line.split(' ').map(str::to_owned).collect()) {
                Ok(Task::Serve(wish)) => assert_eq!(wish.address.to_string(), place),
                _ => panic!("{line}"),
            }
        }
    }
}
