//! `compare`: verdicts, the place of the first difference, progress and exit status are qemu-img's.

use crate::harness::Lab;
use crate::seed::seed_or;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Runs `compare` over every pair of images, in both orders.
fn same_for_pairs(lab: &Lab, options: &[&str], names: &[&str]) {
    let mut lines = Vec::new();
    for option in options {
        for one in names {
            lines.extend(names.iter().map(|other| format!("compare{option} {one} {other}")));
        }
    }
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn equal_disks_are_identical_whatever_holds_them() {
    let lab = Lab::new();
    lab.write("full", &[5; 3 << 20]).qemu_img("convert -O qcow2 full plain");
    lab.qemu_img("convert -c -O qcow2 full compressed");
    lab.qemu_img("convert -O qcow2 -o extended_l2=on full subclusters");
    lab.qemu_img("create -q -f qcow2 -b plain -F qcow2 overlay");
    lab.qemu_img("create -q -f qcow2 apart 3M");
    // What is in the middle of the disk stands at the start of the file.
    lab.qemu_io("qcow2", "apart", &["write -P 5 1M 1M", "write -P 5 2M 1M", "write -P 5 0 1M"]);
    let names = ["full", "plain", "compressed", "subclusters", "overlay", "apart"];
    same_for_pairs(&lab, &["", " -s"], &names);
    // Progress goes from extent to extent, and compressed clusters are many of these for qemu-img.
    same_for_pairs(&lab, &[" -p -T none"], &["full", "plain", "apart"]);
}

#[test]
fn zeros_are_equal_unless_allocation_counts() {
    let lab = Lab::new();
    std::fs::File::create(lab.path("hole")).unwrap().set_len(3 << 20).unwrap();
    lab.write("written", &[0; 3 << 20]).qemu_img("create -q -f qcow2 blank 3M");
    lab.qemu_img("create -q -f qcow2 zeros 3M").qemu_io("qcow2", "zeros", &["write -z 0 3M"]);
    lab.qemu_img("create -q -f qcow2 kept 3M").qemu_io("qcow2", "kept", &["write 0 3M", "write -z 0 3M"]);
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata tables 3M");
    lab.qemu_img("create -q -f qcow2 -b hole -F raw over-hole");
    lab.qemu_img("create -q -f qcow2 -b blank -F qcow2 over-blank");
    let names = ["hole", "written", "blank", "zeros", "kept", "tables", "over-hole", "over-blank"];
    same_for_pairs(&lab, &["", " -s"], &names);
}

#[test]
fn disks_of_other_sizes_may_only_have_zeros_more() {
    let lab = Lab::new();
    lab.write("small", &[7; 1 << 20]).qemu_img("convert -O qcow2 small small.q");
    for (name, writes) in [("zeros", vec![]), ("data", vec!["write -P 1 5M 1k"])] {
        lab.qemu_img(&format!("convert -O qcow2 small {name}")).qemu_img(&format!("resize -q {name} 6M"));
        lab.qemu_io("qcow2", name, &writes);
    }
    lab.qemu_img("convert -O raw data data.raw");
    lab.qemu_img("create -q -f qcow2 -b small.q -F qcow2 over 6M")
        .write("none", b"")
        .write("odd", &[7; 1000]);
    let names = ["small", "small.q", "zeros", "data", "data.raw", "over", "none", "odd"];
    same_for_pairs(&lab, &[" -p"], &names);
    lab.same(&[
        "compare -s small zeros",
        "compare -p -s data small",
        "compare -q -p small zeros",
        "compare -q small data",
    ]);
}

#[test]
fn the_first_difference_is_told() {
    let lab = Lab::new();
    let seed = seed_or(rand::random());
    let mut random = StdRng::seed_from_u64(seed);
    let mut bytes = vec![0; 9 << 20];
    random.fill(&mut bytes[..]);
    bytes[3 << 20..5 << 20].fill(0);
    lab.write("raw", &bytes)
        .qemu_img("convert -O qcow2 raw plain")
        .qemu_img("convert -c -O qcow2 raw packed");
    for round in 0..4 {
        let at = random.random_range(0..bytes.len());
        lab.patched("raw", "other", |bytes| bytes[at] ^= 1 << random.random_range(0..8));
        let format = ["raw", "qcow2", "qcow2 -c", "qcow2 -o cluster_size=4k"][round % 4];
        lab.qemu_img(&format!("convert -f raw -O {format} other x"));
        let lines: Vec<String> = ["raw", "plain", "packed"]
            .iter()
            .flat_map(|name| [format!("compare {name} x"), format!("compare -s x {name}")])
            .collect();
        lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn scattered_allocation_is_compared_piece_by_piece() {
    let lab = Lab::new();
    let seed = seed_or(rand::random());
    let mut random = StdRng::seed_from_u64(seed);
    let formats = ["raw", "qcow2", "qcow2 -o cluster_size=8k", "qcow2 -o extended_l2=on"];
    for round in 0..3 {
        let mut names = Vec::new();
        for name in ["a", "b"] {
            let format = formats[random.random_range(0..formats.len())];
            lab.qemu_img(&format!("create -q -f {format} {name} 4M"));
            let kind = if format == "raw" { "raw" } else { "qcow2" };
            let writes: Vec<String> = (0..random.random_range(1..6))
                .map(|_| {
                    let (at, len) = (random.random_range(0..1000) * 4, random.random_range(1..24));
                    let zero = if random.random_bool(0.3) { "-z" } else { "-P 3" };
                    format!("write {zero} {at}k {len}k")
                })
                .collect();
            lab.qemu_io(kind, name, &writes.iter().map(String::as_str).collect::<Vec<_>>());
            names.push(name);
        }
        println!("round {round}");
        same_for_pairs(&lab, &[" -p", " -s"], &names);
    }
}

#[test]
fn what_cannot_be_opened_or_read_has_its_own_exit_status() {
    let lab = Lab::new();
    lab.write("x", &[1; 6 << 20]).qemu_img("convert -O qcow2 x y").write("z", &[2; 4096]);
    let rule = "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"8192\"\nonce = \"off\"\n";
    lab.write("rule", rule.as_bytes());
    lab.same(&[
        "compare",
        "compare x",
        "compare x y z",
        "compare nofile x",
        "compare x nofile",
        "compare -p x nofile",
        "compare -q nofile x",
        "compare -f qcow2 x y",
        "compare -F raw x y",
        "compare -f raw -F qcow2 x y",
        "compare -f bogus x y",
        "compare -T bogus x y",
        "compare -T none x y",
        "compare -U x y",
        "compare --image-opts -f raw x y",
        "compare --image-opts -F raw driver=raw,file.filename=x y",
        "compare --image-opts driver=raw,file.filename=x driver=qcow2,file.filename=y",
        "compare --image-opts driver=qcow2,file.filename=x y",
        "compare --object bogus x y",
        "compare --a raw --b qcow2 --c none --i --s x y",
        "compare -f raw -F raw blkdebug:rule:x x",
        "compare --a",
        "compare --cache",
        "compare --x",
        "compare -b",
        "compare --strict=1 x y",
        "compare --prog --qui --forc x y",
        "compare blkdebug:rule:y x",
        "compare -q x blkdebug:rule:y",
        "compare -p z blkdebug:rule:y",
        "compare -s blkdebug:rule:y blkdebug:rule:y",
        "compare x z",
    ]);
}

#[test]
fn encrypted_images_are_compared_by_what_is_in_them() {
    let lab = Lab::new();
    lab.qemu_img("create -q plain 2M").qemu_io("raw", "plain", &["write -P 9 100k 300k"]);
    let secret = "--object secret,id=s,data=abc";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    lab.qemu_img(&format!("convert {secret} -O qcow2 -o {options} plain image"));
    let names = ["driver=raw,file.filename=plain", "driver=qcow2,encrypt.key-secret=s,file.filename=image"];
    let common = format!(" {secret} --image-opts");
    same_for_pairs(&lab, &[&format!("{common} -p")], &names);
}
