//! Names that stand in images: names of files, relative to the folder of the image that they stand in.

use crate::block::{Error, Kind, Result};

/// A backing file's name is relative to the folder of the overlay that names it, unless it names a protocol.
pub fn beside(overlay: &str, name: &str) -> String {
    if name.starts_with('/') || name.starts_with("file:") || check_protocol(name).is_err() {
        return name.to_owned();
    }
    sibling(overlay, name)
}

/// The file `name`, whatever it looks like, relative to the folder of `image`.
pub fn sibling(image: &str, name: &str) -> String {
    match image.rfind('/') {
        Some(slash) if !name.starts_with('/') => format!("{}{name}", &image[..=slash]),
        _ => name.to_owned(),
    }
}

/// A name with a protocol in front ("nbd:…") is not a file's.
///
/// # Errors
/// [`Kind::Unsupported`] in qemu-img's words.
pub fn check_protocol(filename: &str) -> Result<()> {
    let Some((protocol, _)) = filename.split_once(':') else { return Ok(()) };
    if protocol == "file" || protocol.contains('/') {
        return Ok(());
    }
    Err(Error::new(Kind::Unsupported, format!("Unknown protocol '{protocol}'"))
        .path(filename)
        .remedy("write ./ in front of the name of a file with a colon in it"))
}
