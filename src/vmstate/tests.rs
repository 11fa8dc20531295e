//! Round trips, and what becomes of a state that has been altered or cut.

use super::*;
use crate::seed::seed_or;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceV1 {
    register: u32,
    bytes: Bytes,
    raw: Raw<[u64; 3]>,
    absent: Option<u8>,
}

fn device(register: u32) -> DeviceV1 {
    DeviceV1 { register, bytes: Bytes(vec![0, 1, 254, 255]), raw: Raw([1, 2, u64::MAX]), absent: None }
}

fn sections() -> Vec<Section> {
    let of = |name: &str, register| Section::new(name, 1, &device(register)).unwrap();
    vec![
        of("uart", 1),
        of("vcpu.0", 7),
        of("a name as long as one may be, 40 bytes".replace(' ', "-").as_str(), 9),
    ]
}

fn head() -> (Head, Vec<u8>) {
    Head::new(&sections(), 3 * BLOCK + 4096, 2 << 16, 99).unwrap()
}

#[test]
fn what_was_written_is_read() {
    let (head, bodies) = head();
    let bytes = head.encode();
    let read = Head::decode(&[bytes, vec![0; 100]].concat()).unwrap();
    assert_eq!(read, head);
    let mut read = Sections::new(read.sections(&bodies).unwrap()).unwrap();
    assert_eq!(read.read::<DeviceV1>("vcpu.0").unwrap(), device(7));
    assert_eq!(read.read::<DeviceV1>("uart").unwrap(), device(1));
    assert!(read.clone().finish().is_err());
    read.take("a-name-as-long-as-one-may-be,-40-bytes").unwrap();
    assert!(read.finish().is_ok());
}

#[test]
fn a_head_that_is_cut_or_altered_in_any_byte_is_refused() {
    let (head, _) = head();
    let bytes = head.encode();
    for len in 0..bytes.len() {
        assert!(Head::decode(&bytes[..len]).is_err(), "{len}");
    }
    for at in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut altered = bytes.clone();
            altered[at] ^= change;
            assert!(Head::decode(&altered).is_err(), "byte {at}");
        }
    }
}

/// A head whose checksum is right again after a change of some bytes.
fn with(at: usize, value: &[u8]) -> Result<Head> {
    let mut bytes = head().0.encode();
    bytes[at..at + value.len()].copy_from_slice(value);
    set_checksum(&mut bytes);
    Head::decode(&bytes)
}

