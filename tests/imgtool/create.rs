//! `create`: the line that it prints, the images that it makes, what it refuses.

use crate::harness::Lab;

fn lab_with_bases() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q b.raw 3M");
    lab.qemu_img("create -q -f qcow2 b.qcow2 5M");
    std::fs::create_dir(lab.path("d")).unwrap();
    lab.qemu_io("raw", "b.raw", &["write -P 1 0 1M"]);
    lab
}

#[test]
fn qcow2_images_are_the_same_for_all_their_options() {
    let mut lines = vec![
        "create -f qcow2 x 64M".to_owned(),
        "create -q -f qcow2 x 64M".to_owned(),
        "create x 1M -f qcow2".to_owned(),
        "create -qf qcow2 x -- 1M".to_owned(),
        "create -f qcow2 -o size=3M x".to_owned(),
    ];
    for size in ["0", "1", "12b", "513", "1.5G", "1P", "0x100000"] {
        lines.push(format!("create -f qcow2 x {size}"));
    }
    for cluster in ["512", "1k", "4096", "65536.0", "2M"] {
        lines.push(format!("create -f qcow2 -o cluster_size={cluster} x 20M"));
    }
    for bits in ["1", "2", "4", "8", "16", "32", "64", "0x10"] {
        lines.push(format!("create -f qcow2 -o cluster_size=4k -o refcount_bits={bits} x 9M"));
    }
    for compat in
        ["compat=0.10", "compat=v2", "compat=1.1", "compat=v3,lazy_refcounts=yes", "nolazy_refcounts"]
    {
        lines.push(format!("create -f qcow2 -o {compat} x 1M"));
    }
    for preallocation in ["off", "metadata", "falloc", "full"] {
        lines.push(format!("create -f qcow2 -o preallocation={preallocation} x 3M"));
    }
    lines.push(
        "create -f qcow2 -o encryption=off,extended_l2=off,compression_type=zlib,nocow=off x 1M".to_owned(),
    );
    for options in ["cluster_size=16k", "cluster_size=2M,refcount_bits=1", "preallocation=metadata"] {
        lines.push(format!("create -f qcow2 -o extended_l2=on,{options} x 20M"));
    }
    lines.push("create -f qcow2 -o compression_type=zstd,cluster_size=4k x 1M".to_owned());
    lines.push("create -f qcow2 -o cluster_size=1k,cluster_size=4k x 1M".to_owned());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    Lab::new().same_result(&lines, Some("x"));
}

#[test]
fn raw_images_are_the_same() {
    let lab = Lab::new();
    lab.write("old", &[7; 3000]);
    let lines = [
        "create x 1M",
        "create -f raw x 100",
        "create x 0",
        "create -o size=1M x",
        "create -o preallocation=off x 1M",
        "create -o preallocation=falloc x 1M",
        "create -o preallocation=full x 1M",
        "create -q -o nocow=off x 1.1k",
        "create -o nocow=on,extent_size_hint=2M x 1M",
        "create -f qcow2 -o nocow=on,extent_size_hint=0 x 1M",
        "create -o extent_size_hint=4G y 1M",
    ];
    lab.same_result(&lines, Some("x"));
    lab.same_result(&["create old 2k"], Some("old"));
}

