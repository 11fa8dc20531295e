//! `amend`: the image afterwards, key slots, and the words of every refusal.

use crate::harness::Lab;

const SECRETS: &str = "--object secret,id=s,data=abc --object secret,id=t,data=other";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 1M").qemu_img("create -q -f qcow2 -b raw -F raw image 4M");
    lab.qemu_io("qcow2", "image", &["write -P 1 0 1M", "write -z 2M 100k", "write -P 1 3M 64k"]);
    lab
}

#[test]
fn command_lines_are_refused_in_the_same_words() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -u -b nofile -F raw orphan 1M");
    lab.same_result(
        &[
            "amend",
            "amend image",
            "amend --forc image",
            "amend -o lazy_refcounts=on",
            "amend -o lazy_refcounts=on a b",
            "amend -o help",
            "amend -U -o compat=1.1 image",
            "amend -o '' image",
            "amend -o ,a image",
            "amend -o compat=foo image",
            "amend -o compat=0.10,lazy_refcounts=on image",
            "amend -o refcount_bits=7 image",
            "amend -o refcount_bits=128 image",
            "amend -o refcount_bits=-1 image",
            "amend -o refcount_bits=x image",
            "amend -o refcount_bits=8,compat=v2 image",
            "amend -o lazy_refcounts=x image",
            "amend -o size=x image",
            "amend -o size=100 image",
            "amend -o size=xx,compat=foo,refcount_bits=x image",
            "amend -o bogus=1 image",
            "amend -p -o bogus=1 image",
            "amend -p -o compat=foo image",
            "amend -o cluster_size=4k image",
            "amend -o preallocation=full image",
            "amend -o compression_type=zstd image",
            "amend -o encryption=on image",
            "amend -o encrypt.format=luks image",
            "amend -o backing_file=x image",
            "amend -o backing_fmt=qcow2 image",
            "amend -o data_file=x image",
            "amend -o data_file_raw=on image",
            "amend -o encrypt.state=active image",
            "amend -o encrypt.keyslot=x image",
            "amend -f raw -o size=2M raw",
            "amend -o compat=1.1 raw",
            "amend -f raw -o help",
            "amend -f bogus -o help",
            "amend -f bogus -o compat=1.1 image",
            "amend -t bogus -o compat=1.1 image",
            "amend -p -o compat=1.1 nofile",
            "amend -o compat=1.1 orphan",
            "amend -f qcow2 -o compat=1.1 --image-opts driver=qcow2,file.filename=image",
        ],
        Some("image"),
    );
}

#[test]
fn the_image_is_the_same_afterwards() {
    let lab = lab();
    lab.same_result(
        &[
            "amend -o lazy_refcounts=on image",
            "amend -p -o lazy_refcounts=on image",
            "amend -q -p -o compat=1.1 image",
            "amend -o compat=0.10 image",
            "amend -o compat=v3,refcount_bits=1 image",
            "amend -o refcount_bits=64 -o lazy_refcounts=on image",
            "amend -o size=8M image",
            "amend -o size=512k,refcount_bits=8 image",
            "amend -o backing_file=raw,backing_fmt=raw image",
            "amend -t none --force -o refcount_bits=32 image",
            "amend -f qcow2 -o compat=0.10 image",
            "amend -o compat=0.10 --image-opts driver=qcow2,file.filename=image",
        ],
        Some("image"),
    );
    lab.qemu_img("create -q -f qcow2 -o compat=0.10 old 1M").qemu_img("snapshot -c one old");
    lab.same_result(&["amend -o size=2M old", "amend -p -o compat=1.1,size=2M old"], Some("old"));
    lab.qemu_img("create -q -f qcow2 -o data_file=d.raw,data_file_raw=on data 1M");
    std::fs::copy(lab.path("d.raw"), lab.path("e.raw")).unwrap();
    lab.same_result(&["amend -o data_file_raw=off data", "amend -o data_file=e.raw data"], Some("data"));
}

#[test]
fn options_are_listed_for_a_format_or_an_image() {
    let lab = lab();
    let said = |line: &str| {
        let output = lab.ours(line);
        assert!(output.status.success(), "{line}");
        String::from_utf8(output.stdout).unwrap()
    };
    let list = said("amend -f qcow2 -o help");
    assert_eq!(said("amend -o compat=1.1,help image"), list);
    assert_eq!(said("amend -o ? -f qcow2 image"), list);
    let names = |list: &str| -> Vec<String> {
        list.lines().map(|line| line.split(" - ").next().unwrap().to_owned()).collect()
    };
    for format in ["qcow2", "luks"] {
        let line = format!("amend -f {format} -o help");
        let (ours, real) = (said(&line), lab.real(&line).stdout);
        assert_eq!(names(&ours), names(&String::from_utf8(real).unwrap()));
    }
}

