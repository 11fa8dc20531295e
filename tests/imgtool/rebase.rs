//! `rebase`: the disk stays what it was, whatever lies below.

use crate::harness::Lab;
use crate::seed::seed_or;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// base (raw, 4 MiB) ◀ mid ◀ top (5 MiB), and other (raw, 3 MiB), which differs from base in some places.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q base 4M").qemu_io("raw", "base", &["write -P 1 0 1M", "write -P 1 3M 1M"]);
    std::fs::copy(lab.path("base"), lab.path("other")).unwrap();
    lab.qemu_img("resize -q -f raw --shrink other 3M");
    lab.qemu_io("raw", "other", &["write -P 9 300k 10k", "write -P 9 2M 100k"]);
    lab.qemu_img("create -q -f qcow2 -b base -F raw mid");
    lab.qemu_io("qcow2", "mid", &["write -P 2 512k 1M", "write -z 3M 100k"]);
    lab.qemu_img("create -q -f qcow2 -b mid -F qcow2 top 5M");
    lab.qemu_io("qcow2", "top", &["write -P 3 1M 1M", "write -z 4M 64k", "write -P 4 4200k 10k"]);
    lab
}

#[test]
fn command_lines_are_refused_in_the_same_words() {
    let lab = lab();
    lab.same_result(
        &[
            "rebase",
            "rebase top",
            "rebase -b base",
            "rebase a b",
            "rebase -F raw top",
            "rebase --back base top",
            "rebase -b base -F bogus top",
            "rebase -b nofile -F raw top",
            "rebase -b nofile top",
            "rebase -b base nofile",
            "rebase -b base -F bogus nofile",
            "rebase -t bogus -T bogus -b base top",
            "rebase -T bogus -b base -F raw top",
            "rebase -T bogus nofile",
            "rebase -c -f raw -b '' base",
            "rebase -c -f raw -b base -F bogus base",
            "rebase -f raw -b other -F raw base",
            "rebase -f raw -b '' base",
            "rebase -u -f raw -b other -F raw base",
            "rebase -u -f raw -b other base",
            "rebase -u -b base top",
            "rebase -u -b base -F bogus top",
            "rebase -b base -F raw -f raw --image-opts driver=qcow2,file.filename=top",
            "rebase -b top -F qcow2 top",
            "rebase -b ./top -F qcow2 top",
        ],
        Some("top"),
    );
}

#[test]
fn a_backing_format_must_be_named_before_anything_is_written() {
    let lab = lab();
    let before = std::fs::read(lab.path("top")).unwrap();
    for line in ["rebase -b base top", "rebase -b other top", "rebase -u -b other top"] {
        assert_eq!(lab.ours(line).status.code(), Some(1), "{line}");
    }
    assert!(before == std::fs::read(lab.path("top")).unwrap());
    lab.same_result(&["rebase -b base top", "rebase -b other top"], None);
}

#[test]
fn the_disk_is_the_same_over_any_backing_file() {
    let lab = lab();
    let before = lab.content("top");
    lab.same_result(
        &[
            "rebase -b base -F raw top",
            "rebase -b mid -F qcow2 top",
            "rebase -b other -F raw top",
            "rebase -b '' top",
            "rebase -F raw -b '' top",
            "rebase -p -b '' top",
            "rebase -p -b other -F raw top",
            "rebase -p -q -b other -F raw top",
            "rebase -t none -T none -b other -F raw top",
            "rebase -U -b other -F raw top",
            "rebase --backing=other --backing-f raw top",
            "rebase -b other -F raw --image-opts driver=qcow2,file.filename=top",
        ],
        Some("top"),
    );
    for line in ["rebase -b other -F raw top", "rebase -b '' top", "rebase -b mid -F qcow2 top"] {
        assert!(lab.ours(line).status.success(), "{line}");
        assert!(lab.content("top") == before, "{line}");
    }
}

#[test]
fn unsafe_only_the_name_changes() {
    let lab = lab();
    lab.same_result(
        &[
            "rebase -u -b base -F raw top",
            "rebase -u -b other -F raw -p top",
            "rebase -u -b '' top",
            "rebase -u top",
            "rebase -u -F raw top",
            "rebase -c -u -b base -F raw top",
        ],
        Some("top"),
    );
    // What is not there, or is no file's name, can only be shown.
    for name in ["nofile", "nbd:foo", "json:{}", &"a".repeat(1023), &"a".repeat(1024)] {
        let line = format!("rebase -u -b {name} -F vmdk mid");
        lab.same_result(&[&line], None);
        assert_eq!(lab.ours(&line).status.success(), name.len() < 1024);
    }
    lab.same(&["info mid", "info -U --output=json mid"]);
    lab.qemu_img("rebase -u -b base -F raw mid");
    lab.same_result(&["rebase -b base -F raw mid", "rebase -b '' mid"], Some("mid"));
}

/// Where runs of one depth of the chain end, and that depth.
fn layers(lab: &Lab, name: &str) -> Vec<(u64, u64)> {
    let map = lab.qemu_map(name);
    let number = |extent: &serde_json::Value, name: &str| extent[name].as_u64().unwrap();
    let mut layers: Vec<(u64, u64)> = Vec::new();
    for extent in map.as_array().unwrap() {
        let (end, depth) = (number(extent, "start") + number(extent, "length"), number(extent, "depth"));
        match layers.last_mut() {
            Some(last) if last.1 == depth => last.0 = end,
            _ => layers.push((end, depth)),
        }
    }
    layers
}