#[test]
fn data_files_are_made_beside_the_image() {
    let lab = Lab::new();
    lab.qemu_img("create -q b.raw 1M").qemu_io("raw", "b.raw", &["write -P 3 100k 300k"]);
    lab.write("old", &[7; 4096]);
    lab.write("zeros", &[0; 8192]);
    let lines = [
        "create -f qcow2 -o data_file=d.raw x 1M",
        "create -f qcow2 -o data_file=d.raw,data_file_raw=on x 1M",
        "create -f qcow2 -o data_file=d.raw,data_file_raw=on,cluster_size=512 x 300k",
        "create -f qcow2 -o data_file=old,preallocation=metadata x 1M",
        "convert -O qcow2 -o data_file=old,data_file_raw=on zeros x",
        "create -f qcow2 -o data_file=d.raw,preallocation=falloc x 1M",
        "create -f qcow2 -o data_file=d.raw,preallocation=full,lazy_refcounts=on x 1M",
        "create -f qcow2 -o data_file=d.raw -b b.raw -F raw x",
        "convert -O qcow2 -o data_file=d.raw b.raw x",
        "convert -O qcow2 -o data_file=d.raw,data_file_raw=on b.raw x",
        "create -f qcow2 -o data_file_raw=on x 1M",
        "create -f qcow2 -o data_file=d.raw,compat=0.10 x 1M",
        "create -f qcow2 -o data_file=json:{} x 1M",
        "create -f qcow2 -o data_file=d.raw,data_file_raw=on -b b.raw -F raw x",
    ];
    lab.same_result(&lines, Some("x"));
}

#[test]
fn overlays_name_their_backing_file_and_have_its_size() {
    let lab = lab_with_bases();
    let lines = [
        "create -f qcow2 -b b.raw -F raw x",
        "create -f qcow2 -b b.raw -F raw x 8M",
        "create -f qcow2 -b b.qcow2 -F qcow2 x",
        "create -f qcow2 -b b.qcow2 -F qcow2 x 1M",
        "create -f qcow2 -o backing_file=b.raw,backing_fmt=raw,compat=v2,cluster_size=1k x",
        "create -f qcow2 -b b.raw -F raw -o backing_file=b.qcow2 x",
        "create -f qcow2 -b b.raw -F raw -b b.qcow2 -F qcow2 x",
        "create -f qcow2 -b ./b.raw -F raw -o lazy_refcounts=on x 3M",
        "create -f qcow2 -b b.raw -F raw -o extended_l2=on,preallocation=metadata x 8M",
        "create -f qcow2 -b b.raw -F raw -o extended_l2=on,preallocation=full,cluster_size=256k x 1M",
    ];
    lab.same_result(&lines, Some("x"));
    lab.same_result(&["create -f qcow2 -b ../b.raw -F raw d/x"], Some("d/x"));
    // Not to be opened afterwards: there is no such file.
    let lines = [
        "create -f qcow2 -u -b nofile -F raw x 1M",
        "create -f qcow2 -u -b a,b -F raw x 1M",
        "create -f qcow2 -u -b nofile -F vmdk x 1M",
    ];
    lab.same_result(&lines, None);
}

