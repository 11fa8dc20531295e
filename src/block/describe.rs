//! Descriptions of an image that is more than a file's name: option strings (`--image-opts`) and JSON behind `json:`
//! in a name. Only users give them; a name that stands in an image is never read as one.
//!
//! ```text
//!   driver=qcow2,file.driver=file,file.filename=a,cache.direct=on
//!   json:{"driver": "qcow2", "file": {"driver": "file", "filename": "a"}, "cache": {"direct": true}}
//!        │          │             └ options of the file node
//!        │          └ options of the format node; what is not common to all formats is left to its driver
//!        └ JSON is made flat first: members of members get dotted names
//! ```

use crate::block::open::FORMATS;
use crate::block::options::{DetectZeroes, OpenOptions};
use crate::block::protocol::{FILE, Location};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::{Options, parse_switch};
use serde_json::Value;

/// What a name begins with that is JSON.
const JSON: &str = "json:";

/// How an option changes the way that an image is opened.
type Apply = fn(&mut OpenOptions, &str, &str) -> Result<()>;

/// Options of every node.
const COMMON: &[(&str, Apply)] = &[
    ("read-only", |options, name, value| either(&mut options.read_only, switch(name, value)?)),
    ("force-share", |options, name, value| either(&mut options.force_share, switch(name, value)?)),
    ("cache.direct", |options, name, value| set(&mut options.cache.direct, switch(name, value)?)),
    ("cache.no-flush", |options, name, value| set(&mut options.cache.no_flush, switch(name, value)?)),
    ("discard", |options, _, value| set(&mut options.unmap, discard(value)?)),
    ("detect-zeroes", |options, _, value| set(&mut options.detect_zeroes, detect_zeroes(value)?)),
    // An image that is opened for writing is written to, and nobody else asks for a node by its name.
    ("auto-read-only", |_, name, value| switch(name, value).map(drop)),
    ("node-name", |_, _, name| check_node_name(name)),
];
/// Options of the file.
const OF_FILE: &[(&str, Apply)] = &[
    ("locking", |options, _, value| {
        either(&mut options.force_share, word(value, &["on", "auto", "off"])? == "off")
    }),
    // The engine takes what is fastest.
    ("aio", |_, _, value| word(value, &["threads", "native", "io_uring"]).map(drop)),
];
/// Options of qcow2 images that are no matter of the driver.
const OF_QCOW2: &[(&str, Apply)] = &[
    ("lazy-refcounts", |options, name, value| set(&mut options.lazy_refcounts, Some(switch(name, value)?))),
    ("data-file.driver", |_, _, value| known_driver(value, &[FILE])),
    ("data-file.filename", |options, _, value| set(&mut options.data_file, Some(value.to_owned()))),
];

/// What `name` means and how it is to be opened, where it is JSON; `None` for any other name, and where `common` is what
/// a description said already.
///
/// # Errors
/// In qemu-img's words, for what is no JSON and for what cannot be opened as it is described.
pub fn from_name(name: &str, common: &OpenOptions) -> Result<Option<(String, OpenOptions)>> {
    let Some(text) = name.strip_prefix(JSON).filter(|_| common.location.is_none()) else { return Ok(None) };
    let options = parse_json(text).map_err(|error| match error.kind() {
        Kind::InvalidFormat => error.context("Could not parse the JSON options"),
        _ => error,
    })?;
    resolve(options, common).map(Some)
}

/// The members of a JSON object as options; members of members have dotted names.
///
/// # Errors
/// [`Kind::InvalidFormat`] for what is no JSON, [`Kind::InvalidArgument`] for what is no object.
pub(super) fn parse_json(text: &str) -> Result<Options> {
    let value: Value = serde_json::from_str(&with_double_quotes(text)).map_err(|error| {
        let what = if error.is_eof() { "premature EOI" } else { "expecting value" };
        Error::new(Kind::InvalidFormat, format!("JSON parse error, {what}"))
    })?;
    if !value.is_object() {
        return Err(Error::invalid_argument("Invalid JSON object given"));
    }
    let mut options = Options::default();
    flatten("", &value, &mut options);
    Ok(options)
}

/// The file that an option string means, and how it is to be opened.
///
/// # Errors
/// As [`from_name`].
pub fn from_options(text: &str, common: &OpenOptions) -> Result<(String, OpenOptions)> {
    resolve(Options::parse(text, Some(FILE)), common)
}

fn resolve(mut own: Options, common: &OpenOptions) -> Result<(String, OpenOptions)> {
    if let Some(node) = own.take(FILE) {
        return Err(Error::invalid_argument(format!("Cannot find device='{node}' nor node-name='{node}'")));
    }
    let driver = own.take("driver");
    if let Some(driver) = driver.as_deref().filter(|driver| !Location::is_protocol(driver)) {
        known_driver(driver, FORMATS)?;
    }
    let mut options = OpenOptions { format: common.format.clone().or(driver), ..common.clone() };
    let protocol = options.format.clone().filter(|format| Location::is_protocol(format));
    let (driver, mut file) = match protocol {
        Some(protocol) => (Some(protocol), std::mem::take(&mut own)),
        None => {
            let mut file = own.take_group("file.");
            check_file(&options, &file)?;
            (file.take("driver"), file)
        }
    };
    let location = take_location(driver.as_deref().unwrap_or(FILE), &mut file, &mut options)?;
    apply(&mut own, COMMON, &mut options)?;
    if options.format.as_deref() == Some("qcow2") {
        apply(&mut own, OF_QCOW2, &mut options)?;
    }
    let name = location.name();
    Ok((name, OpenOptions { driver: own, location: Some(location), ..options }))
}

