//! The files that every command line finds: small images of all kinds, made by QEMU's tools, and broken ones.

use crate::harness::Lab;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The unit in which holes are kept, in bytes.
const BLOCK: usize = 4096;

/// Names and bytes of all files.
pub(super) struct Fixture {
    pub(super) files: Vec<(String, Vec<u8>)>,
}

/// Made by qemu-img.
const IMAGES: &[&str] = &[
    "create -q small.raw 1M",
    "create -q other.raw 1M",
    "create -q zero.raw 1M",
    "create -q long.raw 3M",
    "create -q -f qcow2 a.qcow2 4M",
    "create -q -f qcow2 -o cluster_size=4k,compat=v2 v2.qcow2 1M",
    "create -q -f qcow2 -o extended_l2=on sub.qcow2 4M",
    "create -q -f qcow2 -o preallocation=metadata pre.qcow2 1M",
    "create -q -f qcow2 -o lazy_refcounts=on,cluster_size=512,refcount_bits=64 lazy.qcow2 300k",
    "create -q -f qcow2 -o data_file=data.raw data.qcow2 1M",
    "create -q -f qcow2 -o data_file=rawdata.raw,data_file_raw=on rawdata.qcow2 1M",
    "create -q -f qcow2 tiny.qcow2 1000",
    "create -q -f qcow2 none.qcow2 0",
    "create -q base.raw 2M",
    "create -q -f qcow2 base.qcow2 2M",
    "create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2",
    "create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=4k top.qcow2 3M",
    "create -q -f qcow2 -b base.raw -F raw ov.qcow2 4M",
    "create -q -f qcow2 -b base.raw -F raw short-ov.qcow2 1M",
    "create -q -f qcow2 -b ../base.raw -F raw dir/ov.qcow2",
    "create -q -f qcow2 snap.qcow2 2M",
    "create -q -f qcow2 marks.qcow2 2M",
    "create -q -f qcow2 -u -b nofile -F raw orphan.qcow2 1M",
    "create -q -f qcow2 -u -b nbd:localhost:1 -F raw remote.qcow2 1M",
    "create -q --object secret,id=s,data=abc -f luks -o key-secret=s,iter-time=10 vol.luks 1M",
    "create -q --object secret,id=s,data=abc -f qcow2 -o \
     encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.qcow2 1M",
    "create -q --object secret,id=s,data=abc -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M",
];

/// What is written to them.
const WRITES: &[(&str, &str, &[&str])] = &[
    ("raw", "small.raw", &["write -P 1 0 64k", "write -P 2 512k 100k"]),
    ("raw", "other.raw", &["write -P 1 0 64k", "write -P 3 512k 100k"]),
    ("raw", "long.raw", &["write -P 1 0 64k", "write -P 2 512k 100k"]),
    ("raw", "base.raw", &["write -P 4 0 128k", "write -P 5 1M 64k"]),
    ("qcow2", "base.qcow2", &["write -P 4 0 128k", "write -P 5 1M 64k"]),
    ("qcow2", "a.qcow2", &["write -P 6 0 200k", "write -z 1M 64k", "write -P 7 3M 4k", "discard 64k 64k"]),
    ("qcow2", "v2.qcow2", &["write -P 8 10k 50k", "write -z 100k 4k"]),
    ("qcow2", "sub.qcow2", &["write -P 8 10k 50k", "write -z 100k 4k", "write -P 9 2M 2k"]),
    ("qcow2", "lazy.qcow2", &["write -P 8 10k 50k"]),
    ("qcow2", "data.qcow2", &["write -P 8 0 64k", "write -P 1 512k 4k"]),
    ("qcow2", "rawdata.qcow2", &["write -P 8 0 64k", "write -P 1 512k 4k"]),
    ("qcow2", "mid.qcow2", &["write -P 10 64k 128k", "write -z 1M 64k"]),
    ("qcow2", "top.qcow2", &["write -P 11 0 4k", "write -P 12 2500k 10k", "write -z 128k 8k"]),
    ("qcow2", "ov.qcow2", &["write -P 13 64k 128k", "write -z 1M 64k", "write -P 14 3M 64k"]),
    ("qcow2", "short-ov.qcow2", &["write -P 13 64k 128k"]),
    ("qcow2", "snap.qcow2", &["write -P 1 0 128k"]),
    ("qcow2", "marks.qcow2", &["write -P 1 0 128k"]),
];