#[test]
fn key_slots_are_filled_and_erased() {
    let lab = Lab::new();
    lab.qemu_img(&format!(
        "create -q {SECRETS} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 image 1M"
    ));
    lab.qemu_img(&format!("create -q {SECRETS} -f luks -o key-secret=s,iter-time=10 volume 1M"));
    for (driver, image, prefix) in [("qcow2", "image", "encrypt."), ("luks", "volume", "")] {
        let opened = |secret: &str| {
            format!(
                "{SECRETS} --image-opts driver={driver},file.filename={image},{prefix}key-secret={secret}"
            )
        };
        lab.qemu_io_with_key(
            &format!("driver={driver},file.filename={image},{prefix}key-secret=s"),
            &["write -P 7 0 9k"],
        );
        let options = |text: &str| {
            let named = text.split(',').map(|option| format!("{prefix}{option}"));
            named.collect::<Vec<_>>().join(",")
        };
        let line = |text: &str| format!("amend -o {} {}", options(text), opened("s"));
        let refused = [
            "state=active",
            "state=foo",
            "state=inactive,keyslot=0",
            "state=inactive,keyslot=1",
            "state=inactive,keyslot=9",
            "state=inactive,old-secret=s",
            "state=inactive,old-secret=t",
            "state=inactive",
            "state=active,new-secret=t,keyslot=0",
            "state=active,new-secret=t,keyslot=-1",
            "state=active,new-secret=t,keyslot=x",
            "state=active,new-secret=zz",
            "keyslot=1",
            "iter-time=10",
        ];
        let lines = refused.map(line);
        lab.same_result(&lines.each_ref().map(String::as_str), None);
        lab.same(&[&format!("amend -o {} {image}", options("state=active,new-secret=t"))]);
        let must = |line: &str| {
            let output = lab.ours(line);
            assert!(output.status.success(), "{line}: {output:?}");
        };
        must(&line("state=active,new-secret=t,iter-time=10,keyslot=3"));
        lab.qemu_img(&format!("convert -O raw {} by-new", opened("t")));
        must(&line("state=inactive,old-secret=s"));
        assert_eq!(lab.ours(&format!("check {}", opened("s"))).status.code(), Some(1));
        lab.qemu_img(&format!("convert -O raw {} by-new", opened("t")));
        assert_eq!(std::fs::read(lab.path("by-new")).unwrap()[..9 << 10], [7; 9 << 10]);
        // The last one goes by force alone.
        let last = format!("amend -o {} {}", options("state=inactive,keyslot=3"), opened("t"));
        lab.same_result(&[&last], None);
        must(&last.replacen("amend", "amend -p --force", 1));
    }
}

#[test]
fn options_and_key_slots_change_in_one_go_or_not_at_all() {
    let lab = Lab::new();
    lab.qemu_img(&format!(
        "create -q {SECRETS} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 image 1M"
    ));
    lab.qemu_img(&format!("create -q {SECRETS} -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes 1M"));
    let image = "--image-opts driver=qcow2,file.filename=image,encrypt.key-secret=s";
    let aes = "--image-opts driver=qcow2,file.filename=aes,encrypt.key-secret=s";
    lab.same_result(
        &[
            &format!("amend {SECRETS} -o size=2M,compat=foo {image}"),
            &format!("amend {SECRETS} -o encrypt.new-secret=t,lazy_refcounts=on {image}"),
            &format!("amend {SECRETS} -o encrypt.state=active,encrypt.new-secret=t,size=3M {aes}"),
            &format!("amend {SECRETS} -o lazy_refcounts=on {aes}"),
            "amend -o lazy_refcounts=on image",
        ],
        None,
    );
    let both = "encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=10,size=3M,lazy_refcounts=on";
    assert!(lab.ours(&format!("amend {SECRETS} -o {both} {image}")).status.success());
    let facts: serde_json::Value =
        serde_json::from_slice(&lab.real("info --output=json image").stdout).unwrap();
    let data = &facts["format-specific"]["data"];
    assert_eq!((&facts["virtual-size"], &data["lazy-refcounts"]), (&(3 << 20).into(), &true.into()));
    assert_eq!(data["encrypt"]["slots"][1]["active"], true);
}
