//! LUKS headers: round trips and hostile fields. That other programs read them is shown in the tests of images.

use super::super::cipher::Cipher;
use super::super::hash::Hash;
use super::super::iv::IvKind;
use super::super::sector::{Mode, Scheme};
use super::*;
use std::time::Duration;

fn options(cipher: &str, mode: &str, iv: IvKind, hash: &str) -> CreateOptions {
    let scheme = Scheme { cipher: Cipher::named(cipher).unwrap(), mode: Mode::named(mode).unwrap(), iv };
    CreateOptions { scheme, hash: Hash::named(hash).unwrap(), time: Duration::from_nanos(1) }
}

#[test]
fn the_right_passphrase_of_any_slot_opens_and_any_other_does_not() {
    let essiv = IvKind::Essiv(Hash::Sha256);
    for (cipher, mode, iv, hash) in [
        ("aes-256", "xts", IvKind::Plain64, "sha256"),
        ("aes-192", "cbc", essiv, "sha1"),
        ("cast5-128", "ctr", IvKind::Plain, "md5"),
    ] {
        let (mut header, key, stripes) = options(cipher, mode, iv, hash).make(b"first").unwrap();
        let second = header.fill_slot(5, &key, b"second", Duration::from_nanos(1)).unwrap();
        let header = Header::decode(&header.encode()).unwrap();
        assert_eq!(header.active_slots(), 2);
        assert_eq!(header.open_slot(0, stripes.clone(), b"first").unwrap().as_ref(), Some(&key));
        assert_eq!(header.open_slot(5, second.clone(), b"second").unwrap().as_ref(), Some(&key));
        assert_eq!(header.open_slot(0, stripes, b"second").unwrap(), None);
        assert_eq!(header.open_slot(5, second, b"").unwrap(), None);
    }
}

#[test]
fn a_cleared_slot_is_inactive_and_keeps_its_place() {
    let (mut header, ..) =
        CreateOptions { time: Duration::from_nanos(1), ..CreateOptions::default() }.make(b"x").unwrap();
    let place = header.stripes(0);
    header.clear_slot(0);
    let again = Header::decode(&header.encode()).unwrap();
    assert_eq!((again.active_slots(), again.stripes(0)), (0, place));
}

#[test]
fn combinations_that_do_not_exist_are_refused_by_name() {
    let plain = IvKind::Plain64;
    let message = |options: CreateOptions| options.validate().unwrap_err().message().to_owned();
    assert_eq!(message(options("cast5-128", "xts", plain, "sha1")), "Unsupported cipher mode xts");
    let essiv = options("aes-256", "cbc", IvKind::Essiv(Hash::Sha1), "sha1");
    assert_eq!(message(essiv), "No AES cipher with key size 20 available");
}

/// Each numeric field with each extreme value, and each byte with some others: an answer, never a panic, and
/// what is accepted keeps all places apart.
#[test]
fn hostile_headers_are_refused_or_harmless() {
    let (header, ..) =
        CreateOptions { time: Duration::from_nanos(1), ..CreateOptions::default() }.make(b"x").unwrap();
    let good = header.encode();
    let mut accepted = 0;
    for at in 0..HEADER_LEN {
        for value in [0u32, 1, 7, 8, 9, 511, 513, u32::MAX / 2, u32::MAX - 1, u32::MAX] {
            let mut bytes = good;
            let end = (at + 4).min(HEADER_LEN);
            bytes[at..end].copy_from_slice(&value.to_be_bytes()[..end - at]);
            let Ok(header) = Header::decode(&bytes) else { continue };
            accepted += 1;
            assert!(header.scheme.key_len() <= 64);
            assert!((0..SLOTS).all(|slot| header.stripes(slot).end <= header.payload));
        }
    }
    assert!(accepted > 0);
}

/// SHA-256 gives half of a key of 64 bytes, and all of a digest of 20, for each iteration.
#[test]
fn no_passphrase_costs_more_than_2_to_the_28_rounds_over_all_slots() {
    let options = CreateOptions { time: Duration::from_nanos(1), ..CreateOptions::default() };
    let (mut header, key, _) = options.make(b"x").unwrap();
    for slot in 1..SLOTS {
        header.fill_slot(slot, &key, b"x", Duration::from_nanos(1)).unwrap();
    }
    let accepts = |digest: u32, slots: &[u32]| {
        let mut bytes = header.encode();
        bytes[164..168].copy_from_slice(&digest.to_be_bytes());
        for (slot, iterations) in slots.iter().enumerate() {
            let at = Header::slot_offset(slot) + 4;
            bytes[at..at + 4].copy_from_slice(&iterations.to_be_bytes());
        }
        Header::decode(&bytes).is_ok()
    };
    let each = (1u32 << 28) / 8 / 2;
    assert!(accepts(1000, &[each - 500; 8]));
    assert!(!accepts(1000, &[each - 499; 8]));
    assert!(accepts(1 << 24, &[each - (1 << 23); 8]));
    assert!(!accepts(1 << 26, &[1; 8]));
    assert!(!accepts(1, &[1 << 27, 1, 1, 1, 1, 1, 1, 1]));
    let long = Duration::from_secs(100_000);
    assert!(header.fill_slot(0, &key, b"x", long).unwrap_err().message().contains("larger than"));
}

#[test]
fn refusals_say_what_is_wrong() {
    let (header, ..) =
        CreateOptions { time: Duration::from_nanos(1), ..CreateOptions::default() }.make(b"x").unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut header = header.encode();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        Header::decode(&header).unwrap_err().message().to_owned()
    };
    // Expectations were read off `qemu-img info`.
    let cases: [(usize, &[u8], &str); 15] = [
        (0, b"X", "Volume is not in LUKS format"),
        (6, b"\0\x02", "LUKS version 2 is not supported"),
        (8, b"foo\0", "Algorithm 'foo' with key size 32 bytes not supported"),
        (8, &[b'a'; 32], "LUKS header cipher name is not NUL terminated"),
        (40, b"foo\0", "Unexpected cipher mode string format 'foo'"),
        (40, b"foo-plain\0", "Cipher mode 'foo' not supported"),
        (40, b"xts-foo\0", "IV generator 'foo' not supported"),
        (40, b"cbc-essiv:foo\0", "Hash algorithm 'foo' not supported"),
        (72, b"foo\0", "Hash algorithm 'foo' not supported"),
        (104, &[0; 4], "LUKS payload is overlapping with the header"),
        (104, &[0, 0, 0, 8], "Keyslot 0 is overlapping with the encrypted payload"),
        (108, &[0; 4], "Algorithm 'aes' with key size 0 bytes not supported"),
        (164, &[0; 4], "LUKS key iteration count is zero"),
        (208, &[0; 4], "Keyslot 0 state (active/disable) is corrupted"),
        (252, &[0; 4], "Keyslot 0 is corrupted (stripes 0 != 4000)"),
    ];
    for (at, bytes, message) in cases {
        assert_eq!(with(at, bytes), message);
    }
    assert_eq!(with(248, &13u32.to_be_bytes()), "Keyslots 0 and 1 are overlapping in the header");
}
