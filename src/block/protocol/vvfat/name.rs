//! Names: what a host's name is called on the disk, its 8.3 alias, and what a guest's name may be called on the host.
//!
//! A host's name is bytes; a FAT's long name is UTF-16 without `"*/:<>?\|` and control characters, not ending in a dot
//! or a space, and unlike all others of the directory in any case. What cannot stand becomes `_`; a name that is taken
//! then gets `~1` before its extension. Aliases are made as Windows makes them: `LONGNA~1.TXT` to `~4`, then two
//! letters and a hash, `LO1A2B~1.TXT`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// An 8.3 name: eight bytes and three, filled up with spaces.
pub(super) type Short = [u8; 11];

/// What files of ours that are being written begin with, and what a guest may not call a file.
pub(super) const TEMPORARY: &str = ".cowvm-fat-";
/// Characters besides letters and digits that an 8.3 name may have.
const SHORT_MARKS: &[u8] = b"!#$%&'()-@^_`{}~";
/// Longest name of a host file, in bytes.
const NAME_MAX: usize = 255;
/// Longest 8.3 name, with its dot.
const SHORT_MAX: usize = 12;
/// How often a name is tried with another number.
const TRIES: u32 = 999_999;

/// The names of one directory of the disk.
#[derive(Default)]
pub(super) struct Names {
    folded: HashSet<String>,
    shorts: HashSet<Short>,
}

/// A name with a number before its extension, in at most 255 units.
pub(super) fn numbered(name: &str, number: u32) -> String {
    let (base, extension) = split(name);
    let tail = format!("~{number}{extension}");
    let (mut room, mut cut) = (NAME_MAX.saturating_sub(tail.len()), base.len());
    for (at, char) in base.char_indices() {
        if char.len_utf8() > room {
            cut = at;
            break;
        }
        room -= char.len_utf8();
    }
    format!("{}{tail}", &base[..cut])
}

impl Names {
    /// None so far, with room for so many.
    pub(super) fn with_room(count: usize) -> Names {
        Names { folded: HashSet::with_capacity(count), shorts: HashSet::with_capacity(count) }
    }

    /// The long name of a host file; `None` if there is none left. Different from all before it in any case.
    pub(super) fn long(&mut self, host: &OsStr) -> Option<String> {
        let plain = presentable(host);
        if self.folded.insert(fold(&plain)) {
            return Some(plain);
        }
        let mut numbered = (1..TRIES).map(|number| numbered(&plain, number));
        numbered.find(|name| self.folded.insert(fold(name)))
    }

    /// The alias of a name that is one already but for its case; to be asked for all names before [`Names::alias`].
    pub(super) fn own_alias(&mut self, name: &str) -> Option<Short> {
        let short = (name.len() <= SHORT_MAX).then(|| as_short(&name.to_ascii_uppercase()))??;
        self.shorts.insert(short).then_some(short)
    }

    /// An alias for any other name; `None` if there is none left.
    pub(super) fn alias(&mut self, name: &str) -> Option<Short> {
        let (base, extension) = split(name.trim_start_matches(['.', ' ']));
        let (base, extension) = (squeezed(base), squeezed(extension));
        let tailed = |stem: &[u8], number: u32| {
            let tail = format!("~{number}");
            let stem = &stem[..stem.len().min(8 - tail.len())];
            padded(&[stem, tail.as_bytes()].concat(), &extension)
        };
        let plain = (1..5).map(|number| tailed(&base, number)).find(|short| self.shorts.insert(*short));
        plain.or_else(|| {
            let hashed = [&base[..base.len().min(2)], format!("{:04X}", hash(name)).as_bytes()].concat();
            (1..TRIES).map(|number| tailed(&hashed, number)).find(|short| self.shorts.insert(*short))
        })
    }
}

/// The host's name with all that a long name cannot have replaced.
fn presentable(host: &OsStr) -> String {
    let is_sound =
        |name: &&str| !name.ends_with(['.', ' ']) && name.chars().all(|char| replaced(char) == char);
    if let Some(name) = host.to_str().filter(is_sound) {
        return name.to_owned();
    }
    let mut name: String = String::from_utf8_lossy(host.as_bytes()).chars().map(replaced).collect();
    if name.ends_with(['.', ' ']) {
        name.pop();
        name.push('_');
    }
    name
}

fn replaced(char: char) -> char {
    match char {
        '"' | '*' | '/' | ':' | '<' | '>' | '?' | '\\' | '|' | '\u{ffff}' | char::REPLACEMENT_CHARACTER => {
            '_'
        }
        control if control.is_control() => '_',
        other => other,
    }
}

/// Names are the same where these are. Letters whose capital is more than one character stand for themselves.
pub(super) fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_uppercase();
    }
    let capital = |char: char| {
        let mut upper = char.to_uppercase();
        upper.next().filter(|_| upper.next().is_none()).unwrap_or(char)
    };
    name.chars().map(capital).collect()
}

/// What is before the last dot, and the rest with it. A dot at the start begins no extension.
fn split(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 => name.split_at(dot),
        _ => (name, ""),
    }
}

fn is_short_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || SHORT_MARKS.contains(&byte)
}

/// `name` as an 8.3 name, if it is one.
pub(super) fn as_short(name: &str) -> Option<Short> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let sound = (1..=8).contains(&base.len())
        && extension.len() <= 3
        && (extension.is_empty() != name.contains('.'))
        && base.bytes().chain(extension.bytes()).all(is_short_byte);
    sound.then(|| padded(base.as_bytes(), extension.as_bytes()))
}

