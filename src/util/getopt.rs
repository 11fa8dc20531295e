//! Command lines in the manner of getopt_long(3): options and operands mixed, `--` ends the options, short
//! options bundled (`-qf raw`), long ones shortened as far as they stay unambiguous.
//!
//! Options are handed out one at a time, so that the first mistake in the order of the line is the one that is
//! reported, in the C library's words.

use std::collections::VecDeque;

/// An option of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// What the code calls it, and its long form.
    pub(crate) name: &'static str,
    /// Further long forms, accepted only when written in full.
    pub(crate) aliases: &'static [&'static str],
    /// Its one-letter form.
    pub(crate) short: Option<char>,
    /// What help calls its value; `None` where it takes none.
    pub(crate) value: Option<&'static str>,
    /// What it does, for help.
    pub(crate) help: &'static str,
    /// The name itself must be written in full too.
    full: bool,
    /// The long form goes without its value too; the one-letter form never has one.
    optional: bool,
}

impl Flag {
    /// A switch.
    pub(crate) const fn switch(name: &'static str, help: &'static str) -> Flag {
        Flag { name, aliases: &[], short: None, value: None, help, full: false, optional: false }
    }

    /// An option with a value, that help calls `value`.
    pub(crate) const fn value(name: &'static str, value: &'static str, help: &'static str) -> Flag {
        Flag { value: Some(value), ..Flag::switch(name, help) }
    }

    /// An option whose long form may have a value, behind `=`; without, the value is empty.
    pub(crate) const fn maybe(name: &'static str, value: &'static str, help: &'static str) -> Flag {
        Flag { optional: true, ..Flag::value(name, value, help) }
    }

    /// Whether it is [`Flag::maybe`].
    pub(crate) fn is_maybe(&self) -> bool {
        self.optional
    }

    /// With a one-letter form.
    pub(crate) const fn short(self, short: char) -> Flag {
        Flag { short: Some(short), ..self }
    }

    /// Without a one-letter form.
    pub(crate) const fn long_only(self) -> Flag {
        Flag { short: None, ..self }
    }

    /// With other long forms.
    pub(crate) const fn aliases(self, aliases: &'static [&'static str]) -> Flag {
        Flag { aliases, ..self }
    }

    /// With a long form that cannot be shortened: qemu-img has none, and its shortened forms must stay clear.
    pub(crate) const fn in_full(self) -> Flag {
        Flag { full: true, ..self }
    }

    /// Whether it is [`Flag::in_full`].
    pub(crate) fn is_in_full(&self) -> bool {
        self.full
    }

    fn is_named(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

/// What is wrong with a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mistake {
    #[error("unrecognized option '{0}'")]
    UnknownLong(String),
    #[error("invalid option -- '{0}'")]
    UnknownShort(char),
    #[error("option '{0}' is ambiguous; possibilities:{1}")]
    Ambiguous(String, String),
    #[error("option '{0}' requires an argument")]
    LongNeedsValue(String),
    #[error("option requires an argument -- '{0}'")]
    ShortNeedsValue(char),
    #[error("option '--{0}' doesn't allow an argument")]
    TakesNoValue(String),
}

/// A command line that is being read.
pub(crate) struct Parser {
    flags: &'static [Flag],
    args: VecDeque<String>,
    /// Letters of a bundle that are still to be read.
    bundle: VecDeque<char>,
    operands: Vec<String>,
    /// Operands are not options' neighbours but their end (before the command word).
    stop_at_operand: bool,
    /// A word like `-5` right behind the first operand is an operand too, and the third one ends the options.
    second_may_be_negative: bool,
}

impl Parser {
    /// A line whose options and operands may be mixed.
    pub(crate) fn new(flags: &'static [Flag], args: impl IntoIterator<Item = String>) -> Parser {
        Parser {
            flags,
            args: args.into_iter().collect(),
            bundle: VecDeque::new(),
            operands: Vec::new(),
            stop_at_operand: false,
            second_may_be_negative: false,
        }
    }

    /// A line whose first operand ends the options.
    pub(crate) fn up_to_operand(flags: &'static [Flag], args: impl IntoIterator<Item = String>) -> Parser {
        Parser { stop_at_operand: true, ..Parser::new(flags, args) }
    }

    /// This line, where a word like `-5` right behind the first operand is an operand too, and no option counts behind
    /// a third operand, which is one too many.
    pub(crate) fn with_negative_second(self) -> Parser {
        Parser { second_may_be_negative: true, ..self }
    }

