//! `convert`'s rarer options: what they do is what qemu-img does, and so is what they refuse, in the same order.

use crate::harness::Lab;

/// Images with snapshots, bitmaps, holes, and faults.
fn sources() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 4M").qemu_io("raw", "raw", &["write -P 5 0 1M", "write -P 6 2M 100k"]);
    lab.qemu_img("create -q other 4M").qemu_io("raw", "other", &["write -P 7 3M 64k"]);
    lab.qemu_img("convert -f raw -O qcow2 raw snaps").qemu_img("snapshot -c one snaps");
    lab.qemu_io("qcow2", "snaps", &["write -P 9 0 64k", "write -z 64k 128k"])
        .qemu_img("snapshot -c two snaps");
    lab.qemu_io("qcow2", "snaps", &["write -P 1 1M 64k"]);
    lab.qemu_img("create -q -f qcow2 marks 4M").qemu_img("bitmap --add marks all");
    lab.qemu_img("bitmap --add --disable marks stopped").qemu_img("bitmap --add -g 4k marks fine");
    lab.qemu_io("qcow2", "marks", &["write -P 9 1M 64k", "write -P 8 3M 5k"]);
    lab.qemu_img("create -q -f qcow2 mark 4M").qemu_img("bitmap --add mark all");
    lab.qemu_img("convert -f raw -O qcow2 raw full").qemu_img("create -q -f qcow2 blank 4M");
    lab.qemu_img("create -q -f qcow2 small 2M").qemu_img("create -q -f qcow2 big 8M");
    lab.qemu_img("create -q -f qcow2 -b raw -F raw over")
        .qemu_img("create -q -f qcow2 -b small -F qcow2 tall 4M");
    lab.qemu_io("qcow2", "tall", &["write -P 3 3M 64k"]);
    lab.write("reads", FAULTS.replace("KIND", "read").as_bytes());
    lab.write("status", FAULTS.replace("KIND", "block-status").as_bytes());
    lab
}

/// A sector that blkdebug fails at.
const FAULTS: &str = "[inject-error]\nevent = \"none\"\niotype = \"KIND\"\nerrno = \"5\"\nsector = \"100\"\n";

#[test]
fn snapshots_are_copied_by_id_and_by_name() {
    let lab = sources();
    let names = ["one", "1", "two", "snapshot.id=1", "snapshot.name=two", "snapshot.id=2,snapshot.name=two"];
    let mut lines: Vec<String> = names.iter().map(|name| format!("convert -l {name} snaps out")).collect();
    lines.push("convert -l two -O qcow2 -c snaps out".into());
    lines.push("convert -l one -C -O qcow2 snaps out".into());
    lab.same_result(&lines.iter().map(String::as_str).collect::<Vec<_>>(), Some("out"));
}

#[test]
fn bitmaps_come_along() {
    let lab = sources();
    let lines = [
        "convert --bitmaps -O qcow2 marks out",
        "convert --bitmaps --skip-broken-bitmaps -c -O qcow2 marks out",
        "convert --bitmaps -O qcow2 -o cluster_size=4k marks out",
        "convert --bitmaps -l one -O qcow2 snaps out",
    ];
    lab.same_result(&lines, Some("out"));
    lab.same_result(&["convert -n --bitmaps -O qcow2 marks blank"], Some("blank"));
    let refused = [
        "convert --bitmaps -O raw marks out",
        "convert --bitmaps -O qcow2 raw out",
        "convert --bitmaps -O qcow2 marks marks out",
        "convert --bitmaps -O qcow2 -o compat=0.10 marks out",
        "convert -n --bitmaps -O qcow2 marks small",
        "convert -n --bitmaps -O qcow2 mark big",
        "convert -n --bitmaps marks other",
        "convert --skip-broken-bitmaps -O qcow2 marks out",
    ];
    lab.same_result(&refused, None);
}

#[test]
fn broken_bitmaps_are_left_out_or_refused() {
    let lab = sources();
    let mut bytes = std::fs::read(lab.path("marks")).unwrap();
    // In the directory, 12 bytes with its flags and other things stand before a bitmap's name. Old directories may be
    // about; their flags say that the bitmap is in use already.
    for name in 24..bytes.len() - 3 {
        if bytes[name..].starts_with(b"all") && bytes[name - 9] == 2 {
            bytes[name - 9] = 3;
        }
    }
    lab.write("marks", &bytes);
    let lines = [
        "convert --bitmaps --skip-broken-bitmaps -O qcow2 marks out",
        "convert --bitmaps -O qcow2 marks out",
    ];
    lab.same_result(&lines, Some("out"));
}

