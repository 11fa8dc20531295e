//! The files of a folder of credentials. They are an administrator's, but still bounded and checked.

use crate::block::crypto::Key;
use crate::block::{Error, Result};
use crate::util::text;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::fs::File;
use std::io::{ErrorKind, Read};

/// Longest file that is read, in bytes.
const MAX_LEN: u64 = 4 << 20;

/// A folder.
pub(super) struct Files {
    pub(super) dir: String,
}

/// What one side shows of itself.
pub(super) struct Own {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// The files, for messages.
    places: (String, String),
}

impl Files {
    /// Who signs certificates that count.
    pub(super) fn authorities(&self) -> Result<RootCertStore> {
        let path = self.path("ca-cert.pem");
        let text = read(&path)?.ok_or_else(|| missing(&path))?;
        let bad = || Error::invalid_argument(format!("Unable to import CA certificate list {path}"));
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            store.add(certificate.map_err(|_| bad())?).map_err(|_| bad())?;
        }
        if store.is_empty() { Err(bad()) } else { Ok(store) }
    }

    /// What they have taken back.
    pub(super) fn revoked(&self) -> Result<Vec<CertificateRevocationListDer<'static>>> {
        let path = self.path("ca-crl.pem");
        let Some(text) = read(&path)? else { return Ok(Vec::new()) };
        let lists: std::result::Result<_, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
        lists.map_err(|_| Error::invalid_argument(format!("Unable to import CRL list {path}")))
    }

    /// Certificate and key of a `side`; none where neither is there and none is `needed`.
    pub(super) fn own(&self, side: &str, needed: bool) -> Result<Option<Own>> {
        let places = (self.path(&format!("{side}-cert.pem")), self.path(&format!("{side}-key.pem")));
        let (chain, key) = match (read(&places.0)?, read(&places.1)?) {
            (None, None) if !needed => return Ok(None),
            (None, _) => return Err(missing(&places.0)),
            (_, None) => return Err(missing(&places.1)),
            (Some(chain), Some(key)) => (chain, key),
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain)
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| cannot_load(&places, &error))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| cannot_load(&places, &error))?;
        Ok(Some(Own { chain, key, places }))
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }
}

impl Own {
    /// Certificate and key are there and do not serve.
    pub(super) fn unusable(&self, error: &rustls::Error) -> Error {
        cannot_load(&self.places, error)
    }
}

/// What is in a file, wiped when it is done with; `None` where there is no such file.
fn read(path: &str) -> Result<Option<Key>> {
    let failed =
        |error: std::io::Error| Error::from_io(error).context(format!("Unable to access credentials {path}"));
    let file = match File::open(text::to_path(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_LEN {
        return Err(Error::invalid_argument(format!("Unable to access credentials {path}: it is too long")));
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut bytes = Vec::with_capacity(size as usize + 1);
    let read = file.take(MAX_LEN).read_to_end(&mut bytes);
    let bytes = Key::from(bytes);
    read.map(|_| Some(bytes)).map_err(failed)
}

fn missing(path: &str) -> Error {
    let error = std::io::Error::from_raw_os_error(libc::ENOENT);
    Error::from_io(error).context(format!("Unable to access credentials {path}"))
}

fn cannot_load(places: &(String, String), error: &dyn std::fmt::Display) -> Error {
    let (certificate, key) = places;
    Error::invalid_argument(format!("Cannot load certificate '{certificate}' & key '{key}': {error}"))
}
