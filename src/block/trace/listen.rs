//! `-T`: events of the block layer, one a line, on standard error or in a file.
//!
//! ```text
//!   -T 'block_*'                      all events with such a name
//!   -T events=FILE,file=trace.log     patterns from a file, one a line; '-' in front of one switches off
//!   -T help                           what there is
//! ```

use super::EVENTS;
use crate::block::{Error, Result};
use crate::util::keyval::Options;
use crate::util::text::{self, say};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Mutex;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

/// What `-T` asked for.
#[derive(Debug, Default)]
pub struct Trace {
    /// Names of events.
    chosen: Vec<&'static str>,
    file: Option<String>,
}

impl Trace {
    /// Takes the value of one `-T`; warnings begin with the name of the `program`.
    ///
    /// # Errors
    /// An option that is unknown, a list of patterns that cannot be read.
    pub fn add(&mut self, program: &str, text: &str) -> Result<()> {
        let mut options = Options::parse(text, Some("enable"));
        let (pattern, list) = (options.take("enable"), options.take("events"));
        if let Some(file) = options.take("file") {
            self.file = Some(file);
        }
        options.finish().map_err(|error| Error::invalid_argument(error.to_string()))?;
        if let Some(pattern) = pattern.filter(|pattern| !pattern.is_empty()) {
            self.choose(&pattern, &format!("{program}: "));
        }
        if let Some(list) = list {
            self.read(program, &list)?;
        }
        Ok(())
    }

    /// Reads patterns from a file.
    fn read(&mut self, program: &str, list: &str) -> Result<()> {
        let failed = |error| Error::from_io(error).context(list);
        let patterns = std::fs::read(text::to_path(list)).map_err(failed)?;
        for (number, line) in patterns.split(|&byte| byte == b'\n').enumerate() {
            let pattern = text::from_bytes(line.trim_ascii());
            if !pattern.is_empty() && !pattern.starts_with('#') {
                self.choose(&pattern, &format!("{program}:{list}:{}: ", number + 1));
            }
        }
        Ok(())
    }

    /// Switches events on, or off. A name, not a pattern, that none has is told with `place` in front.
    fn choose(&mut self, pattern: &str, place: &str) {
        let (off, pattern) = pattern.strip_prefix('-').map_or((false, pattern), |pattern| (true, pattern));
        let matching = EVENTS.iter().map(|(name, _)| *name).filter(|name| matches(pattern, name));
        let matching: Vec<&str> = matching.collect();
        if matching.is_empty() && !pattern.contains(['*', '?']) {
            say(&format!("{place}warning: trace event '{pattern}' does not exist"));
        }
        self.chosen.retain(|name| !matching.contains(name));
        if !off {
            self.chosen.extend(matching);
        }
    }

    /// Begins to listen, if anything is to be heard.
    ///
    /// # Errors
    /// When the file cannot be made, or somebody listens already.
    pub fn start(self) -> Result<()> {
        let out: Box<dyn Write + Send> = match self.file.filter(|file| !file.is_empty()) {
            Some(file) => Box::new(create(&file)?),
            None => Box::new(io::stderr()),
        };
        if self.chosen.is_empty() {
            return Ok(());
        }
        let chosen = self.chosen;
        let lines = tracing_subscriber::fmt::layer().event_format(Line).with_ansi(false);
        let lines = lines.with_writer(Mutex::new(out));
        let lines = lines.with_filter(filter_fn(move |event| chosen.contains(&event.name())));
        let started = tracing_subscriber::registry().with(lines).try_init();
        started.map_err(|error| Error::invalid_argument(error.to_string()))
    }
}

fn create(file: &str) -> Result<File> {
    let created = File::create(text::to_path(file));
    created.map_err(|error| Error::from_io(error).context(format!("Error opening logfile {file}")))
}

/// All events, for `-T help`.
pub fn list() -> String {
    EVENTS.iter().map(|(name, meaning)| format!("{name:<22} {meaning}\n")).collect()
}

/// Whether `name` is as `pattern` says: `*` is any text, `?` any character.
fn matches(pattern: &str, name: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            (0..=name.len()).any(|at| name.get(at..).is_some_and(|name| matches(rest.as_str(), name)))
        }
        Some(first) => {
            let mut chars = name.chars();
            chars.next().is_some_and(|char| first == '?' || first == char)
                && matches(rest.as_str(), chars.as_str())
        }
    }
}

/// An event as a line: its name, then what it has to say.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "{} ", event.metadata().name())?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writer.write_char('\n')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name) in
            [("*", ""), ("a*", "a"), ("a*c", "abbc"), ("a?c", "abc"), ("*b*", "abc"), ("abc", "abc")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("", "a"), ("a?", "a"), ("a*c", "ab"), ("b", "abc")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn later_patterns_overrule_earlier_ones() {
        let mut trace = Trace::default();
        trace.add("qemu-img", "block_*,file=log").unwrap();
        trace.add("qemu-img", "-block_w*").unwrap();
        assert_eq!(trace.chosen, ["block_discard", "block_flush", "block_read", "block_truncate"]);
        assert_eq!(trace.file.as_deref(), Some("log"));
        assert!(trace.add("qemu-img", "a=b").is_err());
    }
}
