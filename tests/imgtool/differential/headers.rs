//! Images with a damaged header: every field of it, with values that are wrong in every way.

use super::{Case, Patch};

/// Field, offset and bytes (big-endian), by the specification of qcow2.
const FIELDS: &[(usize, usize)] = &[
    (0, 4),   // magic
    (4, 4),   // version
    (8, 8),   // backing file offset
    (16, 4),  // backing file size
    (20, 4),  // cluster bits
    (24, 8),  // size
    (32, 4),  // encryption
    (36, 4),  // L1 entries
    (40, 8),  // L1 offset
    (48, 8),  // refcount table offset
    (56, 4),  // refcount table clusters
    (60, 4),  // snapshots
    (64, 8),  // snapshot table offset
    (72, 8),  // incompatible features
    (80, 8),  // compatible features
    (88, 8),  // autoclear features
    (96, 4),  // refcount order
    (100, 4), // header length
    (104, 1), // compression type
    (112, 4), // first extension: type
    (116, 4), // first extension: length
];
/// What is put there.
const VALUES: &[u64] = &[0, 1, 0x1_0000, 0x1_0200, 0x7fff_ffff_ffff_ffff, u64::MAX];
/// What is done with the image.
const LINES: &[&str] = &["info p", "check p", "convert -O raw p out"];

/// All of them, with every line.
pub(super) fn cases() -> Vec<Case> {
    let patches = FIELDS.iter().flat_map(|&(offset, len)| {
        VALUES.iter().map(move |value| Patch { offset, bytes: value.to_be_bytes()[8 - len..].to_vec() })
    });
    patches
        .flat_map(|patch| LINES.iter().map(move |line| (line, patch.clone())))
        .map(|(line, patch)| Case { line: (*line).to_owned(), patch: Some(patch) })
        .collect()
}
