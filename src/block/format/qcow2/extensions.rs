//! Header extensions: what stands between the header and the backing file's name in the first cluster.
//!
//! ```text
//!   type (4) | length (4) | data, padded to a multiple of 8 |  …  | type 0: end
//! ```
//! Extensions that we do not know stay as they are, also when the header is laid out anew.

use super::geometry::Geometry;
use crate::block::{Error, Kind, Result};
use crate::util::text;

/// Format of the backing file, a string.
pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Name of the external data file, a string.
pub(super) const DATA_FILE: u32 = 0x4441_5441;
/// Names of feature bits.
pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
/// Where persistent bitmaps are.
pub(super) const BITMAPS: u32 = 0x2385_2875;
/// Where the LUKS header is.
pub(super) const ENCRYPTION: u32 = 0x0537_be77;
/// Up to this cluster size the feature name table is left out.
const MAX_WITHOUT_NAMES: u64 = 4096;
/// Bytes of an entry of the feature name table.
const FEATURE_NAME: usize = 48;

/// One extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extension {
    /// Its type.
    pub(super) magic: u32,
    /// Its data, without padding.
    pub(super) data: Vec<u8>,
}

impl Extension {
    /// One that holds nothing but a name.
    pub(super) fn text(magic: u32, name: &str) -> Extension {
        Extension { magic, data: text::to_bytes(name).into_owned() }
    }
}

/// Parses the extensions in `area`: from the end of the header to the backing file's name or the cluster's end.
/// Also says how many bytes of it they take, with the end marker.
///
/// # Errors
/// [`Kind::InvalidFormat`] for one that is longer than the area.
pub(super) fn parse(area: &[u8]) -> Result<(Vec<Extension>, usize)> {
    let mut found = Vec::new();
    let mut rest = area;
    while let Some((head, tail)) = rest.split_at_checked(8) {
        let [magic, len] = [&head[..4], &head[4..]].map(be32);
        if magic == 0 {
            break;
        }
        let len = len as usize;
        let Some((data, _)) = tail.split_at_checked(len) else {
            return Err(Error::new(Kind::InvalidFormat, "Header extension too large"));
        };
        found.push(Extension { magic, data: data.to_vec() });
        rest = tail.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok((found, (area.len() - rest.len() + 8).min(area.len())))
}

/// Serialises extensions, with the end marker.
pub(super) fn encode(extensions: &[Extension]) -> Vec<u8> {
    let mut out = Vec::new();
    for extension in extensions {
        out.extend(extension.magic.to_be_bytes());
        out.extend((extension.data.len() as u32).to_be_bytes());
        out.extend(&extension.data);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out.extend([0; 8]);
    out
}

/// The name that the image's own table gives to an incompatible feature bit.
pub(super) fn feature_name(extensions: &[Extension], bit: u8) -> Option<String> {
    let table = extensions.iter().find(|extension| extension.magic == FEATURE_NAMES)?;
    let entry = table.data.chunks_exact(FEATURE_NAME).find(|entry| entry[..2] == [0, bit])?;
    let name: Vec<u8> = entry[2..].iter().copied().take_while(|&byte| byte != 0).collect();
    Some(text::from_bytes(&name))
}

/// Whether images get a feature name table: as with qemu-img, not where it would take most of the first cluster.
pub(super) fn has_room_for_names(geometry: Geometry) -> bool {
    geometry.cluster_size() > MAX_WITHOUT_NAMES
}

/// The feature name table that new images get.
pub(super) fn feature_name_table() -> Extension {
    let names: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut data = Vec::with_capacity(names.len() * FEATURE_NAME);
    for (kind, bit, name) in names {
        let end = data.len() + FEATURE_NAME;
        data.extend([kind, bit]);
        data.extend(name.as_bytes());
        data.resize(end, 0);
    }
    Extension { magic: FEATURE_NAMES, data }
}

/// Four bytes, big-endian; missing ones count as zeros.
pub(super) fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// Eight bytes, big-endian; missing ones count as zeros before the others.
pub(super) fn be64(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(&bytes) => u64::from_be_bytes(bytes),
        None => bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_survive_and_unknown_ones_are_kept() {
        let list = vec![
            Extension { magic: BACKING_FORMAT, data: b"raw".to_vec() },
            Extension { magic: 0x1234_5678, data: vec![9; 17] },
            feature_name_table(),
        ];
        let bytes = encode(&list);
        let longer = [&bytes[..], &[0xaa; 20]].concat();
        assert_eq!(parse(&longer).unwrap(), (list.clone(), bytes.len()));
        assert_eq!(feature_name(&list, 1).as_deref(), Some("corrupt bit"));
        assert_eq!(feature_name(&list, 63), None);
    }

    #[test]
    fn an_extension_past_the_end_is_an_error() {
        let mut bytes = encode(&[Extension { magic: 7, data: vec![0; 8] }]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(parse(&bytes).is_err());
        assert_eq!(parse(&[0, 0, 0, 1, 0]).unwrap(), (Vec::new(), 5));
    }
}