/// What comes behind.
const LATER: &[&str] = &[
    "convert -c -O qcow2 small.raw zlib.qcow2",
    "convert -c -O qcow2 -o compression_type=zstd small.raw zstd.qcow2",
    "snapshot -c one snap.qcow2",
    "snapshot -c two snap.qcow2",
    "snapshot -c 1 snap.qcow2",
    "bitmap --add marks.qcow2 first",
    "bitmap --add -g 512 marks.qcow2 second",
    "bitmap --disable marks.qcow2 second",
];

impl Fixture {
    /// Makes all of them.
    pub(super) fn make() -> Fixture {
        let lab = Lab::new();
        std::fs::create_dir(lab.path("dir")).unwrap();
        for line in IMAGES {
            lab.qemu_img(line);
        }
        for (format, image, writes) in WRITES {
            lab.qemu_io(format, image, writes);
        }
        for line in LATER {
            lab.qemu_img(line);
        }
        break_some(&lab);
        let mut files = Vec::new();
        collect(&lab.path(""), "", &mut files);
        files.sort();
        Fixture { files }
    }

    /// Writes one of them to `path`, with its holes, long ago.
    pub(super) fn write(path: &Path, bytes: &[u8]) {
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        }
        let _ = std::fs::remove_file(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = std::fs::File::create(path).unwrap();
        for (at, block) in bytes.chunks(BLOCK).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                file.write_all_at(block, (at * BLOCK) as u64).unwrap();
            }
        }
        file.set_len(bytes.len() as u64).unwrap();
        // Whoever writes it from now on is found out.
        file.set_modified(long_ago()).unwrap();
    }
}

/// When the files were last changed.
pub(super) fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn break_some(lab: &Lab) {
    lab.write("odd.raw", &[1; 1000])
        .write("empty.raw", b"")
        .write("key.txt", b"abc")
        .write("key64.txt", b"YWJj");
    lab.write("foreign.vmdk", &[b"KDMV\x01\0\0\0".as_slice(), &[0; 1 << 16]].concat());
    lab.write("text.qcow2", b"QFI\xfb");
    lab.write("old.qcow", b"QFI\xfb\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    lab.patched("a.qcow2", "dirty.qcow2", |bytes| bytes[79] |= 1);
    lab.patched("a.qcow2", "corrupt.qcow2", |bytes| bytes[79] |= 2);
    lab.patched("a.qcow2", "unknown.qcow2", |bytes| bytes[78] |= 1);
    lab.patched("a.qcow2", "short.qcow2", |bytes| bytes.truncate(200));
    lab.patched("a.qcow2", "cut.qcow2", |bytes| bytes.truncate(bytes.len() - 70_000));
    // The first refcount block is the third cluster: a refcount too many, one too few.
    lab.patched("a.qcow2", "leak.qcow2", |bytes| bytes[0x2_0000 + 2 * 20 + 1] = 1);
    lab.patched("a.qcow2", "refs.qcow2", |bytes| bytes[0x2_0000 + 2 * 5 + 1] = 0);
    lab.patched("a.qcow2", "l2.qcow2", |bytes| bytes[0x4_0000 + 6] ^= 3);
    lab.patched("snap.qcow2", "p", |_| ());
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        match entry.path().is_dir() {
            true => collect(&entry.path(), &format!("{name}/"), files),
            false => files.push((name, std::fs::read(entry.path()).unwrap())),
        }
    }
}
