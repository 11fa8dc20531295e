//! Guessing a format from the first bytes of a file.

/// How many bytes are looked at.
pub const PROBE_LEN: usize = 2048;

/// Formats with a magic number at the start. Those that cowvm has no driver for are known too: a guest must
/// not be able to write one of them onto a guessed raw disk, nor an image of theirs be taken for a raw disk.
const MAGICS: &[(&str, &[u8])] = &[
    ("qcow", b"QFI\xfb\x00\x00\x00\x01"),
    ("qcow2", b"QFI\xfb"),
    ("qed", b"QED\0"),
    ("vmdk", b"KDMV"),
    ("vmdk", b"COWD"),
    ("vmdk", b"# Disk DescriptorFile"),
    ("vhdx", b"vhdxfile"),
    ("vpc", b"conectix"),
    ("luks", b"LUKS\xba\xbe"),
    ("parallels", b"WithoutFreeSpace"),
    ("parallels", b"WithouFreSpacExt"),
    ("bochs", b"Bochs Virtual HD Image"),
    ("cloop", b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
];
/// VirtualBox puts its signature behind 64 bytes of text.
const VDI: (usize, &[u8]) = (64, &[0x7f, 0x10, 0xda, 0xbe]);

/// The format whose magic number stands in `head`; `None` means raw.
pub fn looks_like(head: &[u8]) -> Option<&'static str> {
    let vdi = head.get(VDI.0..).is_some_and(|tail| tail.starts_with(VDI.1));
    let named = MAGICS.iter().find(|(_, magic)| head.starts_with(magic)).map(|&(name, _)| name);
    named.or(vdi.then_some("vdi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_magic_is_found_and_anything_else_is_raw() {
        assert_eq!(looks_like(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(looks_like(b"QFI\xfb\0\0\0\x01"), Some("qcow"));
        let mut vdi = vec![b'<'; 64];
        vdi.extend(VDI.1);
        assert_eq!(looks_like(&vdi), Some("vdi"));
        assert_eq!(looks_like(&[0; PROBE_LEN]), None);
        assert_eq!(looks_like(b""), None);
    }
}