    /// The next option and its value (empty for a switch); `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(&'static str, String)>, Mistake> {
        if let Some(letter) = self.bundle.pop_front() {
            return self.letter(letter).map(Some);
        }
        while let Some(arg) = self.args.pop_front() {
            if arg == "--" {
                break;
            } else if let Some(long) = arg.strip_prefix("--") {
                return self.long(long).map(Some);
            } else if arg.len() > 1 && arg.starts_with('-') {
                self.bundle = arg.chars().skip(1).collect();
                return self.next();
            }
            self.operands.push(arg);
            if self.second_may_be_negative && self.operands.len() == 1 {
                let count = usize::from(self.args.front().is_some_and(|next| is_negative_number(next)));
                self.operands.extend(self.args.drain(..count));
            }
            if self.stop_at_operand || self.second_may_be_negative && self.operands.len() > 2 {
                break;
            }
        }
        Ok(None)
    }

    /// What is not an option, once [`Parser::next`] has come to the end.
    pub(crate) fn operands(mut self) -> Vec<String> {
        self.operands.extend(self.args);
        self.operands
    }

    fn letter(&mut self, letter: char) -> Result<(&'static str, String), Mistake> {
        let flag = self.flags.iter().find(|flag| flag.short == Some(letter));
        let flag = flag.ok_or(Mistake::UnknownShort(letter))?;
        let mut value = String::new();
        if flag.value.is_some() && !flag.optional {
            value = self.bundle.drain(..).collect();
            if value.is_empty() {
                value = self.args.pop_front().ok_or(Mistake::ShortNeedsValue(letter))?;
            }
        }
        Ok((flag.name, value))
    }

    fn long(&mut self, text: &str) -> Result<(&'static str, String), Mistake> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let flag = self.find_long(name, text)?;
        if flag.value.is_none() && value.is_some() {
            return Err(Mistake::TakesNoValue(flag.name.to_owned()));
        }
        let value = match (flag.value, value) {
            (Some(_), None) if !flag.optional => {
                self.args.pop_front().ok_or_else(|| Mistake::LongNeedsValue(format!("--{}", flag.name)))?
            }
            (_, value) => value.unwrap_or_default(),
        };
        Ok((flag.name, value))
    }

    fn find_long(&self, name: &str, text: &str) -> Result<&'static Flag, Mistake> {
        if let Some(flag) = self.flags.iter().find(|flag| flag.is_named(name)) {
            return Ok(flag);
        }
        let matching: Vec<&'static Flag> =
            self.flags.iter().filter(|flag| !flag.full && flag.name.starts_with(name)).collect();
        match matching[..] {
            [] => Err(Mistake::UnknownLong(format!("--{text}"))),
            [flag] => Ok(flag),
            _ => {
                let names = matching.iter().map(|flag| format!(" '--{}'", flag.name)).collect();
                Err(Mistake::Ambiguous(format!("--{text}"), names))
            }
        }
    }
}

/// Whether a word is a minus sign and a digit at least.
fn is_negative_number(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    static FLAGS: &[Flag] = &[
        Flag::switch("quiet", "").short('q'),
        Flag::value("format", "FMT", "").short('f'),
        Flag::switch("force-share", "").short('U'),
        Flag::switch("progress", "").short('p').in_full(),
        Flag::maybe("bar", "X", "").short('b'),
        Flag::value("new", "X", "").short('n').aliases(&["newer"]),
    ];

    fn run(line: &str) -> Result<(String, Vec<String>), Mistake> {
        let mut parser = Parser::new(FLAGS, line.split_whitespace().map(str::to_owned));
        let mut seen = String::new();
        while let Some((name, value)) = parser.next()? {
            seen += &format!("{name}={value};");
        }
        Ok((seen, parser.operands()))
    }

    #[test]
    fn options_and_operands_mix_until_two_dashes() {
        let (seen, operands) = run("a -qf raw b --format=qcow2 --quiet - -- -U c").unwrap();
        assert_eq!(seen, "quiet=;format=raw;format=qcow2;quiet=;");
        assert_eq!(operands, ["a", "b", "-", "-U", "c"]);
        assert_eq!(run("-fraw -f -q").unwrap().0, "format=raw;format=-q;");
    }

    // Expectations were read off `qemu-img resize`.
    #[test]
    fn a_negative_number_may_be_the_word_behind_the_first_operand() {
        let run = |line: &str| {
            let words = line.split_whitespace().map(str::to_owned);
            let mut parser = Parser::new(FLAGS, words).with_negative_second();
            while parser.next()?.is_some() {}
            Ok(parser.operands())
        };
        for line in ["a -5", "-q a -5 -q", "a -5 --", "-- a -5", "a -- -5"] {
            assert_eq!(run(line), Ok(vec!["a".to_owned(), "-5".to_owned()]), "{line}");
        }
        for line in ["-5 a", "a -q -5", "a b -5", "a -5 -5"] {
            assert_eq!(run(line), Err(Mistake::UnknownShort('5')), "{line}");
        }
        assert_eq!(run("a -x"), Err(Mistake::UnknownShort('x')));
    }

    #[test]
    fn long_options_may_be_shortened_while_unambiguous() {
        assert_eq!(run("--form=x --fo y").unwrap_err().to_string(), {
            "option '--fo' is ambiguous; possibilities: '--format' '--force-share'"
        });
        assert_eq!(run("--q --progress").unwrap().0, "quiet=;progress=;");
        assert_eq!(run("--prog").unwrap_err(), Mistake::UnknownLong("--prog".into()));
    }

    #[test]
    fn a_value_that_may_be_missing_stands_behind_the_equals_sign_alone() {
        let (seen, operands) = run("-bq --bar x --bar=1 --ba=").unwrap();
        assert_eq!(seen, "bar=;quiet=;bar=;bar=1;bar=;");
        assert_eq!(operands, ["x"]);
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_the_c_library() {
        let cases = [
            ("-5", "invalid option -- '5'"),
            ("-q5", "invalid option -- '5'"),
            ("--bogus=1", "unrecognized option '--bogus=1'"),
            ("-f", "option requires an argument -- 'f'"),
            ("--form", "option '--format' requires an argument"),
            ("--quiet=1", "option '--quiet' doesn't allow an argument"),
        ];
        for (line, message) in cases {
            assert_eq!(run(line).unwrap_err().to_string(), message, "{line}");
        }
    }
}