#[test]
fn what_makes_no_sense_is_refused_in_the_same_words() {
    let lab = lab_with_bases();
    let lines = [
        "create -f qcow2 x",
        "create -f bogus x 1M",
        "create -f bogus -o help",
        "create x 1.5",
        "create x ''",
        "create x 8E",
        "create x -- -1",
        "create x 1E",
        "create -o '' x 1M",
        "create -o ,size=1M x 1M",
        "create -o size=1M, x 1M",
        "create -o size=1M,size=2M x 1M",
        "create -o size=1x x",
        "create -o size=-5 x",
        "create -o size x",
        "create -o foo x 1M",
        "create -o help=on x 1M",
        "create -f qcow2 -o backing_file=a,,help -o foo x 1M",
        "create -o foo= x 1M",
        "create -o size=1M,nofoo x 1M",
        "create -o nocow=1 x 1M",
        "create -o preallocation=metadata x 1M",
        "create -o preallocation=bogus x 1M",
        "create -b b.raw x 1M",
        "create -F raw x 1M",
        "create -o backing_file=b.raw x 1M",
        "create -f qcow2 -F raw x 1M",
        "create -f qcow2 -F raw x",
        "create -f qcow2 -b b.raw x",
        "create -f qcow2 -b b.qcow2 x 8M",
        "create -f qcow2 -b b.raw -F qcow2 x 8M",
        "create -f qcow2 -b b.raw -F bogus x 8M",
        "create -f qcow2 -b nofile -F raw x 8M",
        "create -f qcow2 -b nofile x",
        "create -f qcow2 -u -b nofile x 1M",
        "create -f qcow2 -u -b nofile -F raw x",
        "create -f qcow2 -u -b nofile -F bogus x 1M",
        "create -f qcow2 -b x -F qcow2 x",
        "create -f qcow2 -b '' x 1M",
        "create -f qcow2 -b b.raw -F raw d/x",
        "create -f qcow2 -o cluster_size=100 x 1M",
        "create -f qcow2 -o cluster_size=4M x 1M",
        "create -f qcow2 -o cluster_size=0 x 1M",
        "create -f qcow2 -o refcount_bits=3 x 1M",
        "create -f qcow2 -o refcount_bits=0 x 1M",
        "create -f qcow2 -o refcount_bits=128 x 1M",
        "create -f qcow2 -o refcount_bits=-1 x 1M",
        "create -f qcow2 -o refcount_bits=8,compat=0.10 x 1M",
        "create -f qcow2 -o refcount_bits=16k x 1M",
        "create -f qcow2 -o compat=v4 x 1M",
        "create -f qcow2 -o compat=0.10,lazy_refcounts=on x 1M",
        "create -f qcow2 -o compat=0.10,compression_type=zstd x 1M",
        "create -f qcow2 -o compression_type=bogus x 1M",
        "create -f qcow2 -o preallocation=bogus x 1M",
        "create -f qcow2 -o extended_l2=foo x 1M",
        "create -f qcow2 -o extended_l2=on,cluster_size=8k x 1M",
        "create -f qcow2 -o extended_l2=on,cluster_size=8k,compat=0.10 x 1M",
        "create -f qcow2 -o extended_l2=on,cluster_size=8k,refcount_bits=7 x 1M",
        "create -f qcow2 -o extended_l2=on,lazy_refcounts=on,compat=0.10 x 1M",
        "create -f qcow2 -o preallocation=full,backing_file=b.raw,backing_fmt=raw x 1M",
        "create -f qcow2 -o cluster_size=512 x 1T",
        "create -f qcow2 x 7E",
        "create -f qcow2 nodir/x 1M",
        "create nodir/x 1M",
        "create foo:x 1M",
        "create '' 1M",
        "create d 1M",
        "create -f qcow2 d 1M",
    ];
    lab.same_result(&lines, None);
}

#[test]
fn a_refused_create_leaves_what_was_there() {
    let lab = Lab::new();
    for line in [
        "-f qcow2 -o cluster_size=100 x 1M",
        "-f qcow2 -o compat=v4 x 1M",
        "-f qcow2 -o extended_l2=on,cluster_size=4k x 1M",
    ] {
        lab.write("x", b"precious");
        assert_eq!(lab.ours(&format!("create {line}")).status.code(), Some(1));
        assert_eq!(std::fs::read(lab.path("x")).unwrap(), b"precious", "{line}");
    }
}

#[test]
fn the_help_of_options_lists_what_the_format_has() {
    let lab = Lab::new();
    let names = |line: &str, program_is_real: bool| {
        let output = if program_is_real {
            std::process::Command::new("qemu-img").args(line.split(' ')).output().unwrap()
        } else {
            lab.ours(line)
        };
        assert!(output.status.success(), "{line}");
        let text = String::from_utf8(output.stdout).unwrap();
        let option = |line: &str| line.trim_start().split_once(" - ").map(|(name, _)| name.trim().to_owned());
        text.lines().filter_map(option).collect::<Vec<_>>()
    };
    for line in ["create -f qcow2 -o help", "create -f qcow2 -o size=1M,? x 1M extra", "create -o help x"] {
        assert_eq!(names(line, false), names(line, true), "{line}");
    }
    assert_eq!(names("convert -O qcow2 -o help", false), names("convert -O qcow2 -o help", true));
}
