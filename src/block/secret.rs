//! Secrets: passphrases and keys that users hand over apart from the images that need them
//! (`--object secret,id=ID,…`, or the same as a JSON object), in QEMU's words; among them are the keys of TLS
//! (`--object tls-creds-x509,id=ID,…`, see [`tls`]).

mod value;

use crate::block::crypto::Key;
use crate::block::describe;
use crate::block::tls::{self, Credentials};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Objects of QEMU's tools that are not there.
const OTHER_OBJECTS: &[&str] = &[
    "authz-list",
    "authz-listfile",
    "authz-pam",
    "authz-simple",
    "iothread",
    "main-loop",
    "rng-builtin",
    "rng-random",
    "secret_keyring",
    "throttle-group",
    "tls-cipher-suites",
    "tls-creds-anon",
];
/// The object that is not there for a reason of its own.
const PSK: &str = "tls-creds-psk";
/// What to do about a secret that was cut at a comma.
const COMMA: &str = "leave it out; write a comma within data= twice, or use file=";
/// The secrets of a process, by name. Clones share them; they are wiped when the last one goes.
#[derive(Clone, Default)]
pub struct Secrets(Arc<BTreeMap<String, Object>>);

/// One of them.
#[derive(Clone)]
enum Object {
    Secret(Key),
    Tls(Credentials),
}

