//! Disks of a running guest as exports, and exports as disks: the guest and the real qemu-img, qemu-io and nbdinfo see
//! the same bytes.

use crate::machine::{DISK, Machine, Place, tool};
use crate::running::has_kvm;
use cowvm::util::nbd::handshake::{go_data, option_message};
use cowvm::util::nbd::option;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

/// The name of an export on a socket of this place.
fn uri(place: &Place, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", place.text("nbd"))
}

fn qemu_io(place: &Place, export: &str, command: &str) -> String {
    // An export that may only be read is not opened to be written.
    let mode = if command.starts_with("read") { "-r" } else { "--cache=writeback" };
    tool("qemu-io", &[mode, "-f", "raw", "-c", command, &uri(place, export)])
}

#[test]
fn guest_and_clients_share_a_disk_that_is_exported() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.qcow2("a.qcow2");
    let mut machine = Machine::start(&place, &["-hda", &image]);
    let mut hmp = machine.hmp();
    assert_eq!(hmp.ask("nbd_server_add hda"), "Error: NBD server not running\n");
    assert_eq!(hmp.ask("nbd_server_stop"), "Error: NBD server not running\n");
    assert!(hmp.ask("nbd_server_start foo").starts_with("Error: error parsing address 'foo'"));
    let start = format!("nbd_server_start unix:{}", place.text("nbd"));
    assert_eq!(hmp.ask(&start), "");
    assert_eq!(hmp.ask(&start), "Error: NBD server already running\n");
    assert_eq!(hmp.ask("nbd_server_add nope"), "Error: Cannot find device='nope' nor node-name='nope'\n");
    assert_eq!(hmp.ask("nbd_server_add -w hda"), "");
    assert_eq!(hmp.ask("nbd_server_add hda"), "Error: Block export id 'hda' is already in use\n");
    assert_eq!(hmp.ask("nbd_server_add hda looking"), "");
    // Each sees at once what the other has written.
    machine.key('a', ".");
    assert!(qemu_io(&place, "looking", "read -P 0x61 512 512").contains("read 512/512"));
    qemu_io(&place, "hda", "write -P 0x62 512 512");
    machine.key('0', "b");
    let refused = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512", &uri(&place, "looking")])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    // A disk that grows: who comes then sees it.
    hmp.ask("block_resize hda 2M");
    assert_eq!(tool("nbdinfo", &["--size", &uri(&place, "looking")]).trim(), (2 * DISK).to_string());
    assert_eq!(hmp.ask("nbd_server_remove nope"), "Error: Export 'nope' is not found\n");
    assert_eq!(hmp.ask("nbd_server_remove looking"), "");
    assert_eq!(hmp.ask("nbd_server_stop"), "");
    assert!(!place.path("nbd").exists());
    assert_eq!(hmp.ask(&format!("nbd_server_start -a -w unix:{}", place.text("nbd"))), "");
    qemu_io(&place, "hda", "write -P 0x63 512 512");
    machine.key('0', "c");
    machine.quit();
    assert!(!place.path("nbd").exists());
    tool("qemu-img", &["check", "-q", &image]);
}

#[test]
fn programs_export_disks_and_hear_when_exports_go() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let machine = Machine::start(&place, &["-hda", &place.raw("a.raw")]);
    let mut qmp = machine.qmp();
    let refusal = |qmp: &mut crate::clients::Qmp, name: &str, arguments| qmp.refused(name, arguments).1;
    let none = json!({"device": "hda"});
    assert_eq!(refusal(&mut qmp, "nbd-server-add", none), "NBD server not running");
    let bad = json!({"addr": {"type": "foo", "data": {}}});
    assert_eq!(refusal(&mut qmp, "nbd-server-start", bad), "Parameter 'type' does not accept value 'foo'");
    let bad = json!({"addr": {"type": "inet", "data": {"host": "x"}}});
    assert_eq!(refusal(&mut qmp, "nbd-server-start", bad), "Parameter 'addr.data.port' is missing");
    let address = json!({"type": "unix", "data": {"path": place.text("nbd")}});
    let secret = json!({"addr": address, "tls-creds": "none"});
    assert!(refusal(&mut qmp, "nbd-server-start", secret).starts_with("No TLS credentials with id 'none'"));
    qmp.execute("nbd-server-start", json!({"addr": address, "max-connections": 5}));
    qmp.execute(
        "nbd-server-add",
        json!({"device": "hda", "name": "x", "writable": true, "description": "d"}),
    );
    let bitmap = json!({"device": "hda", "name": "y", "bitmap": "b"});
    assert_eq!(refusal(&mut qmp, "nbd-server-add", bitmap), "Bitmap 'b' is not found");
    let listed = tool("nbdinfo", &["--list", &uri(&place, "")]);
    assert!(listed.contains("export=\"x\"") && listed.contains("description: d"), "{listed}");
    let mut client = enter(&place, "x");
    let safe = json!({"name": "x", "mode": "safe"});
    assert_eq!(refusal(&mut qmp, "nbd-server-remove", safe), "export 'x' still in use");
    qmp.execute("nbd-server-remove", json!({"name": "x", "mode": "hard"}));
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED"), json!({"id": "x"}));
    client.read_to_end(&mut Vec::new()).unwrap();
    qmp.execute("nbd-server-add", json!({"device": "hda"}));
    qmp.execute("nbd-server-stop", json!({}));
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED"), json!({"id": "hda"}));
    machine.quit();
}

/// Enters an export, and says nothing more.
fn enter(place: &Place, export: &str) -> UnixStream {
    let mut stream = UnixStream::connect(place.path("nbd")).unwrap();
    let go = option_message(option::GO, &go_data(export, &[]));
    stream.write_all(&[&3u32.to_be_bytes()[..], &go].concat()).unwrap();
    // The greeting; block sizes, size and flags, ACK.
    stream.read_exact(&mut [0; 18 + 34 + 32 + 20]).unwrap();
    stream
}

#[test]
fn a_disk_on_an_export_tells_whether_its_server_is_there() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let image = place.raw("a.raw");
    let serve = || {
        let socket = place.text("nbd");
        let _ = std::fs::remove_file(&socket);
        let words = ["-t", "-e", "0", "-f", "raw", "-k", &socket, &image];
        let mut server = Command::new("qemu-nbd").args(words).spawn().unwrap();
        while UnixStream::connect(&socket).is_err() {
            assert!(server.try_wait().unwrap().is_none());
            std::thread::yield_now();
        }
        server
    };
    let mut server = serve();
    let drive =
        format!("file.driver=nbd,file.path={},file.reconnect-delay=600,format=raw,id=far", place.text("nbd"));
    let mut machine = Machine::start(&place, &["-drive", &drive]);
    let mut qmp = machine.qmp();
    let mut state = || qmp.execute("query-block", json!({}))[0]["inserted"]["connection"]["state"].take();
    assert_eq!(state(), "up");
    server.kill().unwrap();
    server.wait().unwrap();
    while state() != "waiting" {}
    assert!(machine.hmp().ask("info block far").contains("    Connection:       waiting\n"));
    let mut server = serve();
    machine.key('a', ".");
    assert_eq!(state(), "up");
    machine.quit();
    server.kill().unwrap();
    server.wait().unwrap();
}
