//! `snapshot`: the list, and what making, applying and deleting leave behind.

use crate::harness::Lab;

/// Two images with three snapshots: of equal names, of a name that is the ID of another, of VM state.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 1M").qemu_img("create -q -f qcow2 empty 1M");
    lab.qemu_img("create -q -f qcow2 image 4M");
    for (at, name) in ["one", "one", "2"].iter().enumerate() {
        lab.qemu_io("qcow2", "image", &[&format!("write -P {} {at}M 1M", at + 1)]);
        lab.qemu_img(&format!("snapshot -c {name} image"));
    }
    lab.qemu_io("qcow2", "image", &["write -P 9 512k 1M"]);
    lab
}

#[test]
fn command_lines_are_refused_in_the_same_words() {
    let lab = lab();
    lab.same(&[
        "snapshot",
        "snapshot a b",
        "snapshot -c",
        "snapshot -c x -d y image",
        "snapshot -l -a x image",
        "snapshot -l -l image",
        "snapshot -c x -l image",
        "snapshot -d x -d x image",
        "snapshot --list=1 image",
        "snapshot --x image",
        "snapshot nofile",
        "snapshot -c x nofile",
        "snapshot -f bogus image",
        "snapshot -f qcow2 -l raw",
        "snapshot -U -c x image",
        "snapshot -f qcow2 --image-opts driver=qcow2,file.filename=image",
        "snapshot --object bogus,id=x image",
    ]);
}

#[test]
fn the_list_is_the_same_byte_for_byte() {
    let lab = lab();
    lab.same(&[
        "snapshot image",
        "snapshot -l image",
        "snapshot -q -l image",
        "snapshot --list -f qcow2 image",
        "snapshot -U image",
        "snapshot --image-opts driver=qcow2,file.filename=image -l",
        "snapshot empty",
        "snapshot raw",
        "snapshot -f raw -l raw",
        "snapshot -f raw image",
    ]);
}

#[test]
fn applying_and_deleting_leave_the_same_image() {
    let lab = lab();
    lab.same_result(
        &[
            "snapshot -a one image",
            "snapshot -a 2 image",
            "snapshot -a 3 image",
            "snapshot -a nope image",
            "snapshot -d one image",
            "snapshot -d 2 image",
            "snapshot -d 3 image",
            "snapshot -d nope image",
            "snapshot -q -d one image",
            "snapshot -d one --image-opts driver=qcow2,file.filename=image",
        ],
        Some("image"),
    );
}

#[test]
fn a_new_snapshot_holds_the_disk_as_it_was() {
    let lab = lab();
    for name in ["new", "one", "''"] {
        let output = lab.ours(&format!("snapshot -c {name} image"));
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty());
    }
    let list = lab.ours("snapshot image").stdout;
    let list = String::from_utf8(list).unwrap();
    let rows: Vec<Vec<&str>> = list.lines().skip(2).map(|row| row.split_whitespace().collect()).collect();
    let ids: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(ids, ["1", "2", "3", "4", "5", "6"], "{list}");
    assert_eq!((rows[3][1], rows[4][1], rows[5][1]), ("new", "one", "0"), "{list}");
    assert!(list.lines().nth(5).unwrap().ends_with("0000:00:00.000          0"), "{list}");
    lab.same(&["snapshot image", "check image", "info -U --output=json image"]);
    lab.qemu_img("convert -l new image then.raw").qemu_img("convert image now.raw");
    lab.qemu_img("compare then.raw now.raw");
}

#[test]
fn a_dates_second_is_this_one() {
    let lab = lab();
    let seconds = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let before = seconds();
    assert!(lab.ours("snapshot -c now empty").status.success());
    let after = seconds();
    let info: serde_json::Value =
        serde_json::from_slice(&lab.ours("info --output=json empty").stdout).unwrap();
    let date = &info["snapshots"][0];
    assert!((before..=after).contains(&date["date-sec"].as_u64().unwrap()), "{info}");
    assert_eq!(date["date-nsec"].as_u64().unwrap() % 1000, 0, "{info}");
    assert_eq!(date["icount"], 0, "{info}");
}

#[test]
fn images_that_cannot_have_snapshots_say_so_in_the_same_words() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -o data_file=apart data 1M").qemu_img("bitmap --add image map");
    lab.qemu_img("create -q -f qcow2 -u -b nofile -F raw orphan 1M");
    lab.same_result(
        &[
            "snapshot -f raw -c x raw",
            "snapshot -f raw -a x raw",
            "snapshot -f raw -d x raw",
            "snapshot -c x raw",
            "snapshot -q -d x raw",
            "snapshot -c x data",
            "snapshot -a x data",
            "snapshot -d x data",
            "snapshot data",
            "snapshot -a one image",
            "snapshot -a nope image",
            "snapshot -d one image",
            "snapshot orphan",
            "snapshot -c x orphan",
        ],
        None,
    );
}

#[test]
fn encrypted_images_need_their_key() {
    let lab = Lab::new();
    let secret = "--object secret,id=s,data=abc";
    lab.qemu_img(&format!(
        "create -q {secret} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 image 1M"
    ));
    let image = format!("{secret} --image-opts driver=qcow2,file.filename=image,encrypt.key-secret=s");
    lab.qemu_img(&format!("snapshot -c one {image}"));
    lab.same_result(
        &[
            "snapshot image",
            "snapshot -c x image",
            "snapshot -d one image",
            &format!("snapshot {image}"),
            &format!("snapshot -a one {image}"),
            &format!("snapshot -d one {image}"),
        ],
        None,
    );
}
