//! `convert`: what arrives is what left, as qemu-img sees it; progress and refusals are the same bytes.

use crate::harness::Lab;
use crate::seed::seed_or;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::os::unix::fs::MetadataExt;

/// Sources of every kind.
fn sources() -> Lab {
    let lab = Lab::new();
    let seed = seed_or(rand::random());
    let mut random = vec![0; 3 << 20];
    StdRng::seed_from_u64(seed).fill(&mut random[..]);
    // Zeros inside of data, in runs of all lengths and alignments.
    for (at, len) in [(5000, 3000), (8192, 4096), (100 << 10, 64 << 10), (1 << 20, 300_000), (2 << 20, 512)] {
        random[at..at + len].fill(0);
    }
    lab.write("random", &random).write("odd", &random[..1000]).write("empty", b"");
    lab.qemu_img("create -q holes 8M").qemu_io(
        "raw",
        "holes",
        &["write 0 64k", "write 1M 68k", "write 7M 1M"],
    );
    lab.qemu_img("convert -f raw -O qcow2 random plain")
        .qemu_img("convert -f raw -c -O qcow2 random compressed");
    lab.qemu_img("create -q -f qcow2 -b plain -F qcow2 top 6M");
    lab.qemu_io("qcow2", "top", &["write -P 9 64k 64k", "write -z 1M 512k", "write -P 3 5M 100k"]);
    lab.qemu_img("create -q -f qcow2 -o cluster_size=512,compat=v2 small 4M");
    lab.qemu_io("qcow2", "small", &["write -P 5 1000 70000", "write -P 6 3M 1M"]);
    let options = "extended_l2=on,backing_file=random,backing_fmt=raw";
    lab.qemu_img(&format!("create -q -f qcow2 -o {options} subclusters 6M"));
    let writes = ["write -P 9 63k 3k", "write -z 1M 300k", "write -P 3 5M 100k", "write -c -P 4 2M 64k"];
    lab.qemu_io("qcow2", "subclusters", &writes);
    lab.qemu_img("create -q blank 10M");
    lab
}

#[test]
fn every_source_arrives_in_every_format() {
    let lab = sources();
    let mut lines = Vec::new();
    for source in ["random", "odd", "empty", "holes"] {
        for format in ["raw", "qcow2"] {
            lines.push(format!("convert -f raw -O {format} {source} out"));
        }
    }
    let several = ["random holes", "odd top odd small", "empty empty"];
    for source in ["plain", "compressed", "top", "small", "subclusters"].into_iter().chain(several) {
        let small = "qcow2 -o cluster_size=4k,compat=0.10";
        for format in ["raw", "qcow2", small, "qcow2 -o extended_l2=on", "qcow2 -S 0", "raw -S 0"] {
            lines.push(format!("convert -O {format} {source} out"));
        }
    }
    lab.same_result(&lines.iter().map(String::as_str).collect::<Vec<_>>(), Some("out"));
}

#[test]
fn options_change_how_but_not_what() {
    let lab = sources();
    let lines = [
        "convert -S 64k -O qcow2 -o cluster_size=4k random out",
        "convert -S 512 random out",
        "convert -S 1M top out",
        "convert -S 16M top out",
        "convert -W -m 16 top out",
        "convert -m 1 -O qcow2 top out",
        "convert -W -O qcow2 -m 3 random out",
        "convert -t none -T none top out",
        "convert -t writethrough -T directsync top out",
        "convert -t directsync -T unsafe -O qcow2 top out",
        "convert -U -q top out",
        "convert -O qcow2 -o preallocation=metadata top out",
        "convert -O qcow2 -o preallocation=full holes out",
        "convert -o preallocation=falloc top out",
        "convert -O qcow2 -o size=64M top out",
        "convert -O qcow2 -o extended_l2=on,cluster_size=16k -S 512 random out",
        "convert -O qcow2 -o extended_l2=on,preallocation=metadata subclusters out",
        "convert -o size=1M top out",
    ];
    lab.same_result(&lines, Some("out"));
}

#[test]
fn compressed_output_holds_the_same() {
    let lab = sources();
    let lines = [
        "convert -c -O qcow2 -f raw random out",
        "convert -c -q -O qcow2 -f raw holes out",
        "convert -c -O qcow2 -o compression_type=zstd,cluster_size=4k top out",
        "convert -c -O qcow2 -o cluster_size=512,compat=0.10 small out",
        "convert -c -O qcow2 -o cluster_size=2M -S 0 -m 16 top out",
        "convert -c -W -O qcow2 -o refcount_bits=1 -S 64k compressed out",
        "convert -c -O qcow2 -o cluster_size=1M,compression_type=zstd top odd top small odd out",
        "convert -c -O qcow2 -B plain -F qcow2 top out",
    ];
    lab.same_result(&lines, Some("out"));
}

