//! `resize`: sizes, what is allocated of them, and the words of every refusal.

use crate::harness::Lab;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 3M").qemu_io("raw", "raw", &["write -P 1 0 1M", "write -P 2 2M 64k"]);
    lab.write("odd", &[7; 1000]);
    lab.qemu_img("create -q -f qcow2 plain 8M");
    lab.qemu_io("qcow2", "plain", &["write -P 1 0 1M", "write -P 2 5M 1000k"]);
    lab.qemu_img("create -q -f qcow2 -b raw -F raw over 1000k");
    lab.qemu_io("qcow2", "over", &["write -P 3 512k 64k"]);
    lab
}

#[test]
fn command_lines_are_refused_in_the_same_words() {
    let lab = lab();
    lab.same(&[
        "resize",
        "resize plain",
        "resize --shrink +1M",
        "resize plain 1M 2M",
        "resize a plain 1M",
        "resize plain -1M x",
        "resize -1M",
        "resize -1M plain",
        "resize -q -1M plain",
        "resize plain -q -1M",
        "resize plain -1M -1M",
        "resize plain -.5M",
        "resize plain --1M",
        "resize plain -f raw -1M",
        "resize plain -f -1M",
        "resize -- -1M plain",
        "resize plain 1x",
        "resize plain +1x",
        "resize plain -1x",
        "resize plain +",
        "resize plain ''",
        "resize plain =1M",
        "resize plain +-1M",
        "resize plain +-1",
        "resize plain 16E",
        "resize nofile 1x",
        "resize nofile --preallocation=x 1M",
        "resize nofile +1M",
        "resize --preallocation=bogus plain +1M",
        "resize --preallocation plain 1M",
        "resize --object bogus,id=x plain 1M",
        "resize -f qcow2 --image-opts driver=qcow2,file.filename=plain 1M",
        "resize --shr --sh plain 1M -x",
    ]);
}

#[test]
fn sizes_that_cannot_be_are_refused_and_nothing_is_lost() {
    let lab = lab();
    lab.same_result(
        &[
            "resize plain 0",
            "resize plain -9M",
            "resize --shrink plain -8M",
            "resize plain 8E",
            "resize plain +8E",
            "resize plain 7.9E",
            "resize plain 100",
            "resize --shrink plain 100",
            "resize --shrink plain -5",
            "resize plain 4M",
            "resize -q plain -512",
            "resize plain -- -1M",
            "resize --preallocation=metadata plain -1M",
            "resize --preallocation=metadata --shrink plain -1M",
            "resize --preallocation=full plain +0",
            "resize -f bogus plain 1M",
        ],
        Some("plain"),
    );
    lab.same_result(
        &[
            "resize -f raw raw 100",
            "resize --preallocation=metadata -f raw raw +1M",
            "resize --preallocation=falloc --shrink -f raw raw -1M",
            "resize -f qcow2 raw 1M",
        ],
        Some("raw"),
    );
}

#[test]
fn the_disk_has_the_new_size_and_what_it_had() {
    let lab = lab();
    lab.same_result(
        &[
            "resize plain +16M",
            "resize plain 8M",
            "resize plain -0",
            "resize plain +512",
            "resize -q plain 9M",
            "resize plain ++1M",
            "resize plain 40G",
            "resize --shrink plain 5500k",
            "resize plain -7M --shr",
            "resize --shrink plain 1",
            "resize --shrink plain 512",
            "resize --preallocation=off plain 9M",
            "resize --preallocation=metadata plain 9M",
            "resize --preallocation=falloc plain 9M",
            "resize --preallocation=full plain +100k",
            "resize --image-opts driver=qcow2,file.filename=plain 9M",
        ],
        Some("plain"),
    );
    lab.same_result(
        &[
            "resize -f raw raw 128M",
            "resize raw +1M",
            "resize raw 2M",
            "resize -q raw --shrink 2M",
            "resize -f raw --shrink raw 1000",
            "resize -f raw --preallocation=falloc raw 4M",
            "resize -f raw --preallocation=full raw +1000",
        ],
        Some("raw"),
    );
    lab.same_result(&["resize -f raw odd +13", "resize -f raw --shrink odd 7"], Some("odd"));
}

#[test]
fn what_a_longer_backing_file_has_stays_hidden() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -b raw -F raw -o compat=0.10 old 2M");
    lab.qemu_img("create -q -f qcow2 -b raw -F raw -o extended_l2=on fine 1001k");
    let options =
        ["4M", "2M", "+512", "--shrink 512k", "--preallocation=falloc 3M", "--preallocation=full 5M"];
    for image in ["over", "old", "fine"] {
        let lines = options.map(|options| format!("resize {image} {options}"));
        lab.same_result(&lines.each_ref().map(String::as_str), Some(image));
    }
}

#[test]
fn snapshots_bitmaps_and_data_files_keep_up_or_refuse() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -o compat=0.10 old 2M").qemu_img("snapshot -c one old");
    lab.qemu_img("snapshot -c one plain").qemu_img("bitmap --add plain map");
    lab.qemu_img("create -q -f qcow2 -o data_file=apart data 2M").qemu_io("qcow2", "data", &["write 0 2M"]);
    lab.same_result(&["resize old 4M", "resize --shrink old 1M"], Some("old"));
    lab.same_result(&["resize plain 10M", "resize --shrink plain 1M"], Some("plain"));
    lab.same_result(&["resize data 4M", "resize --shrink data 1M"], Some("data"));
}

#[test]
fn encrypted_images_need_their_key() {
    let lab = Lab::new();
    let secret = "--object secret,id=s,data=abc";
    lab.qemu_img(&format!("create -q {secret} -f luks -o key-secret=s,iter-time=10 volume 1M"));
    let volume = format!("{secret} --image-opts driver=luks,file.filename=volume,key-secret=s");
    lab.same(&["resize volume 2M", "resize -f luks volume +1M"]);
    lab.same_result(
        &[
            &format!("resize {volume} +1M"),
            &format!("resize --shrink {volume} 512k"),
            &format!("resize --preallocation=full {volume} 2M"),
            &format!("resize --preallocation=metadata {volume} 2M"),
            &format!("resize {volume} 100"),
        ],
        None,
    );
}