/// Gives a head the checksum of what it says.
fn set_checksum(head: &mut [u8]) {
    head[56..64].fill(0);
    let sum = checksum(head);
    head[56..64].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_head_with_a_right_checksum_is_still_held_against_all_limits() {
    assert!(with(24, &(BLOCK * 4).to_le_bytes()).is_ok());
    for (at, value) in
        [(20, 1), (24, MAX_RAM + 1), (32, 4 * BLOCK), (48, 1), (64 + 44, 8 << 20), (16, u64::MAX)]
    {
        let width = if matches!(at, 20 | 16 | 108) { 4 } else { 8 };
        assert!(with(at, &value.to_le_bytes()[..width]).is_err(), "{at}");
    }
    assert!(with(64, b"\0").is_err());
    assert!(with(64, b"u\0rt").is_err());
    // Bodies that would reach into the table.
    let body = |index: usize| Section { name: format!("d{index}"), version: 1, body: vec![b' '; 1 << 20] };
    let many: Vec<Section> = (0..32).map(body).collect();
    assert!(matches!(Head::new(&many, 0, 0, 0), Err(Error::TooLarge(_))));
}

#[test]
fn another_version_is_refused_by_name() {
    let newer = with(8, &2u32.to_le_bytes()).unwrap_err();
    assert_eq!(newer.to_string(), "the VM state has version 2, and this cowvm reads versions up to 1");
    assert!(with(8, &0u32.to_le_bytes()).is_err());
    let section = Section { version: 5, ..sections().remove(0) };
    let newer = section.read::<DeviceV1>().unwrap_err();
    assert_eq!(newer.to_string(), "the state of 'uart' has version 5, and this cowvm reads versions up to 1");
    assert_eq!(with(0, b"QEVM").unwrap_err(), Error::Foreign);
}

#[test]
fn bodies_that_are_cut_or_altered_in_any_byte_are_refused() {
    let (head, bodies) = head();
    for len in 0..bodies.len() {
        assert!(head.sections(&bodies[..len]).is_err());
    }
    for at in 0..bodies.len() {
        let mut altered = bodies.clone();
        altered[at] ^= 0x10;
        assert!(head.sections(&altered).is_err(), "byte {at}");
    }
}

#[test]
fn a_body_is_consumed_completely() {
    let body = serde_json::to_string(&device(1)).unwrap();
    let read =
        |body: &str| Section { name: "x".into(), version: 1, body: body.into() }.read::<DeviceV1>().map(drop);
    assert!(read(&body).is_ok());
    let altered = [
        body.replace("\"register\"", "\"another\":1,\"register\""),
        body.replace("\"register\":1", "\"register\":1,\"register\":2"),
        body.replace("\"register\":1", "\"register\":4294967296"),
        body.replace("AAH+/w==", "AAH+/w="),
        body.replace("\"raw\":\"AQ", "\"raw\":\"AAAAAQ"),
        body.clone() + "1",
        body[..body.len() - 1].to_owned(),
    ];
    for (index, altered) in altered.iter().enumerate() {
        assert_ne!(*altered, body);
        assert!(read(altered).is_err(), "{index}: {altered}");
    }
}

#[test]
fn sections_that_are_missing_or_twice_are_named() {
    let mut twice = sections();
    twice.push(sections().remove(0));
    assert!(Sections::new(twice).unwrap_err().to_string().contains("two sections 'uart'"));
    let mut all = Sections::new(sections()).unwrap();
    assert!(all.take("rtc").unwrap_err().to_string().contains("'rtc'"));
}

fn table(ram: u64, seed: u64) -> (Table, Vec<Vec<u8>>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut table = Table::default();
    let mut content = Vec::new();
    let mut left = ram as usize;
    while left > 0 {
        let mut bytes = vec![0; left.min(BLOCK as usize)];
        let mut hasher = Hasher::default();
        for (index, grain) in bytes.chunks_mut(GRAIN).enumerate() {
            if rng.random() {
                let at = rng.random_range(0..grain.len());
                grain[at] = 1;
            }
            if grain.iter().any(|byte| *byte != 0) {
                hasher.add(index, grain);
            }
        }
        table.blocks.push(hasher.finish());
        left -= bytes.len();
        content.push(bytes);
    }
    (table, content)
}

#[test]
fn a_table_names_all_grains_that_are_not_zeros_in_runs() {
    let (table, content) = table(3 * BLOCK + 4096, 1);
    assert_eq!(table.blocks.len(), 4);
    for (block, bytes) in table.blocks.iter().zip(&content) {
        let mut seen = [false; 16];
        block.runs().for_each(|(first, count)| seen[first..first + count].fill(true));
        for (grain, seen) in bytes.chunks(GRAIN).zip(seen) {
            assert_eq!(seen, grain.contains(&1));
        }
    }
    let grains = content.iter().flat_map(|block| block.chunks(GRAIN)).filter(|grain| grain.contains(&1));
    assert_eq!(table.stored(), grains.count() as u64 * GRAIN as u64);
}

#[test]
fn a_table_that_is_cut_altered_or_of_other_ram_is_refused() {
    let ram = 3 * BLOCK + 4096;
    let (table, _) = table(ram, 2);
    let (bytes, sum) = table.encode();
    assert_eq!(Table::decode(&bytes, ram, sum).unwrap(), table);
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        assert!(Table::decode(&altered, ram, sum).is_err());
        assert!(Table::decode(&bytes[..at], ram, sum).is_err());
    }
    assert!(Table::decode(&bytes, ram + BLOCK, sum).is_err());
    // A right checksum, but grains behind the end, zeros that are none, a checksum of nothing.
    for (at, value) in [(48, 3), (52, 1), (56, 1)] {
        let mut altered = bytes.clone();
        altered[48..64].fill(0);
        altered[at] = value;
        assert!(Table::decode(&altered, ram, checksum(&altered)).is_err(), "{at}");
    }
}

#[test]
fn a_block_whose_bytes_change_has_another_entry() {
    let of = |bytes: &[u8]| {
        let mut hasher = Hasher::default();
        let stored = bytes.chunks(GRAIN).enumerate().filter(|(_, grain)| grain.iter().any(|byte| *byte != 0));
        stored.for_each(|(index, grain)| hasher.add(index, grain));
        hasher.finish()
    };
    let mut bytes = vec![0; 4 * GRAIN];
    assert_eq!(of(&bytes), Block::default());
    bytes[GRAIN] = 1;
    let one = of(&bytes);
    for at in [0, GRAIN, GRAIN + 1, 4 * GRAIN - 1] {
        bytes[at] ^= 2;
        assert_ne!(of(&bytes), one, "{at}");
        bytes[at] ^= 2;
    }
    assert_eq!(of(&bytes), one);
}

/// The fuzz target `vmstate` in short, and with checksums that fit, which a fuzzer does not find.
#[test]
fn hostile_words_under_right_checksums_are_refused_or_stay_within_the_limits() {
    const WORDS: [u32; 8] = [0, 1, 2, 64, 0x7fff_ffff, 0x8000_0000, u32::MAX, 1 << 20];
    let mut rng = StdRng::seed_from_u64(seed_or(5));
    let (head, bodies) = head();
    let (good, mut read) = (head.encode(), 0);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len() / 4) * 4;
            let word = WORDS[rng.random_range(0..WORDS.len())];
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        set_checksum(&mut bytes);
        let Ok(head) = Head::decode(&bytes) else { continue };
        read += 1;
        assert!(head.ram <= MAX_RAM && head.stored <= head.ram);
        assert!(SECTIONS_AT + head.bodies_len() as u64 <= TABLE_AT);
        if let Ok(sections) = head.sections(&bodies) {
            let _ = Sections::new(sections).map(Sections::finish);
        }
        let mut table = vec![0; Table::len_of(head.ram).min(64)];
        table.iter_mut().for_each(|byte| *byte = rng.random::<u8>() & rng.random::<u8>());
        let _ = Table::decode(&table, head.ram, checksum(&table));
    }
    assert!(read > 100, "{read}");
}
