//! `checksum`: the SHA-256 of the disk as sha256sum computes it of a raw image, for every format.

use crate::harness::Lab;
use crate::seed::seed_or;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::process::Command;

/// What the C library's friends say of a file.
fn sha256sum(lab: &Lab, name: &str) -> String {
    let output = Command::new("sha256sum").arg(lab.path(name)).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn ours(lab: &Lab, line: &str) -> String {
    let output = lab.ours(line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn one_content_has_one_checksum_in_every_format() {
    let lab = Lab::new();
    let seed = seed_or(rand::random());
    let mut bytes = vec![0; 9 << 20];
    StdRng::seed_from_u64(seed).fill(&mut bytes[3 << 20..5 << 20]);
    bytes[8_000_000..8_000_100].fill(1);
    lab.write("raw", &bytes);
    let expect = sha256sum(&lab, "raw");
    lab.qemu_img("convert -O raw raw sparse").qemu_img("convert -O qcow2 raw image");
    lab.qemu_img("convert -c -O qcow2 -o compression_type=zstd raw packed");
    lab.qemu_img("convert -S 0 -O qcow2 -o cluster_size=4k raw full");
    lab.qemu_img("create -q -f qcow2 -b image -F qcow2 top").qemu_io("qcow2", "top", &["write -z 64k 1M"]);
    for name in ["raw", "sparse", "-f qcow2 image", "-U packed", "-T none full", "top"] {
        let file = name.split(' ').next_back().unwrap();
        assert_eq!(ours(&lab, &format!("checksum {name}")), format!("{expect}  {file}\n"));
    }
    lab.qemu_io("qcow2", "top", &["write -P 1 9437183 1"]);
    assert!(!ours(&lab, "checksum top").starts_with(&expect));
}

#[test]
fn programs_get_an_object() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 image 100M").qemu_img("convert -O raw image raw").write("empty", b"");
    let object: serde_json::Value =
        serde_json::from_str(&ours(&lab, "checksum --output=json image")).unwrap();
    let expect = serde_json::json!({
        "filename": "image",
        "algorithm": "sha256",
        "checksum": sha256sum(&lab, "raw"),
        "virtual-size": 100 << 20,
    });
    assert_eq!(object, expect);
    assert!(ours(&lab, "checksum empty").starts_with(&sha256sum(&lab, "empty")));
}

#[test]
fn a_disk_that_cannot_be_read_has_no_checksum() {
    let lab = Lab::new();
    lab.write("x", &[1; 1 << 20]).qemu_img("convert -O qcow2 x image");
    lab.write("rule", b"[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nonce = \"off\"\n");
    for (line, message) in [
        ("checksum nofile", "qemu-img: Could not open 'nofile': "),
        (
            "checksum blkdebug:rule:image",
            "qemu-img: Could not read 'blkdebug:rule:image': Input/output error\n",
        ),
        ("checksum", "qemu-img: Expecting one image file name\n"),
        ("checksum --output=x image", "qemu-img: --output expects 'human' or 'json' not 'x'\n"),
    ] {
        let output = lab.ours(line);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]), "{line}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with(message), "{line}");
    }
}
