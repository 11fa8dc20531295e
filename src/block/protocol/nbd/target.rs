//! What an NBD name means: the server's address, the export, whether TLS is wanted.
//!
//! ```text
//!   nbd:HOST:PORT[:exportname=NAME]      nbd://HOST[:PORT][/NAME]
//!   nbd:HOST:exportname=NAME             nbd+unix:///[NAME]?socket=PATH
//!   nbd:unix:PATH[:exportname=NAME]      nbds://…, nbds+unix://…      with TLS
//! ```

use crate::block::{Error, Result};
use crate::util::keyval::Options;
use crate::util::nbd::DEFAULT_PORT;
use crate::util::text;
use std::fmt;

/// What stands between the address and the export in a name without `://`.
const EXPORT: &str = ":exportname=";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host and port, both as written.
    Tcp(String, String),
    /// Path of a socket, as [`text`] has names.
    Unix(String),
}

impl Address {
    /// Reads `HOST:PORT` or `unix:PATH`.
    ///
    /// # Errors
    /// [`crate::block::Kind::InvalidArgument`] in QEMU's words.
    pub fn parse(place: &str) -> Result<Address> {
        if let Some(path) = place.strip_prefix("unix:") {
            return Ok(Address::Unix(path.to_owned()));
        }
        match split_port(place) {
            (host, Some(port)) => Ok(Address::Tcp(host.to_owned(), port.to_owned())),
            (_, None) => Err(Error::invalid_argument(format!("error parsing address '{place}'"))
                .remedy("name the port too: HOST:PORT")),
        }
    }

    /// The host that the server is on, where it is named.
    pub fn host(&self) -> Option<&str> {
        match self {
            Address::Tcp(host, _) => Some(host),
            Address::Unix(_) => None,
        }
    }
}

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The server.
    pub address: Address,
    /// The export's name; empty for the default one.
    pub export: String,
    /// The name says that TLS is wanted. Options may say so too.
    pub tls: bool,
}

impl Target {
    /// What `name` means, if it begins as names of exports do.
    ///
    /// # Errors
    /// [`crate::block::Kind::InvalidArgument`] in qemu-img's words, of a name that goes on differently.
    pub fn from_name(name: &str) -> Result<Option<Target>> {
        if let Some((scheme, rest)) = name.split_once("://")
            && let Some((tls, unix)) = scheme_of(scheme)
        {
            let no_url = || Error::invalid_argument("No valid URL specified");
            let target = if unix { from_unix_url(rest, tls) } else { from_url(rest, tls) };
            return target.ok_or_else(no_url).map(Some);
        }
        name.strip_prefix("nbd:").map(from_plain).transpose()
    }

    /// Takes the options that say the same: `server.type=…` and so on, or `host`, `port`, `path`; `export`.
    ///
    /// # Errors
    /// [`crate::block::Kind::InvalidArgument`] in qemu-img's words.
    pub fn take(options: &mut Options) -> Result<Target> {
        let mut server = options.take_group("server.");
        let old = [("host", "inet"), ("path", "unix")];
        if server.pairs().is_empty() {
            let kind = old.iter().find(|(key, _)| options.get(key).is_some());
            let (_, kind) = kind.ok_or_else(|| Error::invalid_argument("NBD server address missing"))?;
            server.set("type", kind);
            for key in ["host", "path", "port"] {
                if let Some(value) = options.take(key) {
                    server.set(key, &value);
                }
            }
        }
        let address = take_address(&mut server)?;
        let export = options.take("export").unwrap_or_default();
        Ok(Target { address, export, tls: false })
    }
}

/// What a scheme means: with TLS, over a Unix socket.
fn scheme_of(scheme: &str) -> Option<(bool, bool)> {
    Some(match scheme {
        "nbd" | "nbd+tcp" => (false, false),
        "nbd+unix" => (false, true),
        "nbds" | "nbds+tcp" => (true, false),
        "nbds+unix" => (true, true),
        _ => return None,
    })
}

fn from_url(rest: &str, tls: bool) -> Option<Target> {
    if rest.contains('?') {
        return None;
    }
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    // A user's name means nothing here.
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    let (host, port) = split_port(place);
    let host = decoded(host)?;
    if host.is_empty() {
        return None;
    }
    let port = port.filter(|port| !port.is_empty()).map_or(DEFAULT_PORT.to_string(), str::to_owned);
    Some(Target { address: Address::Tcp(host, port), export: decoded(export)?, tls })
}

fn from_unix_url(rest: &str, tls: bool) -> Option<Target> {
    let (place, query) = rest.split_once('?')?;
    let (authority, export) = place.split_once('/').unwrap_or((place, ""));
    let path = query.strip_prefix("socket=").filter(|path| !path.contains('&'))?;
    if !authority.is_empty() || path.is_empty() {
        return None;
    }
    Some(Target { address: Address::Unix(decoded(path)?), export: decoded(export)?, tls })
}

/// The name behind `nbd:`.
fn from_plain(rest: &str) -> Result<Target> {
    if rest.is_empty() {
        return Err(Error::invalid_argument("NBD server address missing"));
    }
    let (place, export) = rest.split_once(EXPORT).map_or((rest, None), |(place, name)| (place, Some(name)));
    let address = match (Address::parse(place), export) {
        (Err(_), Some(_)) => Address::Tcp(split_port(place).0.to_owned(), DEFAULT_PORT.to_string()),
        (address, _) => address?,
    };
    Ok(Target { address, export: export.unwrap_or_default().to_owned(), tls: false })
}

