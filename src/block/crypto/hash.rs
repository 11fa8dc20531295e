//! Hashes by the names that LUKS headers and users give them, and PBKDF2 (RFC 8018) on top of them.

use super::Key;
use md5::Md5;
use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use std::time::Duration;

/// A hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// 16 bytes; broken, for old images.
    Md5,
    /// 20 bytes; broken as a signature, sound in PBKDF2.
    Sha1,
    /// 28 bytes.
    Sha224,
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
    /// 20 bytes.
    Ripemd160,
}

const HASHES: [(&str, Hash); 7] = [
    ("md5", Hash::Md5),
    ("sha1", Hash::Sha1),
    ("sha224", Hash::Sha224),
    ("sha256", Hash::Sha256),
    ("sha384", Hash::Sha384),
    ("sha512", Hash::Sha512),
    ("ripemd160", Hash::Ripemd160),
];

impl Hash {
    /// The hash called `name`.
    pub fn named(name: &str) -> Option<Hash> {
        HASHES.iter().find(|(known, _)| *known == name).map(|&(_, hash)| hash)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        HASHES.iter().find(|&&(_, hash)| hash == self).map_or("", |&(name, _)| name)
    }

    /// Bytes of a digest.
    pub fn digest_len(self) -> usize {
        match self {
            Hash::Md5 => 16,
            Hash::Sha1 | Hash::Ripemd160 => 20,
            Hash::Sha224 => 28,
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    /// The digest of all parts, one after another.
    pub fn digest(self, parts: &[&[u8]]) -> Key {
        match self {
            Hash::Md5 => digest::<Md5>(parts),
            Hash::Sha1 => digest::<Sha1>(parts),
            Hash::Sha224 => digest::<Sha224>(parts),
            Hash::Sha256 => digest::<Sha256>(parts),
            Hash::Sha384 => digest::<Sha384>(parts),
            Hash::Sha512 => digest::<Sha512>(parts),
            Hash::Ripemd160 => digest::<Ripemd160>(parts),
        }
    }

    /// Derives a key of `len` bytes from a passphrase. Takes the time of `iterations` hashes for each digest
    /// that fits in it.
    pub fn derive(self, passphrase: &[u8], salt: &[u8], iterations: u32, len: usize) -> Key {
        let mut key = Key::zeroed(len);
        let out = &mut key[..];
        match self {
            Hash::Md5 => pbkdf2_hmac::<Md5>(passphrase, salt, iterations, out),
            Hash::Sha1 => pbkdf2_hmac::<Sha1>(passphrase, salt, iterations, out),
            Hash::Sha224 => pbkdf2_hmac::<Sha224>(passphrase, salt, iterations, out),
            Hash::Sha256 => pbkdf2_hmac::<Sha256>(passphrase, salt, iterations, out),
            Hash::Sha384 => pbkdf2_hmac::<Sha384>(passphrase, salt, iterations, out),
            Hash::Sha512 => pbkdf2_hmac::<Sha512>(passphrase, salt, iterations, out),
            Hash::Ripemd160 => pbkdf2_hmac::<Ripemd160>(passphrase, salt, iterations, out),
        }
        key
    }

    /// Rounds of this hash that [`Hash::derive`] takes.
    pub fn rounds(self, iterations: u32, len: usize) -> u64 {
        u64::from(iterations) * len.div_ceil(self.digest_len()) as u64
    }

    /// How many iterations of [`Hash::derive`] to `len` bytes take `time` of this thread's processor time.
    pub fn iterations_in(self, time: Duration, len: usize) -> u64 {
        /// Shorter measurements are mostly noise.
        const ENOUGH: Duration = Duration::from_millis(20);
        let mut iterations = 1 << 12;
        loop {
            let start = thread_time();
            self.derive(b"passphrase", &[0; 32], iterations, len);
            let took = thread_time().saturating_sub(start);
            if took >= ENOUGH || iterations >= 1 << 30 {
                let scaled = u128::from(iterations) * time.as_nanos() / took.as_nanos().max(1);
                return u64::try_from(scaled).unwrap_or(u64::MAX);
            }
            iterations *= 2;
        }
    }
}

fn digest<D: Digest>(parts: &[&[u8]]) -> Key {
    let mut hash = D::new();
    parts.iter().for_each(|part| hash.update(part));
    Key::from(hash.finalize().to_vec())
}

/// Processor time of the calling thread: what other threads do must not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec for the kernel to fill. The clock always exists; if not, time stands still.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn digests_of_abc_are_those_of_the_standards() {
        let starts = [
            ("md5", 16, "900150983cd24fb0d6963f7d28e17f72"),
            ("sha1", 20, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("sha224", 28, "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
            ("sha256", 32, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("sha384", 48, "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163"),
            ("sha512", 64, "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea2"),
            ("ripemd160", 20, "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        ];
        for (name, len, start) in starts {
            let hash = Hash::named(name).unwrap();
            let digest = hash.digest(&[b"a", b"", b"bc"]);
            assert_eq!((hash.name(), digest.len(), hash.digest_len()), (name, len, len));
            assert!(hex(&digest).starts_with(start), "{name}");
        }
        assert_eq!(Hash::named("sm3"), None);
    }

    #[test]
    fn derived_keys_are_those_of_rfc_6070_and_7914() {
        let key =
            Hash::Sha1.derive(b"passwordPASSWORDpassword", b"saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096, 25);
        assert_eq!(hex(&key), "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
        let key = Hash::Sha256.derive(b"passwd", b"salt", 1, 64);
        assert!(hex(&key).starts_with("55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"));
    }
}
