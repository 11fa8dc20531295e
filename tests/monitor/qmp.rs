//! QMP over a socket: the conversation, events, jobs, hostile input; and the client that QEMU's own project has.

use crate::clients::Qmp;
use crate::machine::{Machine, Place, sector_1, tool};
use crate::running::has_kvm;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::Command;

#[test]
fn commands_are_answered_with_their_ids_and_events_are_told() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("a.qcow2");
    let mut machine = Machine::start(&place, &["-hda", &image]);
    let mut qmp = Qmp::raw(machine.qmp_path());
    assert!(qmp.greeting["QMP"]["version"]["qemu"]["major"].is_u64(), "{}", qmp.greeting);
    let early = qmp.send(r#"{"execute": "query-status", "id": "early"}"#);
    assert_eq!((&early["error"]["class"], &early["id"]), (&json!("CommandNotFound"), &json!("early")));
    assert_eq!(
        qmp.send(r#"{"execute":"qmp_capabilities","arguments":{"enable":[]},"id":{"a":[1]}}"#),
        json!({"return": {}, "id": {"a": [1]}})
    );
    assert_eq!(qmp.execute("query-status", json!({})), json!({"status": "running", "running": true}));
    qmp.execute("stop", json!({}));
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "paused");
    assert_eq!(qmp.event("STOP"), Value::Null);
    qmp.execute("cont", json!({}));
    qmp.event("RESUME");
    qmp.execute("system_reset", json!({}));
    assert_eq!(qmp.event("RESET"), json!({"guest": false, "reason": "host-qmp-system-reset"}));
    machine.expect(">");
    let text = qmp.execute("human-monitor-command", json!({"command-line": "info status"}));
    assert_eq!(text, "VM status: running\r\n");
    let text = qmp.execute("human-monitor-command", json!({"command-line": "commit hda"}));
    assert_eq!(text, "'commit' error for 'hda': Operation not supported\r\n");
    let names = qmp.execute("query-commands", json!({}));
    assert!(names.as_array().unwrap().contains(&json!({"name": "block_resize"})));
    qmp.execute("quit", json!({}));
    assert_eq!(qmp.event("SHUTDOWN"), json!({"guest": false, "reason": "host-qmp-quit"}));
    assert!(machine.finish().0.success());
}

#[test]
fn disks_are_described_counted_resized_and_put_under_overlays() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("a.qcow2");
    let over = place.text("over.qcow2");
    let mut machine = Machine::start(&place, &["-hda", &image]);
    let mut qmp = machine.qmp();
    machine.key('a', ".");
    let disk = qmp.execute("query-block", json!({}))[0].take();
    assert_eq!((&disk["device"], &disk["io-status"]), (&json!("hda"), &json!("ok")));
    let inserted = &disk["inserted"];
    assert_eq!(
        (&inserted["drv"], &inserted["ro"], &inserted["file"]),
        (&json!("qcow2"), &json!(false), &json!(image))
    );
    assert_eq!(inserted["image"]["virtual-size"], 1 << 20);
    let stats = qmp.execute("query-blockstats", json!({}))[0]["stats"].take();
    assert_eq!((&stats["wr_bytes"], &stats["wr_operations"]), (&json!(512), &json!(1)));
    assert_eq!((&stats["rd_bytes"], &stats["failed_wr_operations"]), (&json!(512), &json!(0)));

    qmp.execute("block_resize", json!({"device": "hda", "size": 3 << 20}));
    qmp.execute("block_resize", json!({"node-name": "#hda", "size": 2 << 20}));
    for (arguments, said) in [
        (json!({"device": "hda"}), "Parameter 'size' is missing"),
        (json!({"device": "hdx", "size": 1}), "Cannot find device='hdx' nor node-name=''"),
        (json!({"device": "hda", "size": "1"}), "Invalid parameter type for 'size', expected: integer"),
        (json!({"device": "hda", "size": 1, "x": 1}), "Parameter 'x' is unexpected"),
    ] {
        assert_eq!(qmp.refused("block_resize", arguments), ("GenericError".into(), said.into()));
    }
    qmp.execute("blockdev-snapshot-sync", json!({"device": "hda", "snapshot-file": over, "format": "qcow2"}));
    let nodes = qmp.execute("query-named-block-nodes", json!({}));
    let files: Vec<_> = nodes.as_array().unwrap().iter().map(|node| (&node["file"], &node["ro"])).collect();
    assert_eq!(files, [(&json!(over), &json!(false)), (&json!(image), &json!(true))]);
    machine.key('b', ".");

    qmp.execute("block-commit", json!({"device": "hda", "job-id": "job0"}));
    for status in ["created", "running", "waiting", "pending", "concluded", "null"] {
        assert_eq!(qmp.event("JOB_STATUS_CHANGE"), json!({"status": status, "id": "job0"}));
    }
    assert_eq!(qmp.execute("query-jobs", json!({})), json!([]));
    let removable = ("GenericError".to_owned(), "Device 'hda' is not removable".to_owned());
    assert_eq!(qmp.refused("eject", json!({"device": "hda"})), removable);
    assert_eq!(qmp.refused("blockdev-change-medium", json!({"device": "hda", "filename": "x"})), removable);
    machine.quit();
    assert_eq!(sector_1(&image, "qcow2"), b'b');
    tool("qemu-img", &["check", &image]);
}