#[test]
fn zeros_are_left_out_where_they_are_as_long_as_was_asked_for() {
    let lab = Lab::new();
    let mut bytes = vec![0; 256 << 10];
    bytes.chunks_mut(16 << 10).for_each(|part| part[..8 << 10].fill(1));
    lab.write("thin", &bytes);
    for line in ["-S 4k", "-S 8k", "-S 12k", "-S 16k", "-S 0"] {
        let line = format!("convert {line} -f raw thin");
        lab.qemu_img(&format!("{line} real"));
        assert!(lab.ours(&format!("{line} ours")).status.success());
        let blocks = |name: &str| std::fs::metadata(lab.path(name)).unwrap().blocks();
        // The host's own blocks that say where they are do not count.
        assert!(
            blocks("ours").abs_diff(blocks("real")) <= 16,
            "{line}: {} {}",
            blocks("ours"),
            blocks("real")
        );
    }
}

#[test]
fn an_image_takes_no_more_of_the_disk_than_its_data() {
    let lab = Lab::new();
    let mut bytes = vec![0; 16 << 20];
    // Long runs of data get their places as a whole.
    bytes.chunks_mut(2 << 20).for_each(|part| part[..300 << 10].fill(1));
    lab.write("raw", &bytes).qemu_img("convert -c -f raw -O qcow2 raw qcow2");
    for (source, target) in [("raw", "raw"), ("raw", "qcow2"), ("qcow2", "raw"), ("qcow2", "qcow2")] {
        assert!(lab.ours(&format!("convert -f {source} -O {target} {source} out")).status.success());
        lab.qemu_img(&format!("compare -f raw -F {target} raw out"));
        let (grain, tables) = if target == "raw" { (300, 64) } else { (320, 512) };
        let taken = std::fs::metadata(lab.path("out")).unwrap().blocks() * 512;
        assert!(taken <= (8 * grain + tables) << 10, "{source} to {target}: {taken} bytes");
    }
    assert!(lab.ours("convert -O raw -o preallocation=falloc -f raw raw out").status.success());
    assert!(std::fs::metadata(lab.path("out")).unwrap().blocks() * 512 >= 16 << 20, "all of it was wanted");
}

#[test]
fn what_cannot_be_decompressed_is_zeros_where_that_is_wanted() {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 4M").qemu_io("raw", "raw", &["write -P 5 0 1M", "write -P 6 2M 100k"]);
    lab.qemu_img("convert -f raw -c -O qcow2 raw packed");
    // The first compressed cluster, behind five of metadata: deflate has no blocks of this kind.
    lab.patched("packed", "broken", |bytes| bytes[5 << 16] = 0xff);
    for format in ["raw", "qcow2"] {
        let line = format!("convert --salvage -q -f qcow2 -O {format} broken");
        lab.qemu_img(&format!("{line} real"));
        assert!(lab.ours(&format!("{line} ours")).status.success());
        lab.qemu_img(&format!("compare -f {format} -F {format} real ours"));
        assert!(!lab.ours(&format!("convert -f qcow2 -O {format} broken none")).status.success());
        assert!(!lab.path("none").exists());
    }
}

#[test]
fn clusters_of_zeros_are_not_stored_compressed() {
    let lab = Lab::new();
    let seed = seed_or(rand::random());
    let mut bytes = vec![0; 4 << 20];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes.chunks_mut(64 << 10).for_each(|part| part[8 << 10..].fill(0));
    lab.write("thin", &bytes);
    for line in ["-W -S 1M", "-S 1M", "-S 64k", "-S 4k", "-S 512"] {
        let line = format!("convert -c {line} -O qcow2 -o cluster_size=4k -f raw thin");
        lab.qemu_img(&format!("{line} real"));
        assert!(lab.ours(&format!("{line} ours")).status.success());
        // Not how many extents: with -W those of one piece may stand apart.
        let map = lab.qemu_map("ours");
        let stored = map.as_array().unwrap().iter().filter(|extent| extent["zero"] == false);
        let stored: u64 = stored.map(|extent| extent["length"].as_u64().unwrap()).sum();
        assert_eq!(stored, 64 * (8 << 10), "{line}");
        lab.qemu_img("compare ours real");
    }
}

