//! Encryption of guest data (specification: "Full disk encryption header pointer", "Data encryption").
//!
//! | crypt_method | cipher | number of a sector | key |
//! | --- | --- | --- | --- |
//! | 1 | AES-128-CBC, plain64 | by its place on the guest's disk | the passphrase, cut or padded to 16 bytes |
//! | 2 | as a LUKS header says | by its place in the image file | master key of the LUKS header |
//!
//! ```text
//!   header extension 0x0537be77:  0 offset of the LUKS header (8)  8 its length, up to its payload (8)
//! ```
//! The LUKS header takes whole clusters that are counted once. Encrypted are data clusters, and nothing else:
//! compressed clusters and all metadata stand as they are. With the second method a cluster that is copied is
//! encrypted anew, so that snapshots never show two contents under one vector.
//!
//! An image without its key can be looked at, but its data can neither be read nor written.

use super::driver::Qcow2;
use super::extensions::{ENCRYPTION, Extension};
use super::geometry::{GuestOffset, HOST_END, HostOffset};
use super::header::Header;
use super::overlap::Metadata;
use crate::block::aio::Engine;
use crate::block::crypto::cipher::Cipher;
use crate::block::crypto::iv::IvKind;
use crate::block::crypto::luks;
use crate::block::crypto::sector::{Mode, SECTOR, Scheme};
use crate::block::crypto::{Key, Sectors};
use crate::block::encryption::{Cipherer, KeySlots, SlotChange, no_key};
use crate::block::graph::Node;
use crate::block::graph::driver::{EncryptionFacts, KeySlotChanges, LuksFacts};
use crate::block::{Error, Iov, Kind, Result};
use async_trait::async_trait;
use std::ops::Range;
use std::rc::Rc;

/// The option that names the secret with the passphrase.
const KEY_OPTION: &str = "encrypt.key-secret";
/// Of the first method.
const LEGACY: Scheme = Scheme { cipher: Cipher::AES_128, mode: Mode::Cbc, iv: IvKind::Plain64 };

/// Longest LUKS header, in bytes. The largest keys that there are take 2 MiB of eight slots.
const MAX_LUKS_HEADER: u64 = 16 << 20;

/// A method of encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// 1
    Aes,
    /// 2
    Luks,
}

impl Method {
    /// Decodes crypt_method; 0 is none.
    pub(super) fn decode(crypt_method: u32) -> Result<Option<Method>> {
        match crypt_method {
            0 => Ok(None),
            1 => Ok(Some(Method::Aes)),
            2 => Ok(Some(Method::Luks)),
            other => {
                Err(Error::invalid_format(format!("Unsupported encryption method {}", other.cast_signed())))
            }
        }
    }

    fn encode(self) -> u32 {
        match self {
            Method::Aes => 1,
            Method::Luks => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Method::Aes => "aes",
            Method::Luks => "luks",
        }
    }
}

/// What whoever opens an image has to say of its encryption.
#[derive(Clone, Debug, Default)]
pub struct Unlock {
    /// The passphrase.
    pub passphrase: Option<Key>,
    /// The method that the image must have ("aes", "luks").
    pub format: Option<String>,
    /// Data is neither read nor written: a passphrase is not needed.
    pub metadata_only: bool,
}

/// How a new image is to be encrypted.
#[derive(Clone, Debug)]
pub enum EncryptOptions {
    /// By the first method, with this passphrase. Weak: for programs that know nothing else.
    Aes(Key),
    /// By the second.
    Luks(luks::CreateOptions, Key),
}

/// Where the LUKS header of an image stands.
pub(super) fn luks_place(header: &Header) -> Result<Option<Range<u64>>> {
    let extension = header.extensions.iter().find(|extension| extension.magic == ENCRYPTION);
    let method = Method::decode(header.crypt_method)?;
    let extension = match (method, extension) {
        (Some(Method::Luks), Some(extension)) => extension,
        (Some(Method::Luks), None) => {
            return Err(Error::invalid_format(
                "the header extension that says where the LUKS header is, is missing",
            ));
        }
        (_, None) => return Ok(None),
        (_, Some(_)) => {
            return Err(Error::invalid_format(
                "CRYPTO header extension only expected with LUKS encryption method",
            ));
        }
    };
    let Some((offset, len)) = extension.data.split_first_chunk::<8>() else {
        return Err(wrong_size(extension));
    };
    let Ok(len) = <[u8; 8]>::try_from(len) else { return Err(wrong_size(extension)) };
    let (offset, len) = (u64::from_be_bytes(*offset), u64::from_be_bytes(len));
    if !header.geometry.is_aligned(offset) || offset == 0 {
        let cluster = header.geometry.cluster_size();
        let message =
            format!("Encryption header offset '{offset}' is not a multiple of cluster size '{cluster}'");
        return Err(Error::invalid_format(message));
    }
    let possible = |&end: &u64| (1..=MAX_LUKS_HEADER).contains(&len) && end <= HOST_END;
    match offset.checked_add(len).filter(possible) {
        Some(end) => Ok(Some(offset..end)),
        None => Err(Error::invalid_format("Encryption header length invalid")),
    }
}

