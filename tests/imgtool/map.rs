//! `map`, for people and for programs.

use crate::harness::Lab;

fn same_for(lab: &Lab, names: &[&str]) {
    let options = [
        "",
        " --output=json",
        " --output=json --start-offset=100k --max-length=200k",
        " --output=json -s 100 -l 1000",
        " --start-offset=1M",
        " --output=json --max-length=0",
        " --output=json --start-offset=9G",
        " -U -f raw --output=json",
    ];
    let lines: Vec<String> = names
        .iter()
        .flat_map(|name| options.iter().map(move |options| format!("map{options} {name}")))
        .collect();
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn raw_files_show_their_holes() {
    let lab = Lab::new();
    lab.qemu_img("create -q holes 8M").qemu_img("create -q nothing 2M");
    lab.qemu_io("raw", "holes", &["write 0 64k", "write 1M 68k", "write 7M 1M"]);
    lab.write("odd", &[1; 1000]).write("empty", b"");
    same_for(&lab, &["holes", "nothing", "odd", "empty"]);
}

#[test]
fn qcow2_images_show_data_zeros_and_what_is_not_there() {
    let lab = Lab::new();
    for cluster in ["512", "4k", "64k", "2M"] {
        lab.qemu_img(&format!("create -q -f qcow2 -o cluster_size={cluster} x{cluster} 20M"));
        let writes = [
            "write 0 64k",
            "write 1M 4M",
            "write 128k 4k",
            "write -z 2M 1M",
            "discard 4M 64k",
            "write 19M 1M",
        ];
        lab.qemu_io("qcow2", &format!("x{cluster}"), &writes);
        same_for(&lab, &[&format!("x{cluster}")]);
    }
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata metadata 3M");
    lab.qemu_img("create -q -f qcow2 -o preallocation=full full 3M");
    lab.qemu_img("convert -f qcow2 -c -O qcow2 x64k compressed");
    lab.qemu_img("create -q -f qcow2 tiny 1000");
    lab.qemu_img("create -q -f qcow2 -o data_file=d.raw data 3M");
    lab.qemu_img("create -q -f qcow2 -o data_file=r.raw,data_file_raw=on raw 3M");
    for image in ["data", "raw"] {
        lab.qemu_io("qcow2", image, &["write 0 64k", "write 1M 100k", "write -z 1M 64k", "discard 2M 64k"]);
    }
    same_for(&lab, &["metadata", "full", "compressed", "tiny", "data", "raw"]);
}

#[test]
fn subclusters_are_shown_one_by_one() {
    let lab = Lab::new();
    lab.qemu_img("create -q base 3M").qemu_io("raw", "base", &["write 0 64k", "write 1M 64k"]);
    for (name, options) in [
        ("plain", "cluster_size=16k"),
        ("kept", "preallocation=metadata"),
        ("over", "backing_file=base,backing_fmt=raw"),
        ("over-kept", "backing_file=base,backing_fmt=raw,preallocation=metadata,cluster_size=2M"),
    ] {
        lab.qemu_img(&format!("create -q -f qcow2 -o extended_l2=on,{options} {name} 4M"));
        same_for(&lab, &[name]);
        let writes = [
            "write 3k 1k",
            "write 60k 70k",
            "write -z 66k 4k",
            "write -z -u 1M 66k",
            "discard 1M 100k",
            "write 2M 1M",
            "discard 2M 200k",
        ];
        lab.qemu_io("qcow2", name, &writes);
        if !options.contains("preallocation") {
            lab.qemu_io("qcow2", name, &["write -c 3M 512k", "write -z 3075k 10k"]);
        }
        same_for(&lab, &[name]);
        lab.qemu_img(&format!("snapshot -c one {name}")).qemu_io("qcow2", name, &["write 62k 1k"]);
        same_for(&lab, &[name]);
    }
}

#[test]
fn chains_show_which_layer_decides() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("d")).unwrap();
    lab.qemu_img("create -q base 3M").qemu_io("raw", "base", &["write 0 64k", "write 1M 64k"]);
    lab.qemu_img("create -q -f qcow2 -b base -F raw mid").qemu_io("qcow2", "mid", &["write 128k 64k"]);
    lab.qemu_img("create -q -f qcow2 -b ../mid -F qcow2 d/top 8M");
    lab.qemu_io("qcow2", "d/top", &["write 256k 128k", "write -z 1M 64k", "write 7M 1k"]);
    lab.qemu_img("create -q -f qcow2 -b d/top -F qcow2 -o cluster_size=4k over 16M");
    lab.qemu_img("create -q -f qcow2 blank 4M").qemu_img("create -q -f qcow2 -b blank -F qcow2 over-blank");
    lab.qemu_img("create -q -f qcow2 -u -b nofile -F raw orphan 1M");
    same_for(&lab, &["mid", "d/top", "over", "over-blank", "orphan", "nofile"]);
}
