//! Secrets, encrypted images and LUKS volumes.

use crate::harness::Lab;

const SECRET: &str = "--object secret,id=s,data=abc";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img(&format!(
        "create -q {SECRET} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.q 1M"
    ));
    lab.qemu_img(&format!("create -q {SECRET} -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes.q 1M"));
    lab.qemu_img(&format!("create -q {SECRET} -f luks -o key-secret=s,iter-time=10 volume 1M"));
    lab.qemu_img("create -q -f qcow2 plain 1M");
    for (driver, image, option) in
        [("qcow2", "luks.q", "encrypt."), ("qcow2", "aes.q", "encrypt."), ("luks", "volume", "")]
    {
        let image = described(driver, image, option);
        lab.qemu_io_with_key(&image, &["write -P 7 1k 100k", "write -P 9 500k 3k"]);
    }
    lab
}

fn described(driver: &str, file: &str, option: &str) -> String {
    format!("driver={driver},file.filename={file},{option}key-secret=s")
}

#[test]
fn encrypted_images_are_described_alike() {
    let lab = lab();
    lab.qemu_img(&format!(
        "create -q {SECRET} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,\
         encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1,compat=0.10 essiv.q 1M"
    ));
    lab.qemu_img(&format!(
        "create -q {SECRET} -f luks -o key-secret=s,iter-time=10,cipher-mode=cbc,ivgen-alg=essiv essiv 1M"
    ));
    lab.qemu_img(&format!(
        "create -q {SECRET} -f qcow2 -b plain -F qcow2 -o encrypt.format=aes,encrypt.key-secret=s top.q"
    ));
    let mut lines = Vec::new();
    for name in ["luks.q", "aes.q", "volume", "essiv.q", "essiv", "top.q"] {
        for form in ["info", "info --output=json", "info --backing-chain"] {
            lines.push(format!("{form} {name}"));
        }
    }
    for (driver, name, option) in
        [("qcow2", "luks.q", "encrypt."), ("qcow2", "aes.q", "encrypt."), ("luks", "volume", "")]
    {
        for form in ["info", "info --output=json"] {
            lines.push(format!("{form} {SECRET} --image-opts {}", described(driver, name, option)));
        }
    }
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn data_is_shown_with_the_key_and_refused_without_in_the_same_words() {
    let lab = lab();
    let mut lines = Vec::new();
    for (driver, name, option) in
        [("qcow2", "luks.q", "encrypt."), ("qcow2", "aes.q", "encrypt."), ("luks", "volume", "")]
    {
        let image = described(driver, name, option);
        for command in ["check", "check --output=json", "map", "map --output=json"] {
            lines.push(format!("{command} {name}"));
            lines.push(format!("{command} {SECRET} --image-opts {image}"));
            lines.push(format!("{command} --object secret,id=s,data=wrong --image-opts {image}"));
            lines.push(format!("{command} --image-opts {image}"));
        }
    }
    // An AES image has no way to tell a wrong key, and JSON names what was given.
    lines.retain(|line| !(line.contains("wrong") && line.contains("aes.q") || line.contains("json")));
    for more in [
        "check --image-opts driver=qcow2,encrypt.key-secret=s",
        "check --image-opts driver=qcow2,file.filename=plain,bogus=1",
        "check --image-opts driver=raw,file.filename=plain,encrypt.key-secret=s",
        "check -f qcow2 --image-opts driver=qcow2,file.filename=plain",
        "check --image-opts driver=qcow2,file.filename=plain,encrypt.format=luks",
        "check --image-opts driver=qcow2,file.filename=plain",
        "check --object secret,id=s plain",
        "check --object secret,id=s,data=a,format=x plain",
        "check --object secret,id=s,file=/dev/null,bogus=x plain",
        "check --object secret,id=s,data=a,keyid=m plain",
        "check --object foo,id=s plain",
    ] {
        lines.push(more.to_owned());
    }
    lab.same(&lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn content_is_converted_out_of_encrypted_images_and_into_them() {
    let lab = lab();
    for (driver, name, option, format) in [
        ("qcow2", "luks.q", "encrypt.", "encrypt.format=luks,encrypt.iter-time=10,"),
        ("qcow2", "aes.q", "encrypt.", "encrypt.format=aes,"),
        ("luks", "volume", "", "iter-time=10,"),
    ] {
        let image = described(driver, name, option);
        lab.qemu_img(&format!("convert {SECRET} --image-opts {image} -O raw real"));
        let ours = lab.ours(&format!("convert {SECRET} --image-opts {image} -O raw ours"));
        assert!(ours.status.success(), "{ours:?}");
        let real = std::fs::read(lab.path("real")).unwrap();
        assert_eq!(real[1024], 7);
        assert!(std::fs::read(lab.path("ours")).unwrap() == real, "{name}");
        let options = format!("{format}{option}key-secret=s");
        let made = lab.ours(&format!("convert {SECRET} -f raw real -O {driver} -o {options} made"));
        assert!(made.status.success(), "{made:?}");
        let image = described(driver, "made", option);
        lab.qemu_img(&format!("convert {SECRET} --image-opts {image} -O raw back"));
        assert!(std::fs::read(lab.path("back")).unwrap() == real, "{name}");
        if driver == "qcow2" {
            lab.qemu_img(&format!("check {SECRET} --image-opts {image}"));
        }
    }
}

#[test]
fn a_secret_that_is_cut_at_a_comma_is_not_shown() {
    let lab = lab();
    let ours = lab.ours("info --object secret,id=s,data=abc,hidden plain");
    let told = String::from_utf8_lossy(&ours.stderr).into_owned();
    assert!(!ours.status.success() && told.contains("A parameter is unexpected"), "{told}");
    assert!(!told.contains("hidden"), "{told}");
}

#[test]
fn options_of_encryption_are_refused_in_the_same_words() {
    let lab = Lab::new();
    let mut lines: Vec<String> = [
        "encryption=on",
        "encryption=on,encrypt.format=luks,encrypt.key-secret=s",
        "encrypt.format=luks",
        "encrypt.format=aes",
        "encrypt.format=foo,encrypt.key-secret=s",
        "encrypt.key-secret=s",
        "encrypt.cipher-alg=aes-128",
        "encrypt.format=luks,encrypt.key-secret=zz",
        "encrypt.format=aes,encrypt.key-secret=zz",
        "encrypt.format=aes,encrypt.key-secret=s,encrypt.iter-time=10",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-mode=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.ivgen-alg=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.hash-alg=foo",
    ]
    .iter()
    .map(|options| format!("create {SECRET} -f qcow2 -o {options} new 1M"))
    .collect();
    lines.push("create -f luks new 1M".to_owned());
    lines.push(format!("create {SECRET} -f luks -o key-secret=s,cipher-alg=foo new 1M"));
    lines.push(format!("create {SECRET} -f luks -b a -F raw -o key-secret=s new 1M"));
    lab.same_result(&lines.iter().map(String::as_str).collect::<Vec<_>>(), None);
}

#[test]
fn images_that_are_made_with_any_options_open_with_the_real_tool() {
    let lab = Lab::new();
    for options in [
        "encryption=on",
        "encrypt.format=aes",
        "encrypt.format=luks,encrypt.iter-time=10",
        "encrypt.format=luks,encrypt.iter-time=10,cluster_size=512,compat=0.10",
        "encrypt.format=luks,encrypt.iter-time=10,cluster_size=2M,preallocation=metadata",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=serpent-192,encrypt.hash-alg=sha384",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=cast5-128,encrypt.cipher-mode=cbc",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv",
        "encrypt.format=luks,encrypt.iter-time=0,encrypt.ivgen-alg=plain,encrypt.hash-alg=ripemd160",
    ] {
        let line = format!("create -q {SECRET} -f qcow2 -o {options},encrypt.key-secret=s new 3M");
        let made = lab.ours(&line);
        assert!(made.status.success(), "{line}: {made:?}");
        let image = described("qcow2", "new", "encrypt.");
        lab.qemu_io_with_key(&image, &["read -P 0 0 3M", "write -P 1 3k 70k", "read -P 1 3k 70k"]);
        lab.qemu_img(&format!("check {SECRET} --image-opts {image}"));
    }
    for options in ["iter-time=10", "iter-time=10,cipher-alg=aes-192,preallocation=full"] {
        let made = lab.ours(&format!("create -q {SECRET} -f luks -o {options},key-secret=s new 3M"));
        assert!(made.status.success(), "{options}: {made:?}");
        lab.qemu_io_with_key(&described("luks", "new", ""), &["write -P 1 3k 70k", "read -P 1 3k 70k"]);
    }
}

/// The real tool makes one, of which nothing reads as zeros: what nobody wrote is decrypted.
#[test]
fn a_data_file_that_is_to_read_as_the_disk_is_not_encrypted() {
    let lab = Lab::new();
    let line = format!(
        "create -q {SECRET} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,\
         data_file=data,data_file_raw=on image 1M"
    );
    lab.qemu_img(&line).qemu_img("create -q -f raw zeros 1M");
    let image = described("qcow2", "image", "encrypt.");
    let compare = format!("compare {SECRET} --image-opts driver=raw,file.filename=zeros {image}");
    assert_eq!(lab.real(&compare).status.code(), Some(1));

    let lab = Lab::new();
    let refused = lab.ours(&line);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("An encrypted data file cannot be raw"), "{said}");
    assert!(!lab.path("image").exists() && !lab.path("data").exists());
}