#[test]
fn what_both_backing_files_have_is_not_copied() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -b base -F raw side").qemu_io("qcow2", "side", &["write -P 5 2M 64k"]);
    lab.qemu_img("convert -c -O qcow2 base packed").qemu_img("create -q -f qcow2 -b packed -F qcow2 over");
    for (backing, format, top) in [
        ("base", "raw", "top"),
        ("side", "qcow2", "top"),
        ("other", "raw", "mid"),
        ("packed", "qcow2", "over"),
        ("base", "raw", "over"),
    ] {
        for tool in ["ours", "real"] {
            std::fs::copy(lab.path(top), lab.path(&format!("{top}.{tool}"))).unwrap();
        }
        assert!(lab.ours(&format!("rebase -b {backing} -F {format} {top}.ours")).status.success());
        lab.qemu_img(&format!("rebase -b {backing} -F {format} {top}.real"));
        assert_eq!(layers(&lab, &format!("{top}.ours")), layers(&lab, &format!("{top}.real")), "{top}");
    }
}

#[test]
fn compressed_clusters_are_written_where_that_is_wanted() {
    let lab = lab();
    lab.same_result(&["rebase -c -b other -F raw top", "rebase -c -b '' top"], Some("top"));
    lab.qemu_img("create -q -f qcow2 -b base -F raw -o extended_l2=on fine");
    lab.qemu_io("qcow2", "fine", &["write -P 7 70k 1k"]);
    let before = lab.content("fine");
    assert!(lab.ours("rebase -c -b '' fine").status.success());
    assert!(lab.content("fine") == before);
    lab.qemu_img("check -q fine");
    let packed = lab.qemu_map("fine");
    assert!(packed.as_array().unwrap().iter().any(|extent| extent["compressed"] == true), "{packed}");
}

#[test]
fn images_of_all_kinds_keep_their_disks() {
    let mut rng = StdRng::seed_from_u64(seed_or(7));
    let lab = Lab::new();
    let kinds = [
        "cluster_size=512",
        "cluster_size=4k,compat=0.10",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "cluster_size=2M",
        "refcount_bits=1",
    ];
    for (round, kind) in kinds.iter().enumerate() {
        let chain = ["old", "new", "top"].map(|name| format!("{name}{round}"));
        let sizes = std::array::from_fn::<_, 3, _>(|_| rng.random_range(1u64..6000) * 512);
        lab.qemu_img(&format!("create -q {} {}", chain[0], sizes[0]));
        lab.qemu_img(&format!("create -q -f qcow2 -o cluster_size=1k {} {}", chain[1], sizes[1]));
        lab.qemu_img(&format!(
            "create -q -f qcow2 -o {kind} -b {} -F raw {} {}",
            chain[0], chain[2], sizes[2]
        ));
        for (name, format, size) in
            [(&chain[0], "raw", sizes[0]), (&chain[1], "qcow2", sizes[1]), (&chain[2], "qcow2", sizes[2])]
        {
            let writes: Vec<String> = (0..6).map(|_| random_write(&mut rng, size)).collect();
            lab.qemu_io(format, name, &writes.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let before = lab.content(&chain[2]);
        for backing in [format!("{} -F qcow2", chain[1]), format!("{} -F raw", chain[0]), "''".into()] {
            let line = format!("rebase -b {backing} {}", chain[2]);
            let output = lab.ours(&line);
            assert!(output.status.success(), "{kind}: {line}: {output:?}");
            assert!(lab.content(&chain[2]) == before, "{kind}: {line}");
            lab.qemu_img(&format!("check -q {}", chain[2]));
        }
    }
}

/// A write in the first `size` bytes, in whole sectors.
fn random_write(rng: &mut StdRng, size: u64) -> String {
    let at = rng.random_range(0..size / 512) * 512;
    let len = rng.random_range(1..=((size - at) / 512).min(600)) * 512;
    match rng.random_range(0..4) {
        0 => format!("write -z {at} {len}"),
        _ => format!("write -P {} {at} {len}", rng.random_range(0..4)),
    }
}

#[test]
fn a_thin_difference_of_two_images_can_be_made() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -b other -F raw diff").qemu_img("resize -q diff 4M");
    lab.same_result(&["rebase -b base -F raw diff"], Some("diff"));
}

#[test]
fn a_full_host_leaves_the_image_over_its_old_backing_file() {
    let lab = lab();
    let before = lab.content("top");
    let output = lab.ours_with_limit(1800, "rebase -b '' top");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "qemu-img: Error while writing to COW image: File too large\n");
    lab.qemu_img("check -q top");
    assert!(lab.content("top") == before);
    assert!(String::from_utf8(lab.ours("info top").stdout).unwrap().contains("backing file: mid\n"));
}

#[test]
fn encrypted_images_need_their_key() {
    let lab = lab();
    let secret = "--object secret,id=s,data=abc";
    lab.qemu_img(&format!(
        "create -q {secret} -f qcow2 -b base -F raw -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 hidden"
    ));
    let hidden = "driver=qcow2,file.filename=hidden,encrypt.key-secret=s";
    lab.qemu_io_with_key(hidden, &["write -P 7 1k 100k"]);
    lab.same(&["rebase -b other -F raw hidden", "rebase -u -b other -F raw hidden"]);
    let raw = |name: &str| {
        lab.qemu_img(&format!("convert {secret} --image-opts -O raw {hidden} {name}"));
        std::fs::read(lab.path(name)).unwrap()
    };
    let before = raw("before");
    let line = format!("rebase {secret} -b other -F raw --image-opts {hidden}");
    assert!(lab.ours(&line).status.success());
    assert!(raw("after") == before);
}
