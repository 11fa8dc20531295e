//! `--output=json` of the commands for which qemu-img has only words: one object on standard output and nothing else;
//! of a failure, one object on standard error. The members are those that docs/imgtool.md lists.

use crate::harness::{Lab, words};
use serde_json::{Value, json};
use std::process::Output;

/// The object on standard output, alone there.
fn object(output: &Output, line: &str) -> Value {
    assert!(output.stderr.is_empty(), "{line}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{line}: {error}: {output:?}"))
}

/// What a command that succeeds prints.
fn result(lab: &Lab, line: &str) -> Value {
    let output = lab.ours(line);
    assert!(output.status.success(), "{line}: {output:?}");
    object(&output, line)
}

/// An overlay with 64 KiB of data over a base.
fn overlay() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 base 2M").qemu_img("create -q -f qcow2 -b base -F qcow2 top");
    lab.qemu_io("qcow2", "top", &["write -P 7 0 64k"]);
    lab
}

#[test]
fn amend_tells_what_changed() {
    let lab = overlay();
    let told = result(&lab, "amend --output=json -p -o compat=0.10,size=4M top");
    let options = json!({"compat": "0.10", "size": "4M"});
    assert_eq!(told, json!({"filename": "top", "format": "qcow2", "options": options}));
}

#[test]
fn bench_tells_what_it_did_and_how_long_it_took() {
    let lab = overlay();
    let mut told = result(&lab, "bench --output=json -c 5 -d 2 -s 8k -S 16k -o 4k -f qcow2 top");
    let seconds = told.as_object_mut().unwrap().remove("seconds").unwrap();
    assert!(seconds.as_f64().unwrap() >= 0.0);
    let expect = json!({
        "filename": "top", "write": false, "requests": 5, "request-size": 8192, "depth": 2, "offset": 4096,
        "step-size": 16384, "flush-interval": 0,
    });
    assert_eq!(told, expect);
}

#[test]
fn bitmap_tells_what_bitmaps_there_are() {
    let lab = overlay();
    lab.qemu_img("bitmap --add top old");
    let told = result(&lab, "bitmap --output json --add -g 128k --disable top new");
    assert_eq!(told["actions"], json!(["add", "disable"]));
    assert_eq!((&told["filename"], &told["bitmap"]), (&json!("top"), &json!("new")));
    let info: Value = serde_json::from_slice(&lab.real("info --output=json top").stdout).unwrap();
    assert_eq!(told["bitmaps"], info["format-specific"]["data"]["bitmaps"]);
}

#[test]
fn commit_tells_where_the_data_went() {
    let lab = overlay();
    let told = result(&lab, "commit -p --output=json top");
    assert_eq!(told["filename"], "top");
    assert!(told["base"].as_str().unwrap().ends_with("base"));
    assert_eq!(told["emptied"], true);
    assert_eq!(result(&lab, "commit -d --output=json top")["emptied"], false);
}

#[test]
fn compare_tells_what_differs_and_where() {
    let lab = overlay();
    lab.qemu_img("create -q -f qcow2 longer 3M").qemu_img("create -q -f qcow2 same 2M");
    for (line, status, expect) in [
        ("base base", 0, json!([true, null, null, true])),
        ("base top", 1, json!([false, "content", 0, true])),
        ("base longer", 0, json!([true, null, null, false])),
        ("-s base longer", 1, json!([false, "size", null, false])),
        ("-s base top", 1, json!([false, "allocation", 0, true])),
    ] {
        let output = lab.ours(&format!("compare -p --output=json {line}"));
        assert_eq!(output.status.code(), Some(status), "{line}");
        let told = object(&output, line);
        let names: Vec<&str> = line.split(' ').filter(|word| !word.starts_with('-')).collect();
        assert_eq!(told["filenames"], json!(names), "{line}");
        let facts = ["identical", "difference", "offset", "same-size"].map(|name| told[name].clone());
        assert_eq!(json!(facts), expect, "{line}");
    }
}

