//! Key bytes that are wiped when they are dropped and never shown.

use std::fmt;
use std::ops::{Deref, DerefMut};
use zeroize::Zeroizing;

/// A key, a passphrase, or bytes that one can be computed from. Made in its full length: growing would leave
/// copies behind, so it cannot.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// `len` zero bytes, to be filled.
    pub fn zeroed(len: usize) -> Key {
        Key::from(vec![0; len])
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Key {
        Key(Zeroizing::new(bytes))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Key {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key of {} bytes", self.len())
    }
}