/// A format stands on something.
fn check_file(options: &OpenOptions, file: &Options) -> Result<()> {
    match (file.pairs().is_empty(), options.format.is_some()) {
        (false, _) => Ok(()),
        (true, true) => Err(Error::invalid_argument("A block device must be specified for \"file\"")),
        (true, false) => Err(Error::invalid_argument("Must specify either driver or file")),
    }
}

/// Takes the options of the node of the protocol `driver`: those of every node here, the others there.
fn take_location(driver: &str, file: &mut Options, options: &mut OpenOptions) -> Result<Location> {
    apply(file, COMMON, options)?;
    if Location::is_of_host(driver) {
        apply(file, OF_FILE, options)?;
    }
    Location::from_options(driver, std::mem::take(file))
}

fn apply(own: &mut Options, table: &[(&str, Apply)], options: &mut OpenOptions) -> Result<()> {
    for (name, apply) in table {
        if let Some(value) = own.take(name) {
            apply(options, name, &value)?;
        }
    }
    Ok(())
}

fn set<T>(slot: &mut T, value: T) -> Result<()> {
    *slot = value;
    Ok(())
}

/// Switches on what may be on already.
fn either(slot: &mut bool, on: bool) -> Result<()> {
    set(slot, *slot || on)
}

fn known_driver(driver: &str, known: &[&str]) -> Result<()> {
    match known.contains(&driver) {
        true => Ok(()),
        false => Err(Error::new(Kind::Unsupported, format!("Unknown driver '{driver}'"))),
    }
}

fn switch(name: &str, value: &str) -> Result<bool> {
    parse_switch(name, value).map_err(|error| Error::invalid_argument(error.to_string()))
}

fn word<'a>(value: &'a str, known: &[&str]) -> Result<&'a str> {
    match known.contains(&value) {
        true => Ok(value),
        false => Err(Error::invalid_argument(format!("invalid parameter value: {value}"))),
    }
}

fn discard(value: &str) -> Result<bool> {
    match value {
        "on" | "unmap" => Ok(true),
        "off" | "ignore" => Ok(false),
        _ => Err(Error::invalid_argument("Invalid discard option")),
    }
}

fn detect_zeroes(value: &str) -> Result<DetectZeroes> {
    Ok(match word(value, &["off", "on", "unmap"])? {
        "on" => DetectZeroes::On,
        "unmap" => DetectZeroes::Unmap,
        _ => DetectZeroes::Off,
    })
}

fn check_node_name(name: &str) -> Result<()> {
    let rest = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(rest) {
        true => Ok(()),
        false => Err(Error::invalid_argument(format!("Invalid node-name: '{name}'"))),
    }
}

/// Puts all that is in `value` into `options`, under `name` and a dot.
fn flatten(name: &str, value: &Value, options: &mut Options) {
    let member = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| flatten(&member(key), value, options))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| flatten(&member(&at.to_string()), item, options));
        }
        Value::String(text) => options.set(name, text),
        Value::Bool(on) => options.set(name, if *on { "on" } else { "off" }),
        Value::Null => options.set(name, ""),
        Value::Number(number) => options.set(name, &number.to_string()),
    }
}

/// Strings may stand in single quotes, as QEMU takes them; in any string, a single quote may have a backslash in front.
fn with_double_quotes(text: &str) -> String {
    let (mut out, mut open, mut escaped) = (String::with_capacity(text.len()), None, false);
    for char in text.chars() {
        match open {
            _ if escaped => {
                escaped = false;
                // JSON does not know this one.
                out.extend((char != '\'').then_some('\\'));
                out.push(char);
            }
            Some(_) if char == '\\' => escaped = true,
            Some(quote) if quote == char => (open, _) = (None, out.push('"')),
            Some(_) if char == '"' => out.push_str("\\\""),
            None if char == '"' || char == '\'' => (open, _) = (Some(char), out.push('"')),
            _ => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Result<(String, OpenOptions)> {
        from_name(&format!("json:{text}"), &OpenOptions::default()).map(Option::unwrap)
    }

    #[test]
    fn json_and_option_strings_mean_the_same() {
        let json = r#"{"driver": "qcow2", "file": {"driver": "file", "filename": "a:b", "locking": "off"},
                       "cache": {"direct": true}, "l2-cache-size": 65536}"#;
        let text = "driver=qcow2,file.driver=file,file.filename=a:b,file.locking=off,cache.direct=on,\
                    l2-cache-size=65536";
        for (file, options) in [named(json).unwrap(), from_options(text, &OpenOptions::default()).unwrap()] {
            assert_eq!((file.as_str(), options.format.as_deref()), ("a:b", Some("qcow2")));
            assert!(matches!(&options.location, Some(Location::File(name)) if name == "a:b"));
            assert!(options.cache.direct && options.force_share);
            assert_eq!(options.driver, Options::parse("l2-cache-size=65536", None));
        }
    }

    #[test]
    fn strings_may_stand_in_single_quotes() {
        assert_eq!(named("{'file':{'filename':'a\"b'}}").unwrap().0, "a\"b");
        assert_eq!(named(r#"{"file.filename":"it's"}"#).unwrap().0, "it's");
        assert_eq!(named(r#"{'file.filename':'it\'s'}"#).unwrap().0, "it's");
        assert_eq!(named(r#"{"file.filename":"it\'s \"\u0041\\"}"#).unwrap().0, "it's \"A\\");
        assert!(named(r#"{'file.filename':'it\"#).is_err());
    }

    #[test]
    fn a_name_without_json_is_left_alone() {
        assert!(from_name("a.qcow2", &OpenOptions::default()).unwrap().is_none());
    }
}