#[test]
fn a_job_that_fails_says_why_until_it_is_dismissed() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("a.raw");
    let drive = format!("file={image},format=raw,id=hda");
    let machine = Machine::start_named(&place, "1", &["-snapshot", "-drive", &drive]);
    let _other = Machine::start_named(&place, "2", &["-snapshot", "-drive", &drive]);
    let mut qmp = machine.qmp();
    qmp.execute("block-commit", json!({"device": "hda", "job-id": "j", "auto-dismiss": false}));
    for status in ["created", "running", "aborting", "concluded"] {
        assert_eq!(qmp.event("JOB_STATUS_CHANGE")["status"], status);
    }
    let job = qmp.execute("query-jobs", json!({}))[0].take();
    assert_eq!(
        (&job["id"], &job["status"], &job["type"]),
        (&json!("j"), &json!("concluded"), &json!("commit"))
    );
    assert!(job["error"].as_str().unwrap().contains("in use"), "{job}");
    assert!(
        qmp.refused("block-commit", json!({"device": "hda", "job-id": "j"})).1.contains("already in use")
    );
    qmp.execute("job-dismiss", json!({"id": "j"}));
    assert_eq!(qmp.refused("job-dismiss", json!({"id": "j"})).1, "Job not found");
}

#[test]
fn hostile_input_is_refused_and_the_conversation_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let machine = Machine::start(&place, &[&place.raw("a.raw")]);
    let mut qmp = machine.qmp();
    let deep = format!("{}\n", "[".repeat(1 << 20));
    let long = format!("{{\"execute\": \"{}\"}}\n", "x".repeat(1 << 20));
    let hostile = [
        ("xyz\n", "JSON parse error, invalid keyword 'xyz'"),
        ("{\"execute\" \"stop\"}\n", "JSON parse error, expecting value"),
        ("{\"execute\": \"stop\u{0}\"}\n", "JSON parse error, expecting value"),
        ("[1]\n", "QMP input must be a JSON object"),
        ("{\"x\": 1}\n", "QMP input member 'x' is unexpected"),
        ("{\"execute\": \"foo\"}\n", "The command foo has not been found"),
        (&deep, "JSON parse error, too deeply nested"),
        (&long, "JSON parse error, too long"),
    ];
    for (text, said) in hostile {
        let answer = qmp.send(text);
        assert_eq!(answer["error"]["desc"], said, "{answer}");
    }
    qmp.stream.get_mut().write_all(b"\xff\xfe\n").unwrap();
    assert!(qmp.send(" ")["error"]["desc"].as_str().unwrap().starts_with("JSON parse error"));
    // No line end, several at once, quotes as people write them.
    assert_eq!(qmp.send("{'execute': 'query-kvm'}")["return"]["enabled"], true);
    assert_eq!(
        qmp.send("{\"execute\":\"query-jobs\",\"id\":1}{\"execute\":\"query-jobs\",\"id\":2}")["id"],
        1
    );
    assert_eq!(qmp.send("")["id"], 2);
    machine.quit();
}

/// The library of QEMU's project, unchanged, as far as `tests/setup` has brought it.
#[test]
fn the_client_of_qemus_project_understands_it() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/qmp/bin/python");
    if !has_kvm() || !python.exists() {
        eprintln!("skipped: no qemu.qmp; tests/setup installs it");
        return;
    }
    let place = Place::new();
    let machine = Machine::start(&place, &["-hda", &place.qcow2("a.qcow2")]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/monitor/client.py");
    let output = Command::new(python).arg(script).arg(machine.qmp_path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "running hda STOP RESUME GenericError SHUTDOWN\n");
    assert!(machine.finish().0.success());
}

#[test]
fn vm_snapshots_are_jobs() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut machine = Machine::start(&place, &["-hda", &place.qcow2("a.qcow2")]);
    let mut qmp = machine.qmp();
    let arguments = |id: &str| json!({"job-id": id, "tag": "t", "vmstate": "#hda", "devices": ["#hda"]});
    machine.key('a', ".");
    qmp.execute("snapshot-save", arguments("save"));
    job_runs(&mut qmp, &["created", "running", "STOP", "RESUME", "waiting", "pending", "concluded"]);
    machine.key('b', ".");
    qmp.execute("snapshot-load", arguments("load"));
    job_runs(&mut qmp, &["created", "running", "STOP", "RESUME", "waiting", "pending", "concluded"]);
    machine.key('0', "a");
    qmp.execute("snapshot-delete", json!({"job-id": "delete", "tag": "t", "devices": ["#hda"]}));
    job_runs(&mut qmp, &["created", "running", "waiting", "pending", "concluded"]);
    qmp.execute("snapshot-load", arguments("again"));
    job_runs(&mut qmp, &["created", "running", "aborting", "concluded"]);
    let nowhere = json!({"job-id": "no", "tag": "t", "vmstate": "x", "devices": ["x"]});
    qmp.execute("snapshot-save", nowhere);
    job_runs(&mut qmp, &["created", "running", "aborting", "concluded"]);
    let jobs = qmp.execute("query-jobs", json!({}));
    let ids: Vec<_> = jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["save", "load", "delete", "again", "no"]);
    assert_eq!(jobs[4]["error"], "No block device node 'x'");
    machine.quit();
}

/// The next events are these: names, or new states of a job.
fn job_runs(qmp: &mut Qmp, events: &[&str]) {
    for &event in events {
        match event {
            "STOP" | "RESUME" => assert_eq!(qmp.event(event), Value::Null),
            status => assert_eq!(qmp.event("JOB_STATUS_CHANGE")["status"], status),
        }
    }
}
