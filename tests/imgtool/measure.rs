//! `measure`: the numbers are qemu-img's, and no file gets longer than they say.

use crate::harness::Lab;
use crate::seed::seed_or;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::HashMap;

/// What `measure` says: names and numbers.
fn measured(lab: &Lab, line: &str) -> HashMap<String, u64> {
    let output = lab.ours(line);
    assert!(output.status.success(), "{line}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |line: &str| {
        let (name, number) = line.split_once(": ").unwrap();
        (name.to_owned(), number.parse().unwrap())
    };
    text.lines().map(number).collect()
}

#[test]
fn empty_images_of_every_layout() {
    let lab = Lab::new();
    let layouts = [
        "qcow2",
        "qcow2 -o cluster_size=512",
        "qcow2 -o cluster_size=4k,refcount_bits=1",
        "qcow2 -o cluster_size=2M,refcount_bits=64",
        "qcow2 -o cluster_size=16k,extended_l2=on",
        "qcow2 -o compat=0.10,lazy_refcounts=on",
        "qcow2 -o preallocation=full",
        "qcow2 -o preallocation=falloc,cluster_size=32k",
        "qcow2 -o backing_file=x,size=3G,nocow=on",
        "qcow2 -o encryption=on",
        "raw -o preallocation=full",
    ];
    let sizes = ["0", "1000", "65537", "511.5M", "100G"];
    let lines: Vec<String> = layouts
        .iter()
        .flat_map(|layout| sizes.iter().map(move |size| format!("measure -O {layout} --size {size}")))
        .collect();
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Expectations were read off qemu-img, which derives a key for each and takes two seconds.
#[test]
fn key_slots_are_counted() {
    let lab = Lab::new();
    let secret = "--object secret,id=s,data=abc -o";
    let qcow2 = format!("qcow2 {secret} encrypt.format=luks,encrypt.key-secret=s");
    for (target, required, full) in [
        (format!("{qcow2} --size 1G"), 2_490_368, 1_076_232_192),
        (format!("luks {secret} key-secret=s --size 1000"), 2_069_480, 2_069_480),
        (
            format!(
                "luks {secret} key-secret=s,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv --size 1M"
            ),
            1_576_960,
            1_576_960,
        ),
    ] {
        let numbers = measured(&lab, &format!("measure -O {target}"));
        assert_eq!((numbers["required size"], numbers["fully allocated size"]), (required, full), "{target}");
    }
}

/// Images with data in odd places, bitmaps, snapshots.
fn sources() -> Lab {
    let lab = Lab::new();
    lab.write("odd", &[3; 5000]).write("empty", b"").qemu_img("create -q holes 8M");
    lab.qemu_io("raw", "holes", &["write 0 64k", "write -P 1 1M 68k", "write -P 2 3100k 3k", "write 7M 1M"]);
    lab.qemu_img("convert -f raw -O qcow2 holes image").qemu_img("convert -c -f raw -O qcow2 holes packed");
    lab.qemu_img("convert -f raw -O qcow2 -o compat=0.10 holes old");
    lab.qemu_img("create -q -f qcow2 -b image -F qcow2 -o cluster_size=4k top 12M");
    lab.qemu_io("qcow2", "top", &["write -z 1M 64k", "write -P 9 5M 5k", "discard 7M 1M"]);
    lab.qemu_img("snapshot -c one image").qemu_io("qcow2", "image", &["write -P 8 4M 1M"]);
    lab.qemu_img("snapshot -c two image").qemu_img("bitmap --add image b0");
    lab.qemu_img("bitmap --add -g 4k image a-bitmap-with-a-longer-name").qemu_img("bitmap --add top b");
    lab
}

#[test]
fn copies_need_what_is_in_their_source() {
    let lab = sources();
    let targets = [
        "raw",
        "qcow2",
        "qcow2 --output=json",
        "raw --output=json",
        "qcow2 -o compat=0.10,cluster_size=512",
        "qcow2 -o cluster_size=2M,refcount_bits=1",
        "qcow2 -o backing_file=holes,backing_fmt=raw",
        "qcow2 -o preallocation=full",
    ];
    let sources = [
        "odd",
        "empty",
        "holes",
        "-f qcow2 image",
        "-U packed",
        "top",
        "-f raw packed",
        "-l one image",
        "old",
    ];
    let mut lines: Vec<String> = targets
        .iter()
        .flat_map(|target| sources.iter().map(move |source| format!("measure -O {target} {source}")))
        .collect();
    for which in ["2", "snapshot.name=two", "snapshot.id=1", "snapshot.id=2,snapshot.name=two", "1 -l two"] {
        lines.push(format!("measure -O qcow2 -l {which} image"));
    }
    lines.push("measure -O qcow2 --image-opts driver=qcow2,file.filename=top".to_owned());
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn no_file_gets_longer_than_measured() {
    let lab = sources();
    let seed = seed_or(rand::random());
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..6 {
        let source = ["odd", "holes", "image", "packed", "top"].choose(&mut random).unwrap();
        let cluster = 1 << random.random_range(9..=21);
        let extended = if cluster >= 16384 && random.random() { ",extended_l2=on" } else { "" };
        let bits = 1 << random.random_range(0..=6);
        let mode = ["off", "metadata", "falloc", "full"].choose(&mut random).unwrap();
        let options =
            format!("-O qcow2 -o cluster_size={cluster},refcount_bits={bits},preallocation={mode}{extended}");
        let numbers = measured(&lab, &format!("measure {options} {source}"));
        let line = format!("convert {options} {source} out");
        // qemu-img's own file is sometimes longer, with wide refcounts in clusters of 512 bytes.
        let output = lab.ours(&line);
        assert!(output.status.success(), "{line}: {output:?}");
        let len = std::fs::metadata(lab.path("out")).unwrap().len();
        // Refcount tables that were outgrown while a disk of small clusters was allocated stay free in the file.
        let outgrown = if *mode != "off" && cluster < 4096 { 16 * cluster } else { 0 };
        assert!(len <= numbers["required size"] + outgrown, "{line}: {len}, {numbers:?}");
        // The last cluster of a disk that ends inside of it need not be there as a whole.
        if *mode != "off" && *source != "odd" {
            assert!(len >= numbers["fully allocated size"], "{line}: {len}, {numbers:?}");
        }
    }
}

/// With qemu-img, what is required for `preallocation=metadata` is less than the length of the file.
#[test]
fn preallocated_tables_make_a_file_of_full_length() {
    let lab = Lab::new();
    let options = "-O qcow2 -o preallocation=metadata";
    let numbers = measured(&lab, &format!("measure {options} --size 100M"));
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata x 100M");
    let len = std::fs::metadata(lab.path("x")).unwrap().len();
    assert_eq!((numbers["required size"], numbers["fully allocated size"]), (len, len));
}

#[test]
fn what_makes_no_sense_is_refused_in_the_same_words() {
    let lab = sources();
    let mut lines = Vec::new();
    let options = [
        "cluster_size=3",
        "compat=v3",
        "compat=9,refcount_bits=3",
        "refcount_bits=3",
        "refcount_bits=-1",
        "compat=0.10,refcount_bits=8",
        "extended_l2=on,cluster_size=4k",
        "preallocation=x",
        "preallocation=x,compat=9",
        "encrypt.format=luks",
        "encrypt.format=luks,preallocation=x",
        "encrypt.format=luks,encrypt.cipher-alg=foo",
        "encrypt.format=x",
        "foo=1",
        "foo",
        "help",
        "?",
        ",",
        "lazy_refcounts=x",
    ];
    lines.extend(options.iter().map(|options| format!("measure -O qcow2 --size 1M -o {options}")));
    let rest = [
        "measure",
        "measure --size 1G holes",
        "measure holes image",
        "measure -f raw",
        "measure -l x",
        "measure --image-opts",
        "measure --size 1M -f raw",
        "measure --size 1M --image-opts",
        "measure --size 1M -U",
        "measure --object secret,id=s,data=abc",
        "measure --object bogus",
        "measure --size 1x",
        "measure --size -1",
        "measure --size 8E",
        "measure --size 7E",
        "measure --size 7E -O qcow2",
        "measure -O bogus --size 1G",
        "measure -O bogus nofile",
        "measure -O vmdk --size 1G",
        "measure -O luks --size 1G",
        "measure -O luks -o key-secret=x --size 1G",
        "measure -O luks -o cipher-alg=foo,key-secret=s --object secret,id=s,data=abc --size 1G",
        "measure nofile",
        "measure -f qcow2 holes",
        "measure -f bogus holes",
        "measure -f raw --image-opts holes",
        "measure --output=x holes",
        "measure -o foo=1 holes",
        "measure -l x holes",
        "measure -l x image",
        "measure -l '' image",
        "measure -l snapshot.id=2,snapshot.name=one image",
        "measure -l snapshot.id=2,snapshot.foo=one image",
        "measure -l foo.name=1 image",
        "measure --o",
        "measure --s",
        "measure --f",
        "measure --t",
        "measure -q holes",
    ];
    lines.extend(rest.iter().map(|line| (*line).to_owned()));
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}
