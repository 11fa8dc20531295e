//! QEMU's spelling of options for clap: long names after one dash or two.
//!
//! The value of an option is never touched, so `-append -x` passes `-x` on.

use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;

/// Writes the long options of `command` in `arguments` (without the program's name) with two dashes.
pub(super) fn with_two_dashes(command: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let mut out = Vec::with_capacity(arguments.len());
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            out.push(argument);
            out.extend(rest);
            break;
        }
        let (takes_next, argument) = normalise(command, argument);
        out.push(argument);
        if takes_next {
            out.extend(rest.next());
        }
    }
    out
}

/// Whether the next argument is this one's value, and this one with the dashes that clap expects.
fn normalise(command: &Command, argument: OsString) -> (bool, OsString) {
    let Some(text) = argument.to_str().filter(|text| text.len() > 1) else { return (false, argument) };
    let Some(one_dash) = text.strip_prefix('-') else { return (false, argument) };
    let name = one_dash.strip_prefix('-').unwrap_or(one_dash);
    let (name, has_value) = name.split_once('=').map_or((name, false), |(name, _)| (name, true));
    let long = command.get_arguments().find(|arg| arg.get_long() == Some(name));
    if let Some(option) = long {
        let dashes = if text.starts_with("--") { "" } else { "-" };
        return (takes_value(option) && !has_value, format!("{dashes}{text}").into());
    }
    let short = command.get_arguments().find(|arg| arg.get_short() == one_dash.chars().next());
    match short {
        Some(option) => (takes_value(option) && one_dash.len() == 1, argument),
        // A name that clap will refuse as the user wrote it, not letter by letter.
        None if !text.starts_with("--") => (false, format!("-{text}").into()),
        None => (false, argument),
    }
}

fn takes_value(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Set | ArgAction::Append)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let arg = |name: &'static str| Arg::new(name).long(name);
        Command::new("t")
            .arg(arg("hda"))
            .arg(arg("append"))
            .arg(arg("no-reboot").action(ArgAction::SetTrue))
            .arg(Arg::new("memory").short('m'))
            .arg(Arg::new("image"))
    }

    fn normalised(text: &str) -> String {
        let arguments = text.split(' ').map(OsString::from).collect();
        let out = with_two_dashes(&command(), arguments);
        out.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn known_long_names_get_two_dashes() {
        assert_eq!(normalised("-hda a.img"), "--hda a.img");
        assert_eq!(normalised("--hda a.img -no-reboot -hda=b"), "--hda a.img --no-reboot --hda=b");
        assert_eq!(normalised("-m 512 -m512 -unknown x"), "-m 512 -m512 --unknown x");
    }

    #[test]
    fn values_are_left_alone() {
        assert_eq!(normalised("-append -hda -hda -append"), "--append -hda --hda -append");
        assert_eq!(normalised("-m -hda -no-reboot -hda -"), "-m -hda --no-reboot --hda -");
        assert_eq!(normalised("-- -hda"), "-- -hda");
    }
}
