//! `dd`: what arrives is the run of blocks that was asked for, in the words of qemu-img where there are any.

use crate::harness::Lab;
use crate::seed::seed_or;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::os::unix::fs::MetadataExt;

fn sources() -> Lab {
    let lab = Lab::new();
    let seed = seed_or(rand::random());
    let mut random = vec![0; 300_000];
    StdRng::seed_from_u64(seed).fill(&mut random[..]);
    lab.write("random", &random).write("odd", &random[..5000]).write("empty", b"");
    lab.qemu_img("create -q -f qcow2 image 3M").qemu_io("qcow2", "image", &["write -P 5 64k 100k"]);
    lab.qemu_img("create -q -f qcow2 -b image -F qcow2 top 5M");
    lab.qemu_io("qcow2", "top", &["write -P 9 1M 300k", "write -z 64k 4k"]);
    lab
}

#[test]
fn runs_of_blocks_arrive_in_every_format() {
    let lab = sources();
    let lines = [
        "dd if=random of=out",
        "dd if=odd of=out",
        "dd if=empty of=out",
        "dd -O qcow2 if=odd of=out",
        "dd -O qcow2 if=empty of=out",
        "dd if=top of=out",
        "dd -f qcow2 -O qcow2 if=top of=out bs=1M",
        "dd -f raw if=image of=out bs=64k",
        "dd if=random of=out bs=4k count=3",
        "dd if=random of=out bs=1.5k count=0x10",
        "dd if=random of=out bs=1M count=010",
        "dd if=random of=out count=0",
        "dd -O qcow2 if=random of=out count=0",
        "dd if=random of=out bs=4k skip=7",
        "dd if=odd of=out bs=1000 count=1",
        "dd if=odd of=out bs=1000 skip=1",
        "dd if=odd of=out bs=100 skip=3",
        "dd if=odd of=out bs=512 skip=9",
        "dd if=odd of=out bs=512 skip=10",
        "dd if=odd of=out bs=512 skip=11",
        "dd -O qcow2 if=odd of=out bs=512 skip=11",
        "dd if=odd of=out bs=2147483647",
        "dd if=odd of=out bs=1G skip=9223372036854775807",
        "dd if=odd of=out bs=1G count=9223372036854775807",
        "dd if=top of=out bs=64k skip=1 bs=32k",
        "dd -U if=top of=out skip=100 if=odd",
        "dd --image-opts if=driver=qcow2,file.filename=top of=out bs=64k skip=3",
        "dd if=odd of=out -- bs=1k",
    ];
    lab.same_result(&lines, Some("out"));
}

#[test]
fn an_output_that_is_there_is_replaced() {
    let lab = sources();
    lab.write("out", &[0x77; 1 << 20]);
    lab.same_result(
        &["dd if=odd of=out", "dd -O qcow2 if=odd of=out", "dd if=odd of=out count=0"],
        Some("out"),
    );
}

/// The manual and dd(1) say so; qemu-img takes the skipped blocks off `count`.
#[test]
fn count_counts_the_blocks_that_are_copied() {
    let lab = sources();
    let disk = std::fs::read(lab.path("random")).unwrap();
    for (skip, count) in [(1, 2), (3, 1), (100, 50), (290, 20), (292, 1)] {
        let line = format!("dd if=random of=out bs=1k skip={skip} count={count}");
        assert!(lab.ours(&line).status.success(), "{line}");
        let expect = &disk[skip << 10..((skip + count) << 10).min(disk.len())];
        let out = std::fs::read(lab.path("out")).unwrap();
        assert_eq!((&out[..expect.len()], out.len()), (expect, expect.len().next_multiple_of(512)), "{line}");
    }
}

#[test]
fn zeros_stay_holes() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 big 4G").qemu_io("qcow2", "big", &["write -P 5 2G 64k"]);
    assert!(lab.ours("dd if=big of=out bs=1M skip=100").status.success());
    let facts = std::fs::metadata(lab.path("out")).unwrap();
    assert_eq!(facts.len(), (4 << 30) - (100 << 20));
    assert!(facts.blocks() * 512 < 1 << 20, "{}", facts.blocks());
}

#[test]
fn an_output_that_is_its_own_input_is_refused_and_kept() {
    let lab = sources();
    let before = std::fs::read(lab.path("odd")).unwrap();
    let output = lab.ours("dd -f raw if=odd of=odd");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Failed to get \"write\" lock"));
    assert_eq!(std::fs::read(lab.path("odd")).unwrap(), before);
}

#[test]
fn what_makes_no_sense_is_refused_in_the_same_words() {
    let lab = sources();
    let rule = "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nonce = \"off\"\n";
    lab.write("rule", rule.as_bytes());
    let lines = [
        "dd",
        "dd if=odd",
        "dd of=out",
        "dd if=odd of=out bs=0",
        "dd if=odd of=out bs=-1",
        "dd if=odd of=out bs=x",
        "dd if=odd of=out bs=",
        "dd if=odd of=out bs=2G",
        "dd if=odd of=out bs=99999999999999999999",
        "dd if=odd of=out count=-1",
        "dd if=odd of=out count=x",
        "dd if=odd of=out count=1k",
        "dd if=odd of=out count=08",
        "dd if=odd of=out count=99999999999999999999",
        "dd if=odd of=out skip=x",
        "dd if=odd of=out skip=-1",
        "dd if=odd of=out skip=1.5",
        "dd if=odd of=out foo=1",
        "dd if=odd of=out foo",
        "dd if=odd of=out =3",
        "dd if=odd of=out if",
        "dd if= of=out",
        "dd if=odd of=nodir/out",
        "dd if=odd of=nodir/out skip=100",
        "dd if=nofile of=out",
        "dd if=nofile of=out -O bogus",
        "dd if=odd of=out -O bogus",
        "dd if=odd of=foo:out",
        "dd if=odd of=foo:out -O bogus",
        "dd if=odd of=out -f bogus",
        "dd if=odd of=out -f qcow2",
        "dd -f raw --image-opts if=odd of=out",
        "dd --object bogus if=odd of=out",
        "dd -O luks if=odd of=out",
        "dd --f",
        "dd --o",
        "dd --bogus",
        "dd -q if=odd of=out",
        "dd --object",
        "dd if=blkdebug:rule:image of=out",
    ];
    lab.same_result(&lines, None);
}