fn wrong_size(extension: &Extension) -> Error {
    Error::invalid_format(format!(
        "CRYPTO header extension size {}, but expected size 16",
        extension.data.len()
    ))
}

/// The encryption of an open image.
pub(super) struct Encryption {
    method: Method,
    slots: Option<KeySlots>,
    /// With a key: it, and what encrypts with it.
    key: Option<(Key, Cipherer)>,
}

impl Encryption {
    /// Reads and unlocks what `header` says of encryption.
    pub(super) async fn open(
        engine: &Rc<Engine>,
        file: &Rc<Node>,
        header: &Header,
        unlock: &Unlock,
    ) -> Result<Option<Encryption>> {
        let method = Method::decode(header.crypt_method)?;
        check_format(method, unlock.format.as_deref())?;
        let Some(method) = method else { return Ok(None) };
        let slots = match luks_place(header)? {
            Some(place) => {
                Some(KeySlots::read(engine, file, place.start, Some(place.end - place.start)).await?)
            }
            None => None,
        };
        let key = match &unlock.passphrase {
            _ if unlock.metadata_only => None,
            None => return Err(no_key(KEY_OPTION)),
            Some(passphrase) => Some(match &slots {
                Some(slots) => (slots.unlock(passphrase).await?, slots.header().scheme),
                None => (legacy_key(passphrase), LEGACY),
            }),
        };
        let keyed = |(key, scheme): (Key, Scheme)| {
            Sectors::new(scheme, &key).map(|sectors| (key, Cipherer::new(engine, sectors)))
        };
        Ok(Some(Encryption { method, slots, key: key.map(keyed).transpose()? }))
    }

    /// That of an image that nobody has unlocked yet.
    pub(super) fn locked(header: &Header) -> Result<Option<Encryption>> {
        let method = Method::decode(header.crypt_method)?;
        Ok(method.map(|method| Encryption { method, slots: None, key: None }))
    }

    /// Whether there is no key.
    pub(super) fn is_locked(&self) -> bool {
        self.key.is_none()
    }

    fn cipherer(&self) -> Result<&Cipherer> {
        self.key.as_ref().map(|(_, cipherer)| cipherer).ok_or_else(|| no_key(KEY_OPTION))
    }

    fn first_sector(&self, host: HostOffset, at: GuestOffset) -> u64 {
        let place = match self.method {
            Method::Aes => at.0,
            Method::Luks => host.0,
        };
        place / SECTOR as u64
    }

    /// Reads guest bytes from `at` on, which stand at `host`.
    pub(super) async fn read(
        &self,
        node: &Node,
        host: HostOffset,
        at: GuestOffset,
        into: &Iov,
    ) -> Result<()> {
        self.cipherer()?.read(node, host.0, self.first_sector(host, at), into).await
    }

    /// Writes guest bytes from `at` on to `host`.
    pub(super) async fn write(
        &self,
        node: &Node,
        host: HostOffset,
        at: GuestOffset,
        from: &Iov,
    ) -> Result<()> {
        self.cipherer()?.write(node, host.0, self.first_sector(host, at), from).await
    }

    /// For `info`, as far as they were read.
    pub(super) fn facts(&self) -> Option<EncryptionFacts> {
        match (self.method, &self.slots) {
            (Method::Aes, _) => Some(EncryptionFacts::Aes),
            (Method::Luks, slots) => {
                slots.as_ref().map(|s| EncryptionFacts::Luks(LuksFacts::of(&s.header())))
            }
        }
    }
}

