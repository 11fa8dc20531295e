//! QEMU's configuration files for `blkdebug`.
//!
//! ```text
//!   [inject-error]                [set-state]
//!   event = "l2_update"           event = "write_aio"
//!   errno = "28"                  state = "1"
//!   once = "on"                   new_state = "2"
//! ```
//! `inject-error` takes `event`, `iotype`, `state`, `errno` (EIO if not given), `sector`, `once` and
//! `immediately`; `set-state` takes `event`, `state` and `new_state`. State 0 is any. Lines that begin with `#` are
//! comments.

use super::rules::{Action, Effect, Fault, Faults, RequestKind, Rule};
use crate::block::graph::Event;
use crate::block::{Error, Result};
use crate::util::keyval::parse_switch;
use crate::util::text;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// The kinds that a configuration can name.
const IOTYPES: &[RequestKind] = &[
    RequestKind::Read,
    RequestKind::Write,
    RequestKind::WriteZeroes,
    RequestKind::Discard,
    RequestKind::Flush,
    RequestKind::BlockStatus,
];

/// The faults that a name of the form `blkdebug:CONFIG:FILE` asks for (no rules if CONFIG is empty), and FILE; any other
/// name asks for none.
///
/// # Errors
/// For a name without FILE, and for a configuration that cannot be read.
pub(crate) fn from_name(filename: &str) -> Result<(&str, Option<Rc<Faults>>)> {
    let Some(rest) = filename.strip_prefix("blkdebug:") else { return Ok((filename, None)) };
    let Some((config, file)) = rest.split_once(':') else {
        let message = "blkdebug requires both config file and image path";
        return Err(Error::invalid_argument(message).remedy("name it as blkdebug:CONFIG:FILE"));
    };
    let text = match config {
        "" => String::new(),
        path => std::fs::read_to_string(text::to_path(path)).map_err(|error| {
            Error::from_io(error).context("Could not read blkdebug config file").path(path)
        })?,
    };
    let rules = parse(&text).map_err(|error| error.path(config))?;
    Ok((file, Some(Faults::new(rules))))
}

/// One group of a configuration: its name and its values, in order.
struct Group {
    name: String,
    values: Vec<(String, String)>,
}

/// Reads a configuration.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::block::Kind::InvalidArgument) that names the line, or the value.
pub fn parse(text: &str) -> Result<Vec<Rule>> {
    groups(text)?.iter().map(Group::rule).collect()
}

fn groups(text: &str) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let group = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        match (group, assignment(line), groups.last_mut()) {
            (Some(name), ..) => groups.push(Group { name: name.to_owned(), values: Vec::new() }),
            (None, Some(value), Some(group)) => group.values.push(value),
            (None, Some(_), None) => {
                return Err(Error::invalid_argument(format!("line {}: no group defined", number + 1)));
            }
            (None, None, _) => {
                return Err(Error::invalid_argument(format!("line {}: parse error", number + 1)));
            }
        }
    }
    Ok(groups)
}

/// `name = "value"`.
fn assignment(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
    Some((name.trim().to_owned(), value.to_owned()))
}

