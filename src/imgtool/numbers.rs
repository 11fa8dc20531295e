//! Numbers and sizes on the command line, and what is said of those that make no sense.

use super::output::Failure;
use crate::util::size::{SizeError, parse_integer, parse_size};

/// Reads a size in bytes, with a suffix if one likes, from `min` to `max`; `what` names it in the message.
pub(super) fn size(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    in_range(what, text, parse_size(text), min, max)
}

/// Reads a whole number without a suffix from `min` to `max`; `what` names it in the message.
pub(super) fn number(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    let number = parse_integer(text).and_then(|number| u64::try_from(number).or(Err(SizeError::OutOfRange)));
    in_range(what, text, number, min, max)
}

fn in_range(
    what: &str,
    text: &str,
    number: Result<u64, SizeError>,
    min: u64,
    max: u64,
) -> Result<u64, Failure> {
    match number {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Err(SizeError::Malformed) => Err(Failure::message(format!("Invalid {what} specified: '{text}'."))),
        _ => {
            let range = format!("Must be between {min} and {max}.");
            Err(Failure::message(format!("Invalid {what} specified. {range}")))
        }
    }
}