fn check_format(method: Option<Method>, wanted: Option<&str>) -> Result<()> {
    match (method, wanted) {
        (None, Some(wanted)) => Err(Error::invalid_format(format!(
            "No encryption in image header, but options specified format '{wanted}'"
        ))),
        (Some(method), Some(wanted)) if method.name() != wanted => Err(Error::invalid_format(format!(
            "Header reported '{}' encryption format but options specify '{wanted}'",
            method.name()
        ))),
        _ => Ok(()),
    }
}

/// The key of the first method: the passphrase itself.
fn legacy_key(passphrase: &Key) -> Key {
    let mut key = Key::zeroed(LEGACY.key_len());
    key.iter_mut().zip(passphrase.iter()).for_each(|(byte, given)| *byte = *given);
    key
}

#[async_trait(?Send)]
impl KeySlotChanges for Qcow2 {
    fn check_key_slots(&self) -> Result<()> {
        self.luks().map(drop)
    }

    async fn change_key_slots(&self, change: &SlotChange, force: bool) -> Result<()> {
        let (encryption, slots) = self.luks()?;
        let (key, _) = encryption.key.as_ref().ok_or_else(|| no_key(KEY_OPTION))?;
        slots.change(change, key, force).await
    }
}

impl Qcow2 {
    /// How the data is encrypted, and the key slots, where there are some.
    fn luks(&self) -> Result<(&Encryption, &KeySlots)> {
        let Some(encryption) = &self.encryption else {
            return Err(Error::invalid_format("Can't amend encryption options - encryption not present"));
        };
        let Some(slots) = &encryption.slots else {
            return Err(Error::new(Kind::Unsupported, "Only LUKS encryption options can be amended"));
        };
        Ok((encryption, slots))
    }

    /// Refuses to show anything of an encrypted image without its key.
    pub(super) fn check_key(&self) -> Result<()> {
        match &self.encryption {
            Some(encryption) if encryption.is_locked() => Err(no_key(KEY_OPTION)),
            _ => Ok(()),
        }
    }

    /// Bytes that requests are multiples of.
    pub(super) fn sector_alignment(&self) -> u32 {
        if self.encryption.is_some() { SECTOR as u32 } else { 1 }
    }

    /// Makes an image without data an encrypted one: takes clusters for a LUKS header and writes it, then the
    /// header that names it. The image must be opened anew.
    pub(super) async fn add_encryption(&self, options: &EncryptOptions) -> Result<()> {
        let (method, place) = match options {
            EncryptOptions::Aes(_) => (Method::Aes, None),
            EncryptOptions::Luks(luks, passphrase) => {
                let place = self.place_luks_header(luks.payload()).await?;
                KeySlots::create(&self.engine, &self.file, place.start, luks, passphrase).await?;
                (Method::Luks, Some(place))
            }
        };
        self.flush_all().await?;
        self.change_header(|header| {
            header.crypt_method = method.encode();
            header.extensions.extend(place.map(|place| extension(&place)));
        })
        .await
    }

    /// Takes clusters for `len` bytes, which read as zeros.
    async fn place_luks_header(&self, len: u64) -> Result<Range<u64>> {
        let reserved = self.reserve_contiguous(self.geometry.clusters_for(len)).await?;
        let run = reserved.run;
        reserved.keep();
        let start = self.geometry.start_of(run.first).0;
        let end = start + (run.count << self.geometry.cluster_bits);
        self.file.write_zeroes(start, end - start, true).await?;
        self.overlap.set_range(Metadata::EncryptionHeader, start..end);
        Ok(start..start + len)
    }
}

impl EncryptOptions {
    /// What opens the image that they make.
    pub(super) fn unlock(&self) -> Unlock {
        let (EncryptOptions::Aes(passphrase) | EncryptOptions::Luks(_, passphrase)) = self;
        Unlock { passphrase: Some(passphrase.clone()), ..Unlock::default() }
    }

    /// Refuses what makes no image, quickly.
    pub(super) fn validate(&self) -> Result<()> {
        match self {
            EncryptOptions::Aes(_) => Ok(()),
            EncryptOptions::Luks(options, _) => options.validate(),
        }
    }
}

fn extension(place: &Range<u64>) -> Extension {
    let fields = [place.start, place.end - place.start];
    Extension { magic: ENCRYPTION, data: fields.iter().flat_map(|field| field.to_be_bytes()).collect() }
}