impl Group {
    fn rule(&self) -> Result<Rule> {
        let known: &[&str] = match self.name.as_str() {
            "inject-error" => &["event", "iotype", "state", "errno", "sector", "once", "immediately"],
            "set-state" => &["event", "state", "new_state"],
            other => return Err(Error::invalid_argument(format!("There is no option group '{other}'"))),
        };
        if let Some((name, _)) = self.values.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            return Err(Error::invalid_argument(format!("Invalid parameter '{name}'")));
        }
        let name =
            self.value("event").ok_or_else(|| Error::invalid_argument("Missing event name for rule"))?;
        let event = Event::parse(name)
            .ok_or_else(|| Error::invalid_argument(format!("Invalid event name \"{name}\"")))?;
        let state = self.number("state")?.filter(|&state| state != 0);
        let action = if self.name == "set-state" {
            Action::SetState(self.number("new_state")?.unwrap_or(0))
        } else {
            Action::Inject(self.fault()?)
        };
        Ok(Rule { event, state, action })
    }

    fn fault(&self) -> Result<Fault> {
        let errno = self.number("errno")?.map_or(libc::EIO, |errno| errno as i32);
        let effect = Effect::Fail { errno, immediately: self.switch("immediately")? };
        Ok(Fault { kinds: self.kinds()?, range: self.sector()?, skip: 0, once: self.switch("once")?, effect })
    }

    fn kinds(&self) -> Result<Vec<RequestKind>> {
        let Some(name) = self.value("iotype") else { return Ok(RequestKind::DATA.to_vec()) };
        let kind = IOTYPES.iter().copied().find(|kind| kind.name() == name);
        Ok(vec![kind.ok_or_else(|| Error::invalid_argument(format!("Invalid iotype value \"{name}\"")))?])
    }

    /// The bytes of the sector; -1 is none.
    fn sector(&self) -> Result<Option<Range<u64>>> {
        match self.value("sector") {
            None | Some("-1") => Ok(None),
            Some(text) => {
                let start = text.parse::<u64>().ok().and_then(|sector| sector.checked_mul(SECTOR));
                let start = start.filter(|&start| start <= i64::MAX as u64);
                let start = start.ok_or_else(|| expects("sector", "a number"))?;
                Ok(Some(start..start + SECTOR))
            }
        }
    }

    fn value(&self, name: &str) -> Option<&str> {
        // As everywhere: of two, the last one.
        self.values.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Result<Option<u32>> {
        let number = self.value(name).map(|value| value.parse().map_err(|_| expects(name, "a number")));
        number.transpose()
    }

    fn switch(&self, name: &str) -> Result<bool> {
        let Some(value) = self.value(name) else { return Ok(false) };
        parse_switch(name, value).map_err(|error| Error::invalid_argument(error.to_string()))
    }
}

fn expects(name: &str, what: &str) -> Error {
    Error::invalid_argument(format!("Parameter '{name}' expects {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_a_configuration_is_read() {
        let text = "# comment\n\n[inject-error]\n event = \"l2_update\"\niotype = \"write-zeroes\"\nstate = \"3\"\n\
                    errno=\"28\"\nsector = \"7\"\nonce = \"on\"\nimmediately = \"on\"\n\
                    [set-state]\nevent = \"pwritev\"\nstate = \"0\"\nnew_state = \"2\"\n\
                    [inject-error]\nevent = \"none\"\n";
        let rules = parse(text).unwrap();
        let Action::Inject(fault) = &rules[0].action else { panic!("{rules:?}") };
        assert_eq!((rules[0].event, rules[0].state), (Event::L2Update, Some(3)));
        assert_eq!((&fault.kinds[..], fault.once), (&[RequestKind::WriteZeroes][..], true));
        assert_eq!(fault.range, Some(3584..4096));
        assert_eq!(fault.effect, Effect::Fail { errno: libc::ENOSPC, immediately: true });
        assert!(matches!((rules[1].event, rules[1].state), (Event::Pwritev, None)));
        assert!(matches!(rules[1].action, Action::SetState(2)));
        let Action::Inject(fault) = &rules[2].action else { panic!("{rules:?}") };
        assert_eq!(fault.effect, Effect::Fail { errno: libc::EIO, immediately: false });
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        for (text, message) in [
            ("event = \"none\"", "line 1: no group defined"),
            ("[inject-error]\nevent", "line 2: parse error"),
            ("[inject-error]\nevent = none", "line 2: parse error"),
            ("[other]\n", "There is no option group 'other'"),
            ("[inject-error]\n", "Missing event name for rule"),
            ("[inject-error]\nevent = \"x\"", "Invalid event name \"x\""),
            ("[inject-error]\nevent = \"none\"\nnew_state = \"1\"", "Invalid parameter 'new_state'"),
            ("[inject-error]\nevent = \"none\"\niotype = \"x\"", "Invalid iotype value \"x\""),
            ("[inject-error]\nevent = \"none\"\nerrno = \"x\"", "Parameter 'errno' expects a number"),
            ("[inject-error]\nevent = \"none\"\nsector = \"-2\"", "Parameter 'sector' expects a number"),
        ] {
            assert_eq!(parse(text).unwrap_err().message(), message);
        }
    }
}
