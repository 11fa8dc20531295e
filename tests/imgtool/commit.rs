//! `commit`: base and overlay afterwards, and what is left when it fails.

use crate::harness::Lab;

/// A chain of three, each with something of its own, zeros too: base (raw, 4 MiB) ◀ mid ◀ top (5 MiB).
fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q base 4M").qemu_io("raw", "base", &["write -P 1 0 1M", "write -P 1 3M 1M"]);
    lab.qemu_img("create -q -f qcow2 -b base -F raw mid");
    lab.qemu_io("qcow2", "mid", &["write -P 2 512k 1M", "write -z 3M 100k"]);
    lab.qemu_img("create -q -f qcow2 -b mid -F qcow2 top 5M");
    let writes =
        ["write -P 3 1M 1M", "write -z 0 64k", "write -P 4 4200k 10k", "write -z 4M 64k", "write 5119k 512"];
    lab.qemu_io("qcow2", "top", &writes);
    lab
}

#[test]
fn command_lines_are_refused_in_the_same_words() {
    let lab = lab();
    lab.same(&[
        "commit",
        "commit a b",
        "commit -U top",
        "commit -b",
        "commit -t bogus top",
        "commit -t bogus",
        "commit -r x top",
        "commit -r -1 top",
        "commit -r 8E nofile",
        "commit nofile",
        "commit -f raw base",
        "commit base",
        "commit -b nope top",
        "commit -b top top",
        "commit -b '' top",
        "commit -b x -f raw base",
        "commit -f bogus top",
        "commit -f raw --image-opts driver=qcow2,file.filename=top",
    ]);
}

#[test]
fn base_and_overlay_are_the_same_afterwards() {
    let lab = lab();
    lab.same_results(
        &[
            "commit top",
            "commit -q top",
            "commit -d top",
            "commit -f qcow2 --drop top",
            "commit -b mid top",
            "commit -b base top",
            "commit --base=base -q -p top",
            "commit -r 1G top",
            "commit -r 0 -t none top",
            "commit --image-opts driver=qcow2,file.filename=top",
            "commit mid",
        ],
        &["base", "mid", "top"],
    );
}

#[test]
fn bases_of_all_kinds_take_it() {
    let lab = Lab::new();
    lab.qemu_img("create -q long 9M").qemu_io("raw", "long", &["write -P 1 0 9M"]);
    lab.write("odd", &[7; 3000]);
    for (base, options, size) in [
        ("plain", "-o cluster_size=4k", "2M"),
        ("old", "-o compat=0.10 -b long -F raw", "3M"),
        ("fine", "-o extended_l2=on -b long -F raw", "3M"),
        ("wide", "-o cluster_size=2M", "1M"),
        ("apart", "-o data_file=apart.raw", "6M"),
    ] {
        lab.qemu_img(&format!("create -q -f qcow2 {options} {base} {size}"));
        lab.qemu_io("qcow2", base, &["write -P 2 100k 700k"]);
    }
    for (base, format, options) in [
        ("long", "raw", "extended_l2=on"),
        ("odd", "raw", "compat=v2"),
        ("plain", "qcow2", "extended_l2=on"),
        ("old", "qcow2", "cluster_size=64k"),
        ("fine", "qcow2", "compat=v2"),
        ("wide", "qcow2", "cluster_size=4k"),
        ("apart", "qcow2", "cluster_size=64k"),
    ] {
        lab.qemu_img(&format!("create -q -f qcow2 -o {options} -b {base} -F {format} top 6M"));
        let writes = ["write -P 3 0 1k", "write -P 4 1001k 3000k", "write -z 90k 600k", "write -P 5 5M 512"];
        lab.qemu_io("qcow2", "top", &writes).qemu_io("qcow2", "top", &["write -c -P 6 4M 64k"]);
        lab.same_results(&["commit top"], &[base, "top"]);
    }
}

#[test]
fn the_base_is_named_as_seen_from_the_image_above_it() {
    let lab = lab();
    std::fs::create_dir_all(lab.path("d/e")).unwrap();
    lab.qemu_img("create -q -f qcow2 -b ../base -F raw d/mid");
    lab.qemu_img("create -q -f qcow2 -b ../mid -F qcow2 d/e/top").qemu_io(
        "qcow2",
        "d/e/top",
        &["write 1M 1k"],
    );
    std::os::unix::fs::symlink("../base", lab.path("d/link")).unwrap();
    let absolute = lab.path("base");
    let absolute = absolute.to_str().unwrap();
    let names =
        ["base", "../base", "../../base", "d/base", "d/../base", "link", "../link", "../mid", "mid", "d/mid"];
    for name in names {
        lab.same_results(&[&format!("commit -b {name} d/e/top")], &["base", "d/mid", "d/e/top"]);
    }
    let output = lab.ours(&format!("commit -b {absolute} d/e/top"));
    assert!(output.status.success());
}

