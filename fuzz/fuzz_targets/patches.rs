//! Real images with some words changed: gets deeper than arbitrary bytes do.
//!
//! ```text
//!   0 which of the images in seeds | then patches of 7 bytes: 0 width | 1 place (2) | 3 value (4, spread over 8)
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// The images that the script `seed` made.
static IMAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds");
    let files = std::fs::read_dir(folder).expect("the folder of seeds");
    let mut images: Vec<Vec<u8>> = files
        .filter_map(|file| std::fs::read(file.ok()?.path()).ok())
        .filter(|bytes| !bytes.is_empty())
        .collect();
    images.sort();
    images
});

fuzz_target!(|data: &[u8]| {
    let Some((&which, patches)) = data.split_first() else { return };
    let mut image = IMAGES[usize::from(which) % IMAGES.len()].clone();
    for patch in patches.chunks_exact(7) {
        apply(&mut image, patch);
    }
    cowvm_fuzz::exercise(&image);
});

fn apply(image: &mut [u8], patch: &[u8]) {
    let width = [1, 2, 4, 8][usize::from(patch[0] % 4)];
    // Tables are made of words.
    let at = usize::from(u16::from_le_bytes([patch[1], patch[2]])) * 4 % image.len();
    // Flags are in the first byte, offsets in those from the third on.
    let value = [patch[3], 0, 0, 0, 0, patch[4], patch[5], patch[6]];
    let end = (at + width).min(image.len());
    image[at..end].copy_from_slice(&value[8 - width..][..end - at]);
}
