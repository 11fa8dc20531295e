//! `check`: findings, statistics, exit status.

use crate::harness::Lab;

fn same_for(lab: &Lab, names: &[&str]) {
    let options = ["", " --output=json", " -q", " -q --output=json", " -U -T none", " -f qcow2", " -f raw"];
    let lines: Vec<String> = names
        .iter()
        .flat_map(|name| options.iter().map(move |options| format!("check{options} {name}")))
        .collect();
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn sound_images_give_the_same_statistics() {
    let lab = Lab::new();
    lab.qemu_img("create -q base 3M").qemu_io("raw", "base", &["write -P 7 0 300k", "write -P 8 1M 64k"]);
    lab.qemu_img("create -q -f qcow2 -b base -F raw plain");
    lab.qemu_io("qcow2", "plain", &["write 1M 64k", "write 0 1M", "write -z 2M 64k", "discard 128k 64k"]);
    lab.qemu_img("convert -c -O qcow2 base compressed");
    lab.qemu_img("create -q -f qcow2 -o compat=v2,cluster_size=1k v2 9M").qemu_io(
        "qcow2",
        "v2",
        &["write 5M 77k"],
    );
    lab.qemu_img("create -q -f qcow2 -o refcount_bits=1 narrow 9M").qemu_io(
        "qcow2",
        "narrow",
        &["write 5M 77k"],
    );
    lab.qemu_img("create -q -f qcow2 snapshots 9M").qemu_io("qcow2", "snapshots", &["write 5M 777k"]);
    lab.qemu_img("snapshot -c one snapshots").qemu_io("qcow2", "snapshots", &["write 4M 2M"]);
    lab.qemu_img("snapshot -c two snapshots");
    lab.qemu_img("create -q -f qcow2 blank 1M").qemu_img("create -q -f qcow2 -o preallocation=full full 2M");
    lab.qemu_img("create -q -f qcow2 -u -b nofile -F raw orphan 1M");
    same_for(
        &lab,
        &["base", "plain", "compressed", "v2", "narrow", "snapshots", "blank", "full", "orphan", "nofile"],
    );
}

#[test]
fn subclusters_that_make_no_sense_are_told_in_the_same_words() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 -o extended_l2=on x 4M");
    let writes = ["write -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 130k 1k", "write -z 192k 3k"];
    lab.qemu_io("qcow2", "x", &writes);
    let at = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l2_of = move |bytes: &[u8]| (at(bytes, at(bytes, 40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    let word = |bytes: &mut [u8], index: usize, value: u64| {
        let place = l2_of(bytes) + 8 * index;
        bytes[place..place + 8].copy_from_slice(&value.to_be_bytes());
    };
    lab.patched("x", "both", |bytes| word(bytes, 1, 1 << 32 | 1));
    lab.patched("x", "all", |bytes| word(bytes, 5, u64::MAX));
    lab.patched("x", "nowhere", |bytes| word(bytes, 0, 0));
    lab.patched("x", "unallocated", |bytes| word(bytes, 7, 2));
    lab.patched("x", "zero-and-unallocated", |bytes| word(bytes, 9, 1 << 35 | 1 << 3));
    lab.patched("x", "compressed", |bytes| word(bytes, 3, 1));
    lab.patched("x", "compressed-zero", |bytes| word(bytes, 3, 1 << 32));
    lab.patched("x", "unaligned", |bytes| word(bytes, 0, 1 << 63 | 0x50200));
    lab.patched("x", "unaligned-zero", |bytes| {
        word(bytes, 0, 1 << 63 | 0x50200);
        word(bytes, 1, 1 << 32);
    });
    lab.patched("x", "reserved", |bytes| word(bytes, 0, 1 << 63 | 0x50002));
    lab.patched("x", "old-zero-flag", |bytes| word(bytes, 0, 1 << 63 | 0x50001));
    lab.patched("x", "old-zero-flag-alone", |bytes| word(bytes, 12, 1));
    let names = [
        "x",
        "both",
        "all",
        "nowhere",
        "unallocated",
        "zero-and-unallocated",
        "compressed",
        "compressed-zero",
        "unaligned",
        "unaligned-zero",
        "reserved",
        "old-zero-flag",
        "old-zero-flag-alone",
    ];
    same_for(&lab, &names);
}

#[test]
fn damage_is_told_in_the_same_words() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 x 4M");
    lab.qemu_io("qcow2", "x", &["write -P 1 0 64k", "write -P 1 256k 256k"]);
    let at = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l2_of = move |bytes: &[u8]| (at(bytes, at(bytes, 40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    let entry = |bytes: &mut [u8], index: usize, value: u64| {
        let place = l2_of(bytes) + 8 * index;
        bytes[place..place + 8].copy_from_slice(&value.to_be_bytes());
    };
    let copied = 1 << 63;
    lab.patched("x", "leak", |bytes| entry(bytes, 0, 0));
    lab.patched("x", "twice", |bytes| entry(bytes, 1, copied | 0x50000));
    lab.patched("x", "both", |bytes| {
        entry(bytes, 1, copied | 0x50000);
        entry(bytes, 4, 0);
    });
    lab.patched("x", "beyond", |bytes| entry(bytes, 1, copied | 0x1000_0000));
    lab.patched("x", "unaligned", |bytes| entry(bytes, 1, copied | 0x50200));
    lab.patched("x", "reserved", |bytes| entry(bytes, 1, copied | 0x50100));
    lab.patched("x", "dirty", |bytes| bytes[79] = 1);
    lab.patched("x", "corrupt-bit", |bytes| bytes[79] = 2);
    lab.patched("x", "unknown-bit", |bytes| bytes[78] = 1);
    same_for(
        &lab,
        &["leak", "twice", "both", "beyond", "unaligned", "reserved", "dirty", "corrupt-bit", "unknown-bit"],
    );
}
