//! What a secret is, by the options that define it.
//!
//! | option of a `secret` | means |
//! | --- | --- |
//! | `data=` | the secret itself (others see it in the list of processes, and copies of the option string stay in memory) |
//! | `file=` | a file that holds it, all bytes of it |
//! | `format=` | `raw` (default) or `base64` |
//! | `keyid=`, `iv=` | it is encrypted: AES-256-CBC with PKCS#7 padding under another secret |

use crate::block::crypto::Key;
use crate::block::crypto::cipher::Cipher;
use crate::block::error::errno_text;
use crate::block::{Error, Result};
use crate::util::keyval::Options;
use crate::util::text;
use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use std::io::Read;

/// Bytes of an AES block, and of an initialisation vector.
const BLOCK: usize = 16;
/// Longest secret that is read from a file, in bytes.
const MAX_LEN: u64 = 1 << 20;
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Takes the options that say what a secret is; `secret` knows the one that it is encrypted under.
///
/// # Errors
/// As [`Secrets::define`](super::Secrets::define).
pub(super) fn take<'a>(options: &mut Options, secret: impl FnOnce(&str) -> Result<&'a Key>) -> Result<Key> {
    let stored = match (options.take("data"), options.take("file")) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid_argument("'file' and 'data' are mutually exclusive"));
        }
        (None, None) => return Err(Error::invalid_argument("Either 'file' or 'data' must be provided")),
        (Some(data), None) => Key::from(text::to_bytes(&data).into_owned()),
        (None, Some(path)) => read_file(&path)?,
    };
    let base64 = match options.take("format").as_deref() {
        None | Some("raw") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Error::not_accepted("format", other));
        }
    };
    let (keyid, iv) = (options.take("keyid"), options.take("iv"));
    let stored = if base64 { decode(&stored)? } else { stored };
    match keyid {
        Some(keyid) => decrypt(secret(&keyid)?, iv.as_deref(), stored),
        None => Ok(stored),
    }
}

fn read_file(path: &str) -> Result<Key> {
    let told = |what: &str, error: std::io::Error| {
        let cause = errno_text(&error);
        Error::from(error).replaced(format!("Unable to read {path}: {what} file “{path}”: {cause}"))
    };
    let file = std::fs::File::open(text::to_path(path)).map_err(|error| told("Failed to open", error))?;
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut bytes = Vec::with_capacity(MAX_LEN as usize + 1);
    let read = file.take(MAX_LEN + 1).read_to_end(&mut bytes);
    let bytes = Key::from(bytes);
    match read {
        Err(error) => Err(told("Error reading", error)),
        Ok(len) if len as u64 > MAX_LEN => {
            Err(Error::invalid_argument(format!("Unable to read {path}: the secret is too long")))
        }
        Ok(_) => Ok(bytes),
    }
}

/// Decodes base64; line ends are no part of it.
fn decode(text: &[u8]) -> Result<Key> {
    // Room for all of it at once, as above.
    let mut lines = Vec::with_capacity(text.len());
    lines.extend(text.iter().filter(|&&byte| byte != b'\n' && byte != b'\r'));
    let lines = Key::from(lines);
    let decoded = BASE64
        .decode(&*lines)
        .map_err(|_| Error::invalid_argument("Base64 data contains invalid characters"))?;
    Ok(Key::from(decoded))
}

fn decrypt(key: &Key, iv: Option<&str>, mut data: Key) -> Result<Key> {
    let iv =
        decode(iv.ok_or_else(|| Error::invalid_argument("IV is required to decrypt secret"))?.as_bytes())?;
    if iv.len() != BLOCK {
        return Err(Error::invalid_argument(format!(
            "IV should be {BLOCK} bytes in length not {}",
            iv.len()
        )));
    }
    let cipher = Cipher::AES_256;
    if key.len() != cipher.key_len() {
        return Err(Error::invalid_argument(format!("Key should be {} bytes in length", cipher.key_len())));
    }
    if !data.len().is_multiple_of(BLOCK) {
        return Err(Error::invalid_argument(format!(
            "Length {} must be a multiple of block size {BLOCK}",
            data.len()
        )));
    }
    cipher.decrypt_cbc(key, &iv, &mut data)?;
    let padding = usize::from(data.last().copied().unwrap_or(0));
    match data.len().checked_sub(padding) {
        Some(len) if padding <= BLOCK => Ok(Key::from(data[..len].to_vec())),
        _ => Err(Error::invalid_argument(format!(
            "Incorrect number of padding bytes ({padding}) found on decrypted data"
        ))),
    }
}