/// Letters of an alias: capitals, `_` for what is none, no dots and spaces.
fn squeezed(part: &str) -> Vec<u8> {
    let letter = |char: char| match u8::try_from(char.to_ascii_uppercase()) {
        Ok(byte) if is_short_byte(byte) => byte,
        _ => b'_',
    };
    part.chars().filter(|char| !" .".contains(*char)).map(letter).collect()
}

fn padded(base: &[u8], extension: &[u8]) -> Short {
    let mut short = [b' '; 11];
    short.iter_mut().zip(base.iter().take(8)).for_each(|(slot, byte)| *slot = *byte);
    short[8..].iter_mut().zip(extension).for_each(|(slot, byte)| *slot = *byte);
    short
}

/// FNV-1a, folded to 16 bits.
fn hash(name: &str) -> u16 {
    let full =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (full >> 16 ^ full) as u16
}

/// Bytes 0x80 to 0xff of code page 437, in which DOS writes 8.3 names.
const CODE_PAGE: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                         αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The name that an 8.3 entry shows; bits 3 and 4 of `case` say that its parts are in small letters. `None` for what
/// is no name.
pub(super) fn from_short(short: &Short, case: u8) -> Option<String> {
    let part = |bytes: &[u8], small: bool| -> Option<String> {
        // Some fill a part up with zeros.
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        let text: Option<String> = bytes[..end].iter().map(|byte| from_code_page(*byte)).collect();
        text.map(|text| if small { text.to_lowercase() } else { text })
    };
    let mut bytes = *short;
    if bytes[0] == 0x05 {
        bytes[0] = 0xe5;
    }
    let (base, extension) = (part(&bytes[..8], case & 8 != 0)?, part(&bytes[8..], case & 16 != 0)?);
    match (base.is_empty(), extension.is_empty()) {
        (true, _) => None,
        (false, true) => Some(base),
        (false, false) => Some(format!("{base}.{extension}")),
    }
}

fn from_code_page(byte: u8) -> Option<char> {
    match byte {
        // What else is forbidden is written all the same by many.
        0..0x20 | b'/' | 0x7f => None,
        0x80.. => CODE_PAGE.chars().nth(usize::from(byte - 0x80)),
        plain => Some(char::from(plain)),
    }
}

/// Whether a host file may have this name, for a guest that asks for it.
pub(super) fn is_fit_for_host(name: &str) -> bool {
    let reserved = name.is_empty() || name == "." || name == ".." || name.starts_with(TEMPORARY);
    !reserved && name.len() <= NAME_MAX && !name.chars().any(|char| char == '/' || char.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(names: &[&str]) -> Vec<String> {
        let mut all = Names::default();
        names.iter().map(|name| String::from_utf8(all.alias(name).unwrap().to_vec()).unwrap()).collect()
    }

    #[test]
    fn aliases_are_windows_ones() {
        let found =
            aliases(&["Long file name.text", "Long file names.text", ".bashrc", "a.b.c", "ü+.é", "x y"]);
        let expected =
            ["LONGFI~1TEX", "LONGFI~2TEX", "BASHRC~1   ", "AB~1    C  ", "__~1    _  ", "XY~1       "];
        assert_eq!(found, expected);
    }

    #[test]
    fn many_alike_names_get_hashed_and_different_aliases() {
        let mut names = Names::default();
        let all: HashSet<Short> =
            (0..65_536).map(|at| names.alias(&format!("a long name {at}.txt")).unwrap()).collect();
        assert_eq!(all.len(), 65_536);
        assert!(all.iter().all(|short| short.iter().all(|byte| is_short_byte(*byte) || *byte == b' ')));
    }

    #[test]
    fn names_are_different_in_any_case_and_have_what_fat_can_hold() {
        let mut names = Names::default();
        let mut long = |bytes: &[u8]| names.long(OsStr::from_bytes(bytes)).unwrap();
        assert_eq!(long(b"a.txt"), "a.txt");
        assert_eq!(long(b"A.TXT"), "A~1.TXT");
        assert_eq!(long("ä".as_bytes()), "ä");
        assert_eq!(long("Ä".as_bytes()), "Ä~1");
        assert_eq!(long(b"a:b\\c\n"), "a_b_c_");
        assert_eq!(long(b"\xff\xfe"), "__");
        assert_eq!(long(b"end."), "end_");
        assert_eq!(long("😀.".as_bytes()), "😀_");
    }

    #[test]
    fn short_names_are_read_with_case_and_code_page() {
        assert_eq!(from_short(b"README  TXT", 0).as_deref(), Some("README.TXT"));
        assert_eq!(from_short(b"README  TXT", 8).as_deref(), Some("readme.TXT"));
        assert_eq!(from_short(b"\x05\x9a      \x81  ", 0).as_deref(), Some("σÜ.ü"));
        assert_eq!(from_short(b"A/B        ", 0), None);
        assert_eq!(CODE_PAGE.chars().count(), 128);
    }

    #[test]
    fn only_plain_names_are_fit_for_the_host() {
        for bad in ["", ".", "..", "a/b", "a\0", "a\n", ".cowvm-fat-1", &"ü".repeat(128)] {
            assert!(!is_fit_for_host(bad), "{bad:?}");
        }
        for good in ["a", "...", ".a", "a:b", "-", &"a".repeat(255)] {
            assert!(is_fit_for_host(good), "{good:?}");
        }
    }
}