#[test]
fn snapshots_and_bitmaps_stay_when_the_overlay_is_emptied() {
    let lab = lab();
    lab.qemu_img("snapshot -c one top").qemu_io("qcow2", "top", &["write -P 8 2M 1M"]);
    lab.qemu_img("create -q -f qcow2 -b mid -F qcow2 noted").qemu_img("bitmap --add noted map");
    lab.qemu_io("qcow2", "noted", &["write -P 8 2M 1M"]);
    lab.qemu_img("create -q -f qcow2 -b mid -F qcow2 -o data_file=d.raw data");
    lab.qemu_io("qcow2", "data", &["write -P 8 2M 1M"]);
    for image in ["top", "noted", "data"] {
        lab.same_results(&[&format!("commit {image}"), &format!("commit -d {image}")], &["mid", image]);
    }
    // Up to there the snapshot has its own clusters, or those of the base that no commit touches.
    let own = |content: Vec<u8>| content[..2 << 20].to_vec();
    let before = own(lab.content("-l one top"));
    assert!(lab.ours("commit top").status.success());
    assert!(own(lab.content("-l one top")) == before, "the snapshot is another");
    lab.same(&["snapshot top", "map --output=json top", "check top"]);
}

#[test]
fn an_emptied_overlay_is_short() {
    let lab = Lab::new();
    lab.qemu_img("create -q base 64M").qemu_img("create -q -f qcow2 -b base -F raw top");
    lab.qemu_io("qcow2", "top", &["write -P 3 1M 40M"]);
    assert!(lab.ours("commit top").status.success());
    let len = std::fs::metadata(lab.path("top")).unwrap().len();
    assert!(len <= 6 << 16, "{len}");
    lab.same(&["check top", "map top", "map --output=json base"]);
}

#[test]
fn encrypted_layers_need_their_keys() {
    let lab = Lab::new();
    let secret = "--object secret,id=s,data=abc";
    lab.qemu_img("create -q base 1M");
    lab.qemu_img(&format!(
        "create -q {secret} -f qcow2 -b base -F raw -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 top"
    ));
    let top = "driver=qcow2,file.filename=top,encrypt.key-secret=s";
    lab.qemu_io_with_key(top, &["write -P 7 1k 100k"]);
    lab.same_result(&["commit top", &format!("commit {secret} --image-opts {top}")], Some("base"));
}

#[test]
fn a_full_host_leaves_the_overlay_as_it_was() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -b base -F raw far 64M");
    lab.qemu_io("qcow2", "far", &["write -P 7 0 1M", "write -P 8 40M 1M"]);
    for image in ["far", "top"] {
        let before = lab.content(image);
        let output = lab.ours_with_limit(4500, &format!("commit {image}"));
        if image == "far" {
            assert_eq!(output.status.code(), Some(1));
            assert!(String::from_utf8_lossy(&output.stderr).ends_with("File too large\n"), "{output:?}");
        }
        assert!(lab.content(image) == before, "{image} shows something else");
        lab.qemu_img(&format!("check -q {image}"));
        assert!(lab.ours(&format!("commit {image}")).status.success());
        assert!(lab.content(image) == before);
    }
}

#[test]
fn death_in_the_middle_leaves_the_overlay_as_it_was() {
    let lab = lab();
    let before = lab.content("top");
    // 1 MiB of 1 MiB + 128 KiB is the first piece; at one byte a second, the second waits for ever.
    lab.ours_dies_at("commit -p -r 1 top", "(88");
    assert!(lab.content("top") == before, "top shows something else");
    lab.qemu_img("check -q top").qemu_img("check -q mid");
    lab.same_results(&["commit top"], &["base", "mid", "top"]);
}

#[test]
fn progress_goes_to_a_hundred() {
    let lab = lab();
    let output = lab.ours("commit -p top");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("    (0.00/100%)\r"), "{said:?}");
    assert!(said.ends_with("    (100.00/100%)\r\nImage committed.\n"), "{said:?}");
}
