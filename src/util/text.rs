//! Names as text: file names, tags and options are bytes to the host and to images, and need neither be UTF-8 nor
//! be fit for a terminal. Here they are `String`s all the same.
//!
//! ```text
//!   bytes      a  ü     \x1b      \xff               every byte of a control character, and every byte that is no
//!              │  │     │         │                  UTF-8, stands as one of the last 256 characters
//!   text       a  ü  U+10FF1B  U+10FFFF
//!              │  │     │         │
//!   shown      a  ü   \x1b      \xff (the byte)      on a terminal, where it does no harm
//! ```
//!
//! Invariant: [`to_bytes`] gives back what [`from_bytes`] took, whatever it was; a text made by it holds no control
//! character, so that in a message only the message's own line ends are any.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The character that stands for the byte 0; the last one of Unicode stands for 255.
const FIRST: u32 = 0x10_ff00;

/// The text that stands for `bytes`.
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for plain in chunk.valid().chars() {
            match plain.is_control() || byte_of(plain).is_some() {
                true => text.extend(plain.encode_utf8(&mut [0; 4]).bytes().map(stand_in)),
                false => text.push(plain),
            }
        }
        text.extend(chunk.invalid().iter().copied().map(stand_in));
    }
    text
}

/// The text that stands for a name or an argument of the host.
pub fn from_os(name: &OsStr) -> String {
    from_bytes(name.as_bytes())
}

/// The bytes that `text` stands for.
pub fn to_bytes(text: &str) -> Cow<'_, [u8]> {
    if text.is_ascii() || text.chars().all(|char| byte_of(char).is_none()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for char in text.chars() {
        match byte_of(char) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(char.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// The path that `text` stands for.
pub fn to_path(text: &str) -> Cow<'_, Path> {
    match to_bytes(text) {
        Cow::Borrowed(bytes) => Cow::Borrowed(Path::new(OsStr::from_bytes(bytes))),
        Cow::Owned(bytes) => Cow::Owned(PathBuf::from(OsString::from_vec(bytes))),
    }
}

/// What people are shown of `text`: control characters as C writes them, all other bytes as they are.
pub fn shown(text: &str) -> Cow<'_, [u8]> {
    if text.chars().all(|char| byte_of(char).is_none()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        let Some(byte) = byte_of(char) else {
            bytes.extend(char.encode_utf8(&mut [0; 4]).bytes());
            continue;
        };
        let mut run = vec![byte];
        while let Some(next) = rest.next_if(|&next| byte_of(next).is_some()) {
            run.extend(byte_of(next));
        }
        show_run(&run, &mut bytes);
    }
    Cow::Owned(bytes)
}

/// Writes a line to standard error, fit for a terminal.
pub fn say(text: &str) {
    let mut err = io::stderr().lock();
    // There is nowhere left to report a broken standard error to.
    let _ = err.write_all(&[&*shown(text), b"\n"].concat());
}

/// Bytes that stand-ins stood for: control characters and what is no UTF-8.
fn show_run(run: &[u8], out: &mut Vec<u8>) {
    for chunk in run.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\n' => out.extend(b"\\n"),
                '\r' => out.extend(b"\\r"),
                '\t' => out.extend(b"\\t"),
                control if control.is_control() => {
                    out.extend(format!("\\x{:02x}", u32::from(control)).bytes())
                }
                other => out.extend(other.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        out.extend(chunk.invalid());
    }
}

fn stand_in(byte: u8) -> char {
    // All of them are characters.
    char::from_u32(FIRST + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte_of(char: char) -> Option<u8> {
    u32::from(char).checked_sub(FIRST).and_then(|byte| u8::try_from(byte).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        for text in ["", "a b", "ü😀", "a,b=c"] {
            assert_eq!(from_bytes(text.as_bytes()), text);
            assert_eq!(&*shown(text), text.as_bytes());
        }
    }

    #[test]
    fn control_characters_are_shown_escaped_and_broken_utf8_as_it_is() {
        let show = |bytes: &[u8]| shown(&from_bytes(bytes)).into_owned();
        assert_eq!(show(b"a\nb\x1b[1m\x7f\t\r"), b"a\\nb\\x1b[1m\\x7f\\t\\r");
        assert_eq!(show("\u{9b}1m".as_bytes()), b"\\x9b1m");
        assert_eq!(show(b"\xff\xc3"), b"\xff\xc3");
    }

    proptest! {
        #[test]
        fn every_name_survives(bytes in prop::collection::vec(any::<u8>(), 0..20), char in any::<char>()) {
            let bytes = [&bytes[..], char.to_string().as_bytes()].concat();
            let text = from_bytes(&bytes);
            prop_assert_eq!(&*to_bytes(&text), &bytes[..]);
            prop_assert!(!text.chars().any(char::is_control));
            let path = to_path(&text);
            prop_assert_eq!(path.as_os_str().as_bytes(), &bytes[..]);
        }
    }

    #[test]
    fn characters_that_are_stand_ins_themselves_survive() {
        let name = "\u{10ff0a}\u{10ffff}".as_bytes();
        assert_eq!(&*to_bytes(&from_bytes(name)), name);
    }
}
