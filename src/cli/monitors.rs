//! `-monitor`, `-qmp` and `-echr`: who may talk to the machine, and where.

use crate::cli::keyboard::Use;
use crate::monitor::mux::ESCAPE;
use crate::monitor::server::Language;
use crate::monitor::socket::Address;
use crate::monitor::{Error, Result};

/// All monitors of a machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Monitors {
    /// What stdin is for.
    pub(super) stdio: Use,
    /// Where to listen.
    pub(super) sockets: Vec<(Language, Address)>,
    /// The escape key of the console.
    pub(super) escape: u8,
}

impl Monitors {
    /// Reads the options; each of the first two may be given several times.
    ///
    /// # Errors
    /// Names what makes no sense.
    pub(super) fn parse(monitors: &[String], qmp: &[String], echr: Option<&str>) -> Result<Monitors> {
        let mut parsed = Monitors { stdio: Use::Shared, sockets: Vec::new(), escape: escape_key(echr)? };
        for text in monitors {
            match text.as_str() {
                "stdio" => parsed.stdio = Use::Monitor,
                "none" => parsed.stdio = Use::Console,
                address => parsed.sockets.push((Language::Hmp, Address::parse(address)?)),
            }
        }
        for text in qmp.iter().filter(|text| *text != "none") {
            parsed.sockets.push((Language::Qmp, Address::parse(text)?));
        }
        Ok(parsed)
    }
}

/// A number as C reads it; 0 is no key at all.
fn escape_key(echr: Option<&str>) -> Result<u8> {
    let Some(text) = echr else { return Ok(ESCAPE) };
    let number = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| Error::new(format!("-echr {text}: write the ASCII code of a key, such as 0x14")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(monitors: &[&str], qmp: &[&str], echr: Option<&str>) -> Result<Monitors> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Monitors::parse(&owned(monitors), &owned(qmp), echr)
    }

    #[test]
    fn monitors_may_be_many_and_none() {
        let plain = parsed(&[], &[], None).unwrap();
        assert_eq!((plain.stdio, plain.sockets.len(), plain.escape), (Use::Shared, 0, 1));
        let many =
            parsed(&["unix:/a,server,nowait", "none"], &["tcp::1,server,nowait", "none"], Some("0x14"));
        let many = many.unwrap();
        assert_eq!((many.stdio, many.escape), (Use::Console, 0x14));
        assert_eq!(
            many.sockets.iter().map(|(language, _)| *language).collect::<Vec<_>>(),
            [Language::Hmp, Language::Qmp]
        );
        assert!(parsed(&["vc"], &[], None).is_err() && parsed(&[], &[], Some("x")).is_err());
    }
}
