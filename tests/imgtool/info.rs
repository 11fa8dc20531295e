//! `info`, for people and for programs.

use crate::harness::Lab;

/// Every form of the command for one image.
fn forms(name: &str) -> Vec<String> {
    ["", " --output=json", " --backing-chain", " --backing-chain --output=json", " -U -f raw", " -f qcow2"]
        .iter()
        .map(|options| format!("info{options} {name}"))
        .collect()
}

fn same_for(lab: &Lab, names: &[&str]) {
    let lines: Vec<String> = names.iter().flat_map(|name| forms(name)).collect();
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn images_of_all_kinds_are_described_alike() {
    let lab = Lab::new();
    lab.qemu_img("create -q base.raw 3M");
    lab.qemu_img("create -q -f qcow2 -o compat=v2,cluster_size=4k old 1M");
    lab.qemu_img("create -q -f qcow2 -o lazy_refcounts=on,refcount_bits=64,cluster_size=2M lazy 1.5G");
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata full 1000");
    lab.qemu_img("create -q -f qcow2 -o extended_l2=on subclusters 8M");
    lab.qemu_img("convert -c -O qcow2 base.raw compressed");
    lab.qemu_img("create -q -f qcow2 -o data_file=d.raw data 1M");
    lab.qemu_img("create -q -f qcow2 -o data_file=gone.raw,data_file_raw=on raw 1M");
    std::fs::remove_file(lab.path("gone.raw")).unwrap();
    lab.write("odd", &[1; 1000]).write("empty", b"");
    let names =
        ["base.raw", "old", "lazy", "full", "subclusters", "compressed", "data", "raw", "odd", "empty"];
    same_for(&lab, &names);
}

#[test]
fn chains_are_followed_from_where_each_image_is() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("d")).unwrap();
    lab.qemu_img("create -q base.raw 3M");
    lab.qemu_img("create -q -f qcow2 -b base.raw -F raw mid");
    lab.qemu_img("create -q -f qcow2 -b ../mid -F qcow2 d/top 8M");
    lab.qemu_img("create -q -f qcow2 -u -b nofile -F raw orphan 1M");
    lab.qemu_img("create -q -f qcow2 -u -b loop -F qcow2 loop 1M -b ./loop");
    lab.qemu_img("create -q -f qcow2 -u -b loop1 -F qcow2 loop2 1M");
    lab.qemu_img("create -q -f qcow2 -u -b loop2 -F qcow2 loop1 1M");
    same_for(&lab, &["base.raw", "mid", "d/top", "orphan", "loop1"]);
}

#[test]
fn a_chain_is_not_followed_to_what_is_no_file() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("d")).unwrap();
    for name in ["nbd://127.0.0.1:1/", "fat:d", "json:{\"driver\":\"vvfat\",\"dir\":\"d\"}"] {
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", name, "over", "1M"])
            .current_dir(lab.path(""))
            .status();
        assert!(made.unwrap().success());
        let output = lab.ours("info --backing-chain over");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("Unknown protocol"), "{name}: {said}");
    }
}

#[test]
fn snapshots_are_listed_with_local_dates() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 plain 4M");
    for name in ["averyveryverylongsnapshotname", "ü", "3"] {
        lab.qemu_img(&format!("snapshot -c {name} plain"));
    }
    lab.patched("plain", "b", |bytes| {
        // Clock, VM state size and instruction count of the three entries of the snapshot table.
        let be64 =
            |at: usize, bytes: &[u8]| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let first = be64(64, bytes);
        bytes[first + 24..first + 32].copy_from_slice(&444_445_147_089_000_000u64.to_be_bytes());
        bytes[first + 40..first + 48].copy_from_slice(&(1536u64 << 20).to_be_bytes());
        let second = (first + 40 + 24 + 1 + 29).next_multiple_of(8);
        bytes[second + 24..second + 32].copy_from_slice(&3_723_456_789_012u64.to_be_bytes());
        bytes[second + 56..second + 64].fill(0xff);
    });
    same_for(&lab, &["plain", "b"]);
}

#[test]
fn header_bits_are_shown() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 plain 4M");
    lab.patched("plain", "dirty", |bytes| bytes[79] = 1);
    lab.patched("plain", "corrupt", |bytes| bytes[79] = 2);
    lab.patched("plain", "both", |bytes| bytes[79] = 3);
    lab.patched("plain", "unknown", |bytes| bytes[78] = 1);
    lab.patched("plain", "short", |bytes| bytes.truncate(50));
    same_for(&lab, &["dirty", "corrupt", "both", "unknown", "short"]);
}

#[test]
fn what_cannot_be_opened_is_refused_in_the_same_words() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("d")).unwrap();
    same_for(&lab, &["nofile", "d", "''", "foo:bar"]);
    lab.same(&["info -f bogus d", "info nodir/x"]);
}

#[test]
fn names_with_odd_characters_stay_readable_for_programs() {
    let lab = Lab::new();
    for name in ["n\n\"\\\u{1}\u{7f}ü😀", "tab\there", "a,b=c"] {
        lab.write(name, &[0; 512]);
        // For people, control characters are escaped: `names` looks at that.
        let human = name.contains(char::is_control);
        let lines = forms(name).into_iter().filter(|line| !human || line.contains("json"));
        lab.same(&lines.collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>());
    }
}
