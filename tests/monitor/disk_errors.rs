//! werror= and rerror=: what becomes of requests that the host cannot serve.

use crate::machine::{Machine, Place, sector_1};
use crate::running::has_kvm;
use serde_json::json;
use std::fs;

/// An image, and a drive with it whose next write fails, or (not `once`) every one.
fn failing(place: &Place, errno: u32, once: bool, options: &str) -> (String, String) {
    let image = place.raw("a.raw");
    let config = place.text("faults");
    let once = if once { "on" } else { "off" };
    let text = format!(
        "[inject-error]\nevent = \"pwritev\"\niotype = \"write\"\nerrno = \"{errno}\"\nonce = \"{once}\"\n"
    );
    fs::write(&config, text).unwrap();
    let drive = format!("file=blkdebug:{config}:{image},format=raw,id=hda{options}");
    (image, drive)
}

#[test]
fn a_full_host_stops_the_guest_and_cont_tries_again() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (image, drive) = failing(&place, 28, true, "");
    let mut machine = Machine::start(&place, &["-drive", &drive]);
    let mut qmp = machine.qmp();
    machine.type_("a");
    let error = qmp.event("BLOCK_IO_ERROR");
    assert_eq!(error["nospace"], true);
    let error = [&error["device"], &error["operation"], &error["action"], &error["reason"]];
    assert_eq!(error, ["hda", "write", "stop", "No space left on device"]);
    qmp.event("STOP");
    assert_eq!(qmp.execute("query-status", json!({})), json!({"status": "io-error", "running": false}));
    assert_eq!(qmp.execute("query-block", json!({}))[0]["io-status"], "nospace");
    assert_eq!(machine.hmp().ask("info status"), "VM status: paused (io-error)\n");
    assert_eq!(machine.hmp().ask("stop"), "");
    assert_eq!(machine.hmp().ask("cont"), "");
    qmp.event("RESUME");
    machine.expect(".");
    machine.key('0', "a");
    assert_eq!(qmp.execute("query-block", json!({}))[0]["io-status"], "ok");
    let said = machine.quit();
    assert!(said.contains("hda: No space left on device; the guest is stopped"), "{said}");
    assert_eq!(sector_1(&image, "raw"), b'a');
}

#[test]
fn each_policy_answers_the_guest_as_it_should() {
    if !has_kvm() {
        return;
    }
    for (errno, options, answer, action) in
        [(5, "", "!", "report"), (28, ",werror=report", "!", "report"), (5, ",werror=ignore", ".", "ignore")]
    {
        let place = Place::new();
        let (image, drive) = failing(&place, errno, false, options);
        let mut machine = Machine::start(&place, &["-drive", &drive]);
        let mut qmp = machine.qmp();
        machine.key('a', answer);
        assert_eq!(qmp.event("BLOCK_IO_ERROR")["action"], action, "{drive}");
        machine.quit();
        assert_eq!(sector_1(&image, "raw"), 0);
    }
}

#[test]
fn a_read_that_fails_stops_the_guest_where_rerror_says_so() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (image, config) = (place.qcow2("a.qcow2"), place.text("faults"));
    let second = place.raw("b.raw");
    let rule = "[inject-error]\nevent = \"read_aio\"\niotype = \"read\"\nonce = \"on\"\n";
    fs::write(&config, rule).unwrap();
    let mut machine = Machine::start(
        &place,
        &[
            "-drive",
            &format!("file={second},format=raw"),
            "-drive",
            &format!("file=blkdebug:{config}:{image},format=qcow2,id=hdb,rerror=stop"),
        ],
    );
    let mut qmp = machine.qmp();
    machine.key('B', ".");
    machine.type_("1");
    assert_eq!(qmp.event("BLOCK_IO_ERROR")["operation"], "read");
    qmp.event("STOP");
    qmp.execute("cont", json!({}));
    machine.expect("B");
    machine.quit();
}

#[test]
fn a_guest_that_fails_again_stops_again_and_a_reset_ends_it() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (image, drive) = failing(&place, 5, false, ",werror=stop");
    let mut machine = Machine::start(&place, &["-drive", &drive]);
    let mut qmp = machine.qmp();
    machine.type_("a");
    for _ in 0..3 {
        assert_eq!(qmp.event("BLOCK_IO_ERROR")["action"], "stop");
        qmp.event("STOP");
        qmp.execute("cont", json!({}));
        qmp.event("RESUME");
    }
    qmp.event("BLOCK_IO_ERROR");
    qmp.event("STOP");
    qmp.execute("system_reset", json!({}));
    qmp.event("RESET");
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "paused");
    qmp.execute("cont", json!({}));
    machine.expect(">");
    machine.quit();
    assert_eq!(sector_1(&image, "raw"), 0);
}

#[test]
fn a_policy_that_there_is_not_is_refused() {
    let place = Place::new();
    let image = place.raw("a.raw");
    for (option, said) in [
        ("werror=foo", "'foo' invalid write error action"),
        ("rerror=enospc", "'enospc' invalid read error action"),
    ] {
        let drive = format!("file={image},format=raw,{option}");
        let output = crate::machine::cowvm(&place).args(["-drive", &drive]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!has_kvm() || text.contains(said), "{text}");
    }
}