fn take_address(server: &mut Options) -> Result<Address> {
    let kind = server.take("type").ok_or_else(|| Error::invalid_argument("Parameter 'type' is missing"))?;
    let mut needed = |key: &str| {
        server.take(key).ok_or_else(|| Error::invalid_argument(format!("Parameter '{key}' is missing")))
    };
    let address = match kind.as_str() {
        "unix" => Address::Unix(needed("path")?),
        "inet" => {
            let host = needed("host")?;
            Address::Tcp(host, needed("port").unwrap_or_else(|_| DEFAULT_PORT.to_string()))
        }
        other => {
            return Err(Error::invalid_argument(format!("Parameter 'type' does not accept value '{other}'")));
        }
    };
    match server.pairs().first() {
        Some((key, _)) => Err(Error::invalid_argument(format!("Parameter '{key}' is unexpected"))),
        None => Ok(address),
    }
}

/// Host and port; an address of IPv6 stands in brackets.
fn split_port(place: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = place.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    place.rsplit_once(':').map_or((place, None), |(host, port)| (host, Some(port)))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => f.write_str(path),
        }
    }
}

/// As a URI, the way qemu-img shows it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tls, export) = (if self.tls { "s" } else { "" }, encoded(&self.export));
        let slash = if export.is_empty() { "" } else { "/" };
        match &self.address {
            Address::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd{tls}://[{host}]:{port}{slash}{export}")
            }
            Address::Tcp(host, port) => write!(f, "nbd{tls}://{host}:{port}{slash}{export}"),
            Address::Unix(path) => write!(f, "nbd{tls}+unix://{slash}{export}?socket={}", encoded(path)),
        }
    }
}

/// Takes percent signs and two digits for bytes.
fn decoded(text: &str) -> Option<String> {
    let bytes = text::to_bytes(text);
    let (mut out, mut rest) = (Vec::with_capacity(bytes.len()), &bytes[..]);
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    Some(text::from_bytes(&out))
}

/// Writes what would end a part of a URI as bytes in digits.
fn encoded(text: &str) -> String {
    let bytes = text::to_bytes(text);
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes.iter() {
        match byte {
            b'%' | b'?' | b'#' | b'&' | 0..=b' ' | 0x7f => out.extend(format!("%{byte:02X}").bytes()),
            _ => out.push(*byte),
        }
    }
    text::from_bytes(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: &str) -> Address {
        Address::Tcp(host.into(), port.into())
    }

    fn target(name: &str) -> Target {
        Target::from_name(name).unwrap().unwrap()
    }

    #[test]
    fn every_form_of_name_means_what_the_manual_says() {
        let unix = |path: &str| Address::Unix(path.into());
        for (name, address, export, tls) in [
            ("nbd:h:1024", tcp("h", "1024"), "", false),
            ("nbd:h:1024:exportname=a:b", tcp("h", "1024"), "a:b", false),
            ("nbd:h:exportname=debian", tcp("h", "10809"), "debian", false),
            ("nbd:[::1]:9", tcp("::1", "9"), "", false),
            ("nbd:unix:/a:b", unix("/a:b"), "", false),
            ("nbd:unix:/a:exportname=x", unix("/a"), "x", false),
            ("nbd://h", tcp("h", "10809"), "", false),
            ("nbd+tcp://u@h:7/x%20y", tcp("h", "7"), "x y", false),
            ("nbds://[::1]/x/y", tcp("::1", "10809"), "x/y", true),
            ("nbd+unix:///x?socket=/a%3Fb", unix("/a?b"), "x", false),
            ("nbd+unix://?socket=/a", unix("/a"), "", false),
            ("nbds+unix:///?socket=a", unix("a"), "", true),
        ] {
            assert_eq!(target(name), Target { address, export: export.into(), tls }, "{name}");
            assert_eq!(target(&target(name).to_string()), target(name), "{name}");
        }
        for name in ["nbd", "a.img", "nbd+foo://a", "/nbd:x", "json:{}"] {
            assert_eq!(Target::from_name(name).unwrap(), None, "{name}");
        }
    }

    // Read off qemu-img.
    #[test]
    fn broken_names_are_refused_in_the_words_of_qemu_img() {
        for (name, message) in [
            ("nbd:", "NBD server address missing"),
            ("nbd:localhost", "error parsing address 'localhost'"),
            ("nbd://", "No valid URL specified"),
            ("nbd+unix:///", "No valid URL specified"),
            ("nbd://h:1/a?x=y", "No valid URL specified"),
            ("nbd://h/%G0", "No valid URL specified"),
            ("nbd://h/%+5", "No valid URL specified"),
        ] {
            assert_eq!(Target::from_name(name).unwrap_err().message(), message, "{name}");
        }
    }

    #[test]
    fn options_say_the_same_as_names() {
        for (text, name) in [
            ("server.type=unix,server.path=/s,export=e", "nbd+unix:///e?socket=/s"),
            ("server.type=inet,server.host=h,server.port=1", "nbd://h:1"),
            ("host=h,port=1,export=e", "nbd://h:1/e"),
            ("path=/s", "nbd+unix://?socket=/s"),
        ] {
            let mut options = Options::parse(text, None);
            assert_eq!(Target::take(&mut options).unwrap().to_string(), name);
            assert!(options.finish().is_ok(), "{text}");
        }
        for (text, message) in [
            ("export=e", "NBD server address missing"),
            ("server.type=unix", "Parameter 'path' is missing"),
            ("server.type=foo", "Parameter 'type' does not accept value 'foo'"),
        ] {
            assert_eq!(Target::take(&mut Options::parse(text, None)).unwrap_err().message(), message);
        }
    }
}