#[test]
fn convert_and_dd_tell_what_was_made() {
    let lab = overlay();
    assert_eq!(
        result(&lab, "convert -p --output=json -O qcow2 top base out"),
        json!({"filenames": ["top", "base"], "output": "out", "format": "qcow2", "virtual-size": 4 << 20}),
    );
    assert_eq!(
        result(&lab, "dd --output=json -O raw if=top of=out bs=1M count=1"),
        json!({"input": "top", "output": "out", "format": "raw", "virtual-size": 1 << 20}),
    );
    // qemu-img takes a shortened name of another option.
    assert!(lab.ours("dd --output qcow2 if=top of=out").status.success());
    assert_eq!(std::fs::read(lab.path("out")).unwrap()[..4], *b"QFI\xfb");
}

#[test]
fn rebase_tells_the_backing_file() {
    let lab = overlay();
    assert_eq!(
        result(&lab, "rebase -p --output=json -b base -F qcow2 top"),
        json!({"filename": "top", "backing-filename": "base", "backing-filename-format": "qcow2"}),
    );
    assert_eq!(
        result(&lab, "rebase --output=json -b '' top"),
        json!({"filename": "top", "backing-filename": null, "backing-filename-format": null}),
    );
}

#[test]
fn resize_tells_both_sizes() {
    let told = result(&overlay(), "resize --output=json top +1M");
    assert_eq!(told, json!({"filename": "top", "virtual-size": 3 << 20, "previous-size": 2 << 20}));
}

#[test]
fn snapshot_tells_what_was_done_and_what_snapshots_there_are() {
    let lab = overlay();
    let names = |told: &Value| -> Vec<String> {
        let snapshots = told["snapshots"].as_array().unwrap().iter();
        snapshots.map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
    };
    let told = result(&lab, "snapshot --output=json -c one top");
    assert_eq!((&told["action"], &told["snapshot"]), (&json!("create"), &json!("one")));
    result(&lab, "snapshot --output=json -c two top");
    let told = result(&lab, "snapshot -l --output=json top");
    assert_eq!(
        (&told["action"], &told["snapshot"], names(&told)),
        (&json!("list"), &Value::Null, vec!["one".to_owned(), "two".to_owned()])
    );
    let info: Value = serde_json::from_slice(&lab.real("info --output=json top").stdout).unwrap();
    assert_eq!(told["snapshots"], info["snapshots"]);
    assert_eq!(names(&result(&lab, "snapshot --output=json -d one top")), ["two"]);
    assert_eq!(names(&result(&lab, "snapshot --output=json -a two top")), ["two"]);
    assert_eq!(result(&lab, "snapshot --output=json base")["snapshots"], json!([]));
}

#[test]
fn failures_are_objects_too() {
    let lab = overlay();
    for (line, status) in [
        ("amend --output=json -o size=1M nofile", 1),
        ("bench --output=json nofile", 1),
        ("bitmap --output=json --remove top none", 1),
        ("commit --output=json base", 1),
        ("compare --output=json base nofile", 2),
        ("convert --output=json nofile out", 1),
        ("dd --output=json if=nofile of=out", 1),
        ("rebase --output=json top", 1),
        ("resize --output=json top 0", 1),
        ("snapshot --output=json -d none top", 1),
        ("checksum --output=json nofile", 1),
        ("create --output=json -f qcow2 out", 1),
    ] {
        let output = lab.ours(line);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(status), &b""[..]), "{line}");
        let told: Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{line}: {output:?}"));
        assert_eq!(told["error"]["command"], words(line)[0], "{line}");
        assert_eq!(told["error"]["status"], status, "{line}");
        assert!(!told["error"]["message"].as_str().unwrap().is_empty(), "{line}");
    }
}

#[test]
fn quiet_commands_have_no_result() {
    let lab = overlay();
    for line in ["commit -q", "compare -q base", "resize -q --shrink", "rebase -q -u -b ''"] {
        let size = if line.starts_with("resize") { " 1M" } else { "" };
        let output = lab.ours(&format!("{line} --output=json top{size}"));
        assert!(output.stdout.is_empty(), "{line}: {output:?}");
    }
}
