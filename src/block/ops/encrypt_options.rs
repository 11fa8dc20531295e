//! Encryption of a new image: from words to what the drivers take, in qemu-img's words.

use super::create::Values;
use crate::block::crypto::cipher::Cipher;
use crate::block::crypto::hash::Hash;
use crate::block::crypto::iv::IvKind;
use crate::block::crypto::sector::{Mode, Scheme};
use crate::block::crypto::{Key, luks};
use crate::block::encryption::{SlotChange, no_key};
use crate::block::format::qcow2::EncryptOptions;
use crate::block::secret::Secrets;
use crate::block::{Error, Result};
use crate::util::keyval::Options;
use std::time::Duration;

/// What may stand behind `encrypt.` besides the format and the secret.
const LUKS_ONLY: [&str; 6] =
    ["cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg", "iter-time"];
/// What names the secret, of a qcow2 image and of a LUKS volume.
const KEY_OPTIONS: [&str; 2] = ["encrypt.key-secret", "key-secret"];

/// How a qcow2 image is to be encrypted, if it is.
pub(super) fn qcow2(values: &Values, secrets: &Secrets) -> Result<Option<EncryptOptions>> {
    let given = |name: &&&str| values.get(&format!("encrypt.{name}")).is_some();
    let format = match (values.get("encrypt.format"), values.is_on("encryption")) {
        (Some(_), true) => {
            return Err(Error::invalid_argument(
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ));
        }
        (None, true) => "aes",
        (Some(format), false) => format,
        (None, false) if given(&&"key-secret") || LUKS_ONLY.iter().any(|name| given(&name)) => {
            return Err(Error::invalid_argument("Parameter 'encrypt.format' is missing"));
        }
        (None, false) => return Ok(None),
    };
    match (format, LUKS_ONLY.iter().find(given)) {
        ("aes", None) => passphrase(values, secrets).map(|key| Some(EncryptOptions::Aes(key))),
        ("aes", Some(name)) => {
            Err(Error::invalid_argument(format!("Parameter 'encrypt.{name}' is unexpected")))
        }
        ("luks", _) => {
            let options = luks(values, "encrypt.")?;
            Ok(Some(EncryptOptions::Luks(options, passphrase(values, secrets)?)))
        }
        _ => Err(Error::not_accepted("format", format)),
    }
}

/// The options of a LUKS header; their names have `prefix` in front.
pub(super) fn luks(values: &Values, prefix: &str) -> Result<luks::CreateOptions> {
    let get = |name: &str| values.get(&format!("{prefix}{name}"));
    let defaults = luks::CreateOptions::default();
    let cipher = word(get, "cipher-alg", Cipher::named)?.unwrap_or(defaults.scheme.cipher);
    let mode = word(get, "cipher-mode", Mode::named)?.unwrap_or(defaults.scheme.mode);
    let iv_hash = word(get, "ivgen-hash-alg", Hash::named)?.unwrap_or(Hash::Sha256);
    let iv_named = |name: &str| IvKind::named(name, Some(iv_hash)).ok();
    let iv = word(get, "ivgen-alg", iv_named)?.unwrap_or(defaults.scheme.iv);
    let hash = word(get, "hash-alg", Hash::named)?.unwrap_or(defaults.hash);
    // Numbers below zero are read as C does, and refused as far too long.
    let time = get("iter-time").and_then(|text| text.parse::<i64>().ok());
    let time = time.map_or(defaults.time, |millis| Duration::from_millis(millis as u64));
    let options = luks::CreateOptions { scheme: Scheme { cipher, mode, iv }, hash, time };
    options.validate()?;
    Ok(options)
}