#[test]
fn what_cannot_be_read_is_zeros_where_that_is_wanted() {
    let lab = sources();
    let lines = [
        "convert --salvage -f raw blkdebug:reads:raw out",
        "convert --salvage -q -f raw blkdebug:reads:raw out",
        "convert --salvage -f raw -O qcow2 blkdebug:reads:raw out",
        "convert --salvage -f raw blkdebug:status:raw out",
        "convert --salvage -f raw raw out",
        "convert --salvage -O qcow2 -B raw -F raw over out",
    ];
    lab.same_result(&lines, Some("out"));
    lab.same_result(
        &["convert -f raw blkdebug:reads:raw out", "convert -f raw blkdebug:status:raw out"],
        None,
    );
}

#[test]
fn the_file_system_may_copy() {
    let lab = sources();
    let lines =
        ["raw", "snaps", "over", "tall", "other raw"].map(|source| format!("convert -C {source} out"));
    let lines =
        lines.into_iter().chain(["snaps", "over"].map(|source| format!("convert -C -O qcow2 {source} out")));
    lab.same_result(&lines.collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>(), Some("out"));
    lab.same_result(&["convert -C -n raw other", "convert -C -n -O raw full other"], Some("other"));
}

#[test]
fn an_image_that_is_there_is_written_as_qemu_img_writes_it() {
    let lab = sources();
    let lines = [
        "convert -n -O qcow2 other full",
        "convert -n -S 0 -O qcow2 other full",
        "convert -n -c -O qcow2 other full",
        "convert -n -W -O qcow2 tall full",
        "convert -n --target-is-zero -O qcow2 other full",
    ];
    lab.same_result(&lines, Some("full"));
    for line in lines {
        // What is zero, what is data and what is neither is the same too.
        assert_eq!(lab.shape_after(line, "full", false), lab.shape_after(line, "full", true), "{line}");
    }
    let lines = [
        "convert -n --target-image-opts raw driver=raw,file.filename=other",
        "convert -n --target-image-opts -t none raw driver=raw,file.filename=other",
        "convert -n --target-is-zero raw other",
        "convert -n -r 1G raw other",
    ];
    lab.same_result(&lines, Some("other"));
    let lines = [
        "convert -n --target-image-opts raw driver=qcow2,file.filename=blank",
        "convert -n -c -O qcow2 raw blank",
    ];
    lab.same_result(&lines, Some("blank"));
    lab.same_result(&["convert -n --target-is-zero -O qcow2 other over"], Some("over"));
    lab.same_result(
        &["convert -O qcow2 -B small -F qcow2 tall out", "convert -O qcow2 tall out"],
        Some("out"),
    );
}

#[test]
fn refusals_are_the_same_and_in_the_same_order() {
    let lab = sources();
    let mistakes = [
        "-c -C",
        "-S 4k -C",
        "--target-image-opts",
        "--target-is-zero",
        "--skip-broken-bitmaps",
        "-O bogus",
        "-t bogus",
        "--bitmaps",
        "-l nope",
        "nofile",
    ];
    let mut lines = Vec::new();
    for (at, one) in mistakes.iter().enumerate() {
        lines.push(format!("convert {one} raw out"));
        lines.extend(mistakes[at + 1..].iter().map(|other| format!("convert {one} {other} raw out")));
    }
    let more = [
        "convert --salvage -C raw out",
        "convert -n -o size=1 -T bogus raw out",
        "convert -T bogus -B raw raw out",
        "convert -l one snaps snaps out",
        "convert -l snapshot.id=1 snaps raw out",
        "convert -l '' snaps out",
        "convert -l snapshot.bogus=1 snaps out",
        "convert -l one raw out",
        "convert -r x raw out",
        "convert -r -1 raw out",
        "convert -r 1x raw out",
        "convert -n -c -O qcow2 raw full",
        "convert -n --target-image-opts raw nofile",
        "convert -n --target-image-opts raw driver=raw,file.filename=nofile",
        "convert -n --target-image-opts -O raw raw driver=raw,file.filename=other",
        "convert -n --target-is-zero -B raw -F raw -O qcow2 other over",
        "convert -n -O qcow2 raw small",
        "convert -n -O qcow2 raw nofile",
    ];
    lines.extend(more.map(str::to_owned));
    lab.same_result(&lines.iter().map(String::as_str).collect::<Vec<_>>(), None);
}