impl Secrets {
    /// Defines the secret that `text`, the value of `--object`, describes.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] that names what is wrong; [`Kind::Io`] for a file that cannot be read.
    pub fn define(&mut self, text: &str) -> Result<()> {
        let mut options = match text.starts_with('{') {
            true => describe::parse_json(text)?,
            false => Options::parse(text, Some("qom-type")),
        };
        let missing = |name: &str| Error::invalid_argument(format!("Parameter '{name}' is missing"));
        let kind = options.take("qom-type").ok_or_else(|| missing("qom-type"))?;
        match kind.as_str() {
            "secret" | "tls-creds-x509" => {}
            PSK => {
                let message =
                    format!("the object type '{PSK}' is not supported: rustls has no pre-shared keys");
                return Err(Error::new(Kind::Unsupported, message).remedy("use tls-creds-x509"));
            }
            other if OTHER_OBJECTS.contains(&other) => {
                let message = format!("the object type '{other}' is not supported yet");
                return Err(Error::new(Kind::Unsupported, message));
            }
            other => return Err(Error::not_accepted("qom-type", other)),
        }
        let id = options.take("id").ok_or_else(|| missing("id"))?;
        check_id(&id)?;
        let inline = options.get("data").is_some();
        let object = match kind.as_str() {
            "secret" => Object::Secret(value::take(&mut options, |id| self.get(id))?),
            _ => Object::Tls(Credentials::take(&mut options)?),
        };
        match options.pairs().first() {
            // It may be the rest of a secret with a comma in it.
            Some(_) if inline => {
                return Err(Error::invalid_argument("A parameter is unexpected").remedy(COMMA));
            }
            Some((key, _)) => {
                return Err(Error::invalid_argument(format!("Parameter '{key}' is unexpected")));
            }
            None => {}
        }
        if self.0.contains_key(&id) {
            return Err(Error::invalid_argument(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        Arc::make_mut(&mut self.0).insert(id, object);
        Ok(())
    }

    /// The passphrase that is called `id`.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] where there is none, or it is no text.
    pub fn passphrase(&self, id: &str) -> Result<Key> {
        let data = self.get(id)?;
        match std::str::from_utf8(data) {
            Ok(_) => Ok(data.clone()),
            Err(_) => Err(Error::invalid_argument(format!("Data from secret {id} is not valid UTF-8"))),
        }
    }

    /// The client's TLS credentials that are called `id`.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words where there are none.
    pub fn tls_client(&self, id: &str) -> Result<tls::Client> {
        match self.credentials(id)? {
            Credentials::Client(client) => Ok(client.clone()),
            Credentials::Server(_) => {
                Err(Error::invalid_argument("Expected TLS credentials for a client endpoint"))
            }
        }
    }

    /// The server's TLS credentials that are called `id`.
    ///
    /// # Errors
    /// As [`Secrets::tls_client`].
    pub fn tls_server(&self, id: &str) -> Result<tls::Server> {
        match self.credentials(id)? {
            Credentials::Server(server) => Ok(server.clone()),
            Credentials::Client(_) => {
                Err(Error::invalid_argument("Expected TLS credentials for a server endpoint"))
            }
        }
    }

    /// The client's TLS credentials, where a process has been given one pair of them and no other.
    pub fn only_tls_client(&self) -> Option<tls::Client> {
        let mut clients = self.0.values().filter_map(|object| match object {
            Object::Tls(Credentials::Client(client)) => Some(client),
            _ => None,
        });
        clients.next().filter(|_| clients.next().is_none()).cloned()
    }

    fn credentials(&self, id: &str) -> Result<&Credentials> {
        match self.0.get(id) {
            Some(Object::Tls(credentials)) => Ok(credentials),
            Some(_) => Err(Error::invalid_argument(format!("Object with id '{id}' is not TLS credentials"))),
            None => Err(Error::invalid_argument(format!("No TLS credentials with id '{id}'"))
                .remedy("define them with --object tls-creds-x509,id=…,dir=…,endpoint=…")),
        }
    }

    fn get(&self, id: &str) -> Result<&Key> {
        match self.0.get(id) {
            Some(Object::Secret(key)) => Ok(key),
            _ => Err(Error::invalid_argument(format!("No secret with id '{id}'"))
                .remedy("define it with --object secret,id=…,file=…")),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn check_id(id: &str) -> Result<()> {
    let rest = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(rest) {
        return Ok(());
    }
    Err(Error::invalid_argument(
        "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting \
         with a letter.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(texts: &[&str]) -> Result<Key> {
        let mut secrets = Secrets::default();
        texts.iter().try_for_each(|text| secrets.define(text))?;
        secrets.passphrase("s")
    }

    fn refusal(text: &str) -> String {
        with(&[text]).unwrap_err().message().to_owned()
    }

    // Expectations here and below were read off qemu-img.
    #[test]
    fn secrets_come_raw_in_base64_and_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "YWJj\n").unwrap();
        let path = path.to_str().unwrap();
        let encoded = format!("secret,id=s,file={path},format=base64");
        for text in [
            "secret,id=s,data=abc",
            "qom-type=secret,id=s,data=abc,iv=AAAA",
            "secret,id=s,data=YWJj,format=base64",
            &encoded,
        ] {
            assert_eq!(&*with(&[text]).unwrap(), b"abc", "{text}");
        }
        assert_eq!(&*with(&[&format!("secret,id=s,file={path}")]).unwrap(), b"YWJj\n");
        assert_eq!(&*with(&["secret,id=s,data="]).unwrap(), b"");
    }

    #[test]
    fn a_secret_may_be_encrypted_under_another() {
        // openssl enc -aes-256-cbc -K 00… -iv 00… of "abc"
        let master = "secret,id=m,format=base64,data=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let sealed = "secret,id=s,format=base64,keyid=m,data=k3nBefZLfyFTjUOuYwSDjg==";
        let iv = "AAAAAAAAAAAAAAAAAAAAAA==";
        assert_eq!(&*with(&[master, &format!("{sealed},iv={iv}")]).unwrap(), b"abc");
        let message = |texts: &[&str]| with(texts).unwrap_err().message().to_owned();
        assert_eq!(message(&[sealed]), "No secret with id 'm'");
        assert_eq!(message(&[master, sealed]), "IV is required to decrypt secret");
        let short = format!("{sealed},iv=AAAA");
        assert_eq!(message(&[master, &short]), "IV should be 16 bytes in length not 3");
        let full = format!("{sealed},iv={iv}");
        assert_eq!(message(&["secret,id=m,data=short", &full]), "Key should be 32 bytes in length");
        let odd = format!("secret,id=s,data=abc,keyid=m,iv={iv}");
        assert_eq!(message(&[master, &odd]), "Length 3 must be a multiple of block size 16");
        let wrong = format!("secret,id=s,format=base64,data={iv},keyid=m,iv={iv}");
        assert_eq!(
            message(&[master, &wrong]),
            "Incorrect number of padding bytes (180) found on decrypted data"
        );
    }

    #[test]
    fn what_is_wrong_is_told_in_qemus_words() {
        assert_eq!(refusal("foo,id=s,data=abc"), "Parameter 'qom-type' does not accept value 'foo'");
        assert_eq!(refusal("id=s"), "Parameter 'qom-type' is missing");
        assert_eq!(refusal("secret,data=abc"), "Parameter 'id' is missing");
        assert!(refusal("secret,id=1s,data=abc").starts_with("Parameter 'id' expects an identifier\n"));
        assert_eq!(refusal("secret,id=s"), "Either 'file' or 'data' must be provided");
        assert_eq!(refusal("secret,id=s,data=a,file=b"), "'file' and 'data' are mutually exclusive");
        assert_eq!(refusal("secret,id=s,data=a,format=x"), "Parameter 'format' does not accept value 'x'");
        assert_eq!(refusal("secret,id=s,file=/dev/null,bogus=1"), "Parameter 'bogus' is unexpected");
        assert_eq!(refusal("secret,id=s,data=Y!Jj,format=base64"), "Base64 data contains invalid characters");
        assert_eq!(refusal("secret,id=t,data=abc"), "No secret with id 's'");
        assert!(refusal("secret,id=s,file=/nonexistent").contains("No such file or directory"));
        let twice = with(&["secret,id=s,data=a", "secret,id=s,data=a"]).unwrap_err();
        assert!(twice.message().contains("duplicate property 's'"));
        let secrets = Secrets(Arc::new([("s".to_owned(), Object::Secret(Key::from(vec![0xff])))].into()));
        assert_eq!(secrets.passphrase("s").unwrap_err().message(), "Data from secret s is not valid UTF-8");
    }

    #[test]
    fn no_error_shows_a_part_of_a_secret_with_a_comma() {
        for text in ["data=hid,den", "data=hid,noden", "data=hid,den=1"] {
            let error = with(&[&format!("secret,id=s,{text}")]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("den"), "{error}");
        }
        assert_eq!(&*with(&["secret,id=s,data=hid,,den"]).unwrap(), b"hid,den");
    }

    #[test]
    fn nothing_shows_what_a_secret_holds() {
        let mut secrets = Secrets::default();
        secrets.define("secret,id=name,data=hidden").unwrap();
        let key = secrets.passphrase("name").unwrap();
        let shown = format!("{secrets:?} {key:?}");
        assert_eq!(shown, "{\"name\"} Key of 6 bytes");
    }
}
