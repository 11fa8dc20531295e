//! The parser of command lines: words, quoted words, flags.

use crate::monitor::{Error, Result};

/// What stands behind a command's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::monitor) struct Call {
    /// The words.
    pub(in crate::monitor) words: Vec<String>,
    flags: String,
}

impl Call {
    /// Splits `text`. Words that begin with a dash and are not in quotes are flags; `known` are their letters.
    ///
    /// # Errors
    /// Names the flag that is unknown, or says that a quote is left open.
    pub(super) fn parse(name: &str, text: &str, known: &str) -> Result<Call> {
        let mut call = Call::default();
        for (word, quoted) in split(text)? {
            match word.strip_prefix('-').filter(|flags| !quoted && !flags.is_empty()) {
                Some(flags) if call.words.is_empty() => {
                    if let Some(unknown) = flags.chars().find(|flag| !known.contains(*flag)) {
                        return Err(Error::plain(format!("{name}: unsupported option -{unknown}")));
                    }
                    call.flags.push_str(flags);
                }
                _ => call.words.push(word),
            }
        }
        Ok(call)
    }

    /// The word at `index`; empty where there are not as many.
    pub(in crate::monitor) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// Whether the flag was given.
    pub(in crate::monitor) fn has(&self, flag: char) -> bool {
        self.flags.contains(flag)
    }
}

/// The words, and which of them were in quotes.
fn split(text: &str) -> Result<Vec<(String, bool)>> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while chars.next_if(|c| c.is_whitespace()).is_some() || chars.peek().is_some() {
        if chars.peek().is_none_or(|c| c.is_whitespace()) {
            continue;
        }
        if chars.next_if_eq(&'"').is_some() {
            words.push((quoted(&mut chars)?, true));
            continue;
        }
        let mut word = String::new();
        while let Some(next) = chars.next_if(|c| !c.is_whitespace()) {
            word.push(next);
        }
        words.push((word, false));
    }
    Ok(words)
}

fn quoted(chars: &mut impl Iterator<Item = char>) -> Result<String> {
    let mut word = String::new();
    while let Some(next) = chars.next() {
        match next {
            '"' => return Ok(word),
            '\\' => word.push(match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(other) => other,
                None => break,
            }),
            other => word.push(other),
        }
    }
    Err(Error::plain("unterminated string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_at_spaces_and_quotes_keep_them_together() {
        let call = Call::parse("c", r#"  -v hda "a b\"c\\" -x  "#, "vn").unwrap();
        assert_eq!(call.words, ["hda", "a b\"c\\", "-x"]);
        assert!(call.has('v') && !call.has('n'));
        assert_eq!(Call::parse("c", " ", "").unwrap(), Call::default());
        assert_eq!(Call::parse("c", r#""-v" """#, "v").unwrap().words, ["-v", ""]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let said = |text| Call::parse("c", text, "v").unwrap_err().description;
        assert_eq!(said("-x"), "c: unsupported option -x");
        assert_eq!(said("\"a"), "unterminated string");
        assert_eq!(said("\"a\\"), "unterminated string");
    }
}
