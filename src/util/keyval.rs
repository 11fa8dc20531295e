//! Option strings: `key=value,key=value`, a comma in a value written twice, a bare key a switch.
//!
//! ```text
//!   file=a,,b.img,snapshot,noreadonly   →   file = "a,b.img", snapshot = "on", readonly = "off"
//! ```
//!
//! A later value of a key replaces an earlier one. What a command does not take is named: [`Options::finish`].

/// An option that a command does not take, or a value that it cannot mean.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("Invalid parameter '{0}'")]
    Unknown(String),
    /// Not a word of [`parse_switch`].
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    NotASwitch(String),
}

/// The options of one or more strings, in the order written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pairs: Vec<(String, String)>,
}

impl Options {
    /// Splits `text`. With `implied`, a first part without `=` is the value of that key
    /// (`-drive` has none; `-device` has `driver`).
    pub fn parse(text: &str, implied: Option<&str>) -> Options {
        let pairs = split(text)
            .into_iter()
            .enumerate()
            .map(|(index, part)| pair(&part, implied.filter(|_| index == 0)))
            .collect();
        Options { pairs }
    }

    /// Adds the options of another string behind these.
    pub fn merge(&mut self, more: Options) {
        self.pairs.extend(more.pairs);
    }

    /// All pairs, in the order written.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The last value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Removes `key` and returns its last value.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let last = self.pairs.iter().rposition(|(name, _)| name == key)?;
        // Moved, not copied: it may be a secret.
        let (_, value) = self.pairs.remove(last);
        self.pairs.retain(|(name, _)| name != key);
        Some(value)
    }

    /// Removes all keys that begin with `prefix` and returns them without it.
    pub fn take_group(&mut self, prefix: &str) -> Options {
        let (group, rest) =
            std::mem::take(&mut self.pairs).into_iter().partition(|(name, _)| name.starts_with(prefix));
        self.pairs = rest;
        let strip = |(name, value): (String, String)| (name[prefix.len()..].to_owned(), value);
        let group: Vec<(String, String)> = group;
        Options { pairs: group.into_iter().map(strip).collect() }
    }

    /// Sets `key`.
    pub fn set(&mut self, key: &str, value: &str) {
        self.pairs.push((key.to_owned(), value.to_owned()));
    }

    /// Removes `key` and returns its last value as a switch.
    ///
    /// # Errors
    /// [`OptionError::NotASwitch`] for any other word than those of [`parse_switch`].
    pub fn take_switch(&mut self, key: &str) -> Result<Option<bool>, OptionError> {
        self.take(key).map(|value| parse_switch(key, &value)).transpose()
    }

    /// To be called when all known keys are taken.
    ///
    /// # Errors
    /// [`OptionError::Unknown`] that names the first key left over.
    pub fn finish(&self) -> Result<(), OptionError> {
        match self.pairs.first() {
            Some((key, _)) => Err(OptionError::Unknown(key.clone())),
            None => Ok(()),
        }
    }
}

/// Reads `on`, `yes`, `true`, `y`, or `off`, `no`, `false`, `n`.
///
/// # Errors
/// [`OptionError::NotASwitch`] for any other word.
pub fn parse_switch(key: &str, value: &str) -> Result<bool, OptionError> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(OptionError::NotASwitch(key.to_owned())),
    }
}

/// Writes a value so that [`Options::parse`] reads it back.
pub fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// Splits at single commas and turns double ones into one. An empty text has no parts.
fn split(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        if next == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(next);
        }
    }
    parts
}

fn pair(part: &str, implied: Option<&str>) -> (String, String) {
    match (part.split_once('='), implied) {
        (Some((key, value)), _) => (key.to_owned(), value.to_owned()),
        (None, Some(key)) => (key.to_owned(), part.to_owned()),
        (None, None) => match part.strip_prefix("no") {
            Some(key) => (key.to_owned(), "off".to_owned()),
            None => (part.to_owned(), "on".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        Options::parse(text, None).pairs().to_vec()
    }

    fn strings(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn double_commas_are_one_comma_of_a_value() {
        assert_eq!(pairs("file=a,,b,format=raw"), strings(&[("file", "a,b"), ("format", "raw")]));
        assert_eq!(pairs("file=a,,,x=1"), strings(&[("file", "a,"), ("x", "1")]));
        let name = "a,b,,c";
        assert_eq!(Options::parse(&format!("file={},q=1", escape(name)), None).get("file"), Some(name));
    }

    #[test]
    fn a_group_is_taken_out_without_its_prefix() {
        let mut options = Options::parse("a.x=1,b=2,a.a.x=3,a=4", None);
        assert_eq!(options.take_group("a.").pairs(), strings(&[("x", "1"), ("a.x", "3")]));
        assert_eq!(options.pairs(), strings(&[("b", "2"), ("a", "4")]));
    }

    #[test]
    fn bare_keys_are_switches_and_the_first_may_be_implied() {
        assert_eq!(pairs("snapshot,noreadonly"), strings(&[("snapshot", "on"), ("readonly", "off")]));
        let device = Options::parse("virtio-blk,drive=a", Some("driver"));
        assert_eq!(device.get("driver"), Some("virtio-blk"));
        assert_eq!(pairs(""), strings(&[]));
    }

    #[test]
    fn the_last_value_wins_and_what_is_left_is_named() {
        let mut options = Options::parse("a=1,b=on,a=2,c=", None);
        assert_eq!(options.take("a").as_deref(), Some("2"));
        assert_eq!(options.take_switch("b").unwrap(), Some(true));
        assert_eq!(options.finish().unwrap_err().to_string(), "Invalid parameter 'c'");
        assert!(options.take_switch("c").is_err());
        assert!(options.finish().is_ok());
    }
}
