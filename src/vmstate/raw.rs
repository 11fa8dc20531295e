//! Bytes in a section: base64 in the JSON, of exactly the length that is wanted.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BASE64_STANDARD.encode(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Bytes).map_err(D::Error::custom)
    }
}

/// A structure of the kernel's interface, which is frozen as such: its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Raw<T>(pub T);

impl<T: IntoBytes + Immutable> Serialize for Raw<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BASE64_STANDARD.encode(self.0.as_bytes()).serialize(serializer)
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw<T>, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?.0;
        let wrong = || D::Error::custom(format!("{} bytes instead of {}", bytes.len(), size_of::<T>()));
        T::read_from_bytes(&bytes).map(Raw).map_err(|_| wrong())
    }
}
