//! `-o`: lists of options for a new image, gathered from the command line, and their help.

use super::output::{self, Failure};
use crate::block::ops::create::{CreateOption, Template, ValueKind};
use crate::util::keyval::Options;

/// The lists of all `-o` of a command line.
#[derive(Debug, Default)]
pub(super) struct OptionLists {
    given: Options,
    wants_help: bool,
    any: bool,
}

impl OptionLists {
    /// Adds one.
    pub(super) fn add(&mut self, list: &str) -> Result<(), Failure> {
        if !is_well_formed(list) {
            return Err(Failure::message(format!("Invalid option list: {list}")));
        }
        let options = Options::parse(list, None);
        self.any = true;
        self.wants_help |= asks_for_help(list);
        self.given.merge(options);
        Ok(())
    }

    /// Whether there was any.
    pub(super) fn is_given(&self) -> bool {
        self.any
    }

    /// Whether one asks what there is (`-o help`).
    pub(super) fn wants_help(&self) -> bool {
        self.wants_help
    }

    /// All options, in the order of the command line.
    pub(super) fn options(&self) -> &Options {
        &self.given
    }
}

/// A list neither begins nor ends with a comma that separates nothing.
fn is_well_formed(list: &str) -> bool {
    let trailing = list.len() - list.trim_end_matches(',').len();
    !list.is_empty() && !list.starts_with(',') && trailing.is_multiple_of(2)
}

/// Whether a part is nothing but `help` or `?`; a double comma is part of a value.
fn asks_for_help(list: &str) -> bool {
    list.replace(",,", " ").split(',').any(|part| part == "help" || part == "?")
}

/// Prints the options that images of `format` can have; with those of a file where one is named.
pub(super) fn show_help(format: &str, with_file: bool) -> Result<(), Failure> {
    let template = Template::new(format, with_file).map_err(|error| Failure::message(error.message()))?;
    let (title, note) = match with_file {
        true => ("Supported options:".to_owned(), String::new()),
        false => (
            format!("Supported {format} options:"),
            "\nThe protocol level may support further options.\nSpecify the target filename to include those \
             options.\n".to_owned(),
        ),
    };
    Ok(output::write(&format!("{title}\n{}{note}", list_text(template.options())))?)
}

/// Options and what they mean, in the order of the alphabet.
pub(super) fn list_text(options: &[CreateOption]) -> String {
    let mut lines: Vec<String> = options.iter().map(describe).collect();
    lines.sort();
    lines.concat()
}

fn describe(option: &CreateOption) -> String {
    let kind = match option.kind {
        ValueKind::Text => "str",
        ValueKind::Size => "size",
        ValueKind::Number => "num",
        ValueKind::Switch => "bool (on/off)",
    };
    format!("  {:<22} - {}\n", format!("{}=<{kind}>", option.name), option.help)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expectations were read off `qemu-img create -o LIST`.
    #[test]
    fn lists_with_empty_parts_at_their_ends_are_refused() {
        for list in ["", ",,", ",size=1M", "size=1M,", "a,,,"] {
            assert!(OptionLists::default().add(list).is_err(), "{list}");
        }
        for list in ["size=1M", "size=1M,,", "size=1M,,,nocow=off", "a"] {
            assert!(OptionLists::default().add(list).is_ok(), "{list}");
        }
    }
}