#[test]
fn an_output_with_a_backing_file_holds_only_what_differs() {
    let lab = sources();
    let lines = [
        "convert -O qcow2 -B plain -F qcow2 top out",
        "convert -O qcow2 -B plain -F qcow2 -S 0 top out",
        "convert -O qcow2 -o backing_file=random,backing_fmt=raw -f raw holes out",
        "convert -O qcow2 -B blank -F raw top out",
        "convert -O qcow2 -B top -F qcow2 -f raw random out",
        "convert -O qcow2 -B holes -F raw small out",
        "convert -O qcow2 -B random -F raw -o extended_l2=on subclusters out",
        "convert -O qcow2 -B random -F raw -o extended_l2=on,preallocation=metadata -f raw holes out",
    ];
    lab.same_result(&lines, Some("out"));
}

#[test]
fn an_output_that_is_there_is_overwritten_in_place() {
    let lab = sources();
    lab.write("old", &[0x77; 12 << 20]);
    lab.qemu_img("convert -f raw -O qcow2 old old.qcow2");
    lab.same_result(&["convert -n -O raw top old", "convert -n -O raw -S 0 top old"], Some("old"));
    lab.same_result(
        &["convert -n -O qcow2 top old.qcow2", "convert -n -O qcow2 -f raw holes old.qcow2"],
        Some("old.qcow2"),
    );
    lab.qemu_img("create -q -f qcow2 -b plain -F qcow2 over");
    lab.qemu_io("qcow2", "over", &["write -P 1 2M 64k"]);
    let lines = [
        "convert -n -O qcow2 -f raw random over",
        "convert -n -O qcow2 -B plain -F qcow2 small over",
        "convert -n -O qcow2 -B plain top over",
        "convert -n -O qcow2 -B plain -F qcow2 top over",
        "convert -n -B plain -F qcow2 -f raw random old",
    ];
    lab.same_result(&lines, Some("over"));
    lab.same_result(&["convert top old", "convert -O qcow2 top old"], Some("old"));
}

#[test]
fn progress_is_the_same_bytes() {
    let lab = sources();
    let lines = [
        "convert -p -f raw random out",
        "convert -p -f raw random random random random random random random out",
        "convert -p holes out",
        "convert -p blank out",
        "convert -p -S 0 blank top out",
        "convert -p -O qcow2 top holes plain out",
        "convert -p -q top out",
        "convert -p -O qcow2 -B plain -F qcow2 top out",
        "convert -p nofile out",
        "convert -p top nodir/out",
    ];
    lab.same_result(&lines, Some("out"));
}

#[test]
fn what_cannot_be_converted_is_refused_in_the_same_words() {
    let lab = sources();
    let rule = "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nonce = \"off\"\n";
    lab.write("rule", rule.as_bytes());
    let lines = [
        "convert nofile out",
        "convert -q nofile out",
        "convert top nofile out",
        "convert -O qcow2 top nodir/out",
        "convert top nodir/out",
        "convert -O qcow2 -o cluster_size=3 top out",
        "convert -O qcow2 -o compat=0.10,lazy_refcounts=on top out",
        "convert -O qcow2 -B plain top out",
        "convert -O qcow2 -o backing_file=plain top out",
        "convert -O raw -B plain -F qcow2 top out",
        "convert -O qcow2 -F raw top out",
        "convert -O qcow2 -B nofile -F raw top out",
        "convert -O qcow2 -B plain -F bogus top out",
        "convert -O qcow2 -B plain -F qcow2 top small out",
        "convert -n top nofile",
        "convert -n top odd",
        "convert -n -O qcow2 top odd",
        "convert -f qcow2 random out",
        "convert top top",
        "convert -O qcow2 top top",
        "convert -c top out",
        "convert -c top nodir/out",
        "convert -c -n -O raw top blank",
        "convert -c -O raw -B plain -F qcow2 top out",
        "convert -c -O qcow2 -o preallocation=metadata top out",
        "convert -c -O qcow2 -o compression_type=zstd,compat=0.10 top out",
        "convert -m 1 -f raw blkdebug:rule:random out",
        "convert -m 1 -f raw -O qcow2 blkdebug:rule:holes out",
    ];
    lab.same_result(&lines, None);
}