/// The change of key slots that `given` describes, without what stands before the names (`encrypt.` for qcow2).
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::block::Kind::InvalidArgument) for what makes no sense together.
pub fn slot_change(given: &Options, secrets: &Secrets) -> Result<SlotChange> {
    let secret = |name| given.get(name).map(|id| secrets.passphrase(id)).transpose();
    let refuse = |name: &str, doing: &str| match given.get(name) {
        Some(_) => Err(Error::invalid_argument(format!("'{name}' must not be given when {doing} keyslots"))),
        None => Ok(()),
    };
    let slot = number(given, "keyslot")?.map(slot_number).transpose()?;
    match given.get("state") {
        Some("active") => {
            refuse("old-secret", "activating")?;
            let missing = || Error::invalid_argument("'new-secret' is required to activate a keyslot");
            let passphrase = secret("new-secret")?.ok_or_else(missing)?;
            let time = number(given, "iter-time")?.map(|millis| Duration::from_millis(millis as u64));
            let time = time.unwrap_or(luks::CreateOptions::default().time);
            Ok(SlotChange::Fill { slot, passphrase, time })
        }
        Some("inactive") => {
            refuse("new-secret", "erasing")?;
            refuse("iter-time", "erasing")?;
            Ok(SlotChange::Erase { slot, passphrase: secret("old-secret")? })
        }
        Some(other) => Err(Error::not_accepted("state", other)),
        None => Err(Error::invalid_argument("Parameter 'state' is missing")),
    }
}

/// A number that may be a slot's; which there are, the header knows.
fn slot_number(slot: i64) -> Result<u32> {
    let last = luks::SLOTS - 1;
    // QEMU shows a negative one as the 32 bits that it is to it.
    let shown = if slot < 0 { i64::from(slot as u32) } else { slot };
    let wrong = |_| {
        Error::invalid_argument(format!("Invalid keyslot {shown} specified, must be between 0 and {last}"))
    };
    u32::try_from(slot).map_err(wrong)
}

fn number(given: &Options, name: &str) -> Result<Option<i64>> {
    let parse = |text: &str| {
        text.parse().map_err(|_| Error::invalid_argument(format!("Parameter '{name}' expects a number")))
    };
    given.get(name).map(parse).transpose()
}

/// The passphrase of the image to be made.
pub(super) fn passphrase(values: &Values, secrets: &Secrets) -> Result<Key> {
    match key_option(values) {
        Some((_, id)) => secrets.passphrase(id),
        None => Err(no_key(if values.has("key-secret") { "key-secret" } else { "encrypt.key-secret" })),
    }
}

/// The option that names the secret, and its value: what opens an image of these values.
pub fn key_option(values: &Values) -> Option<(&'static str, &str)> {
    KEY_OPTIONS.into_iter().find_map(|name| values.get(name).map(|id| (name, id)))
}

fn word<'a, T>(
    get: impl Fn(&str) -> Option<&'a str>,
    name: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>> {
    let Some(text) = get(name) else { return Ok(None) };
    parse(text).map(Some).ok_or_else(|| Error::not_accepted(name, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expectations were read off `qemu-img amend`.
    #[test]
    fn changes_of_key_slots_are_read_and_what_makes_no_sense_is_named() {
        let mut secrets = Secrets::default();
        secrets.define("secret,id=t,data=abc").unwrap();
        let change = |text: &str| slot_change(&Options::parse(text, None), &secrets);
        let fill = change("state=active,new-secret=t,keyslot=3,iter-time=5").unwrap();
        assert!(matches!(fill, SlotChange::Fill { slot: Some(3), time, .. } if time.as_millis() == 5));
        let fill = change("state=active,new-secret=t").unwrap();
        assert!(matches!(fill, SlotChange::Fill { slot: None, time, .. } if time.as_secs() == 2));
        let erase = change("state=inactive,old-secret=t").unwrap();
        assert!(matches!(erase, SlotChange::Erase { slot: None, passphrase: Some(_) }));
        for (text, message) in [
            ("state=active", "'new-secret' is required to activate a keyslot"),
            (
                "state=active,new-secret=t,old-secret=t",
                "'old-secret' must not be given when activating keyslots",
            ),
            ("state=foo,new-secret=t", "Parameter 'state' does not accept value 'foo'"),
            ("new-secret=t", "Parameter 'state' is missing"),
            ("state=inactive,new-secret=t", "'new-secret' must not be given when erasing keyslots"),
            (
                "state=inactive,old-secret=t,iter-time=5",
                "'iter-time' must not be given when erasing keyslots",
            ),
            ("state=inactive,old-secret=zz", "No secret with id 'zz'"),
            ("state=inactive,keyslot=-1", "Invalid keyslot 4294967295 specified, must be between 0 and 7"),
            (
                "state=active,new-secret=t,keyslot=4294967296",
                "Invalid keyslot 4294967296 specified, must be between 0 and 7",
            ),
        ] {
            assert_eq!(change(text).unwrap_err().message(), message);
        }
    }
}
