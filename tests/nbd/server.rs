//! Our server with clients of other hands.

use crate::harness::{Folder, random_file, said};
use cowvm::util::nbd::handshake::{contexts_data, go_data, option_message};
use cowvm::util::nbd::transmission::Headers;
use cowvm::util::nbd::{Command, Request, option};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const SIZE: usize = 4 << 20;

fn qemu_io(folder: &Folder, image: &[&str], commands: &[&str]) {
    let words: Vec<&str> =
        commands.iter().flat_map(|command| ["-c", command]).chain(image.iter().copied()).collect();
    let said = folder.run_of("qemu-io", &words);
    assert!(!said.contains("failed"), "{said}");
}

/// A folder with a raw disk, and an overlay with a bitmap over a qcow2 image with holes and a snapshot.
fn images() -> Folder {
    let folder = Folder::new();
    random_file(&folder.path("disk"), SIZE, 7);
    folder.run("qemu-img", "convert -f raw -O qcow2 disk base");
    folder.run("qemu-img", "snapshot -c before base");
    qemu_io(&folder, &["base"], &["write -z 100k 200k", "discard 500k 100k", "write -P 3 3M 64k"]);
    folder.run("qemu-img", "create -q -f qcow2 -b base -F qcow2 over");
    folder.run("qemu-img", "bitmap --add over marks");
    qemu_io(&folder, &["over"], &["write -P 4 1M 64k", "write -z 2M 64k"]);
    folder
}

#[test]
fn qemu_io_reads_back_what_it_writes() {
    for (format, image) in [("raw", "disk"), ("qcow2", "over")] {
        let folder = images();
        let _server = folder.serve("ours/qemu-nbd", &format!("-t -e 0 --discard=unmap -f {format} {image}"));
        let commands = [
            "write -P 3 1000 70000",
            "read -P 3 1000 70000",
            "write -z 0 1M",
            "read -P 0 0 1M",
            "write -f -P 9 1M 2M",
            "discard 2M 512k",
            "read -P 9 1M 1M",
            "flush",
        ];
        qemu_io(&folder, &["-f", "raw", &folder.uri("")], &commands);
    }
}

#[test]
fn the_list_is_that_of_qemu_nbd() {
    let folder = images();
    for line in [
        "-f raw disk",
        "-f raw -r -x name -D words disk",
        "-f qcow2 -A -B marks -e 0 over",
        "-f qcow2 -r -e 3 -l before base",
        "-f raw -o 4096 disk",
        "-f qcow2 -s over",
    ] {
        let list = |server: &str, lister: &str| {
            let server = folder.serve(server, &format!("-t {line}"));
            let text = folder.run(lister, &format!("-L -k {}", folder.socket()));
            assert_eq!(server.terminate(), Some(0));
            text
        };
        let expected = list("qemu-nbd", "qemu-nbd");
        assert_eq!(list("ours/qemu-nbd", "qemu-nbd"), expected, "{line}");
        assert_eq!(list("qemu-nbd", "ours/qemu-nbd"), expected, "{line}");
    }
}

#[test]
fn maps_and_contents_are_those_of_qemu_nbd() {
    let folder = images();
    for line in ["-f raw disk", "-f qcow2 over", "-f qcow2 -l before base", "-f qcow2 -o 65536 over"] {
        let look = |server: &str| {
            let _server = folder.serve(server, &format!("-t -r -e 0 {line}"));
            let map = folder.run("qemu-img", &format!("map --output=json -f raw {}", folder.uri("")));
            folder.run("qemu-img", &format!("convert -f raw -O raw {} content", folder.uri("")));
            (map, std::fs::read(folder.path("content")).unwrap())
        };
        let (expected, ours) = (look("qemu-nbd"), look("ours/qemu-nbd"));
        assert_eq!(ours.0, expected.0, "{line}");
        assert!(ours.1 == expected.1, "{line}: contents differ");
    }
}

#[test]
fn bitmaps_and_depths_are_those_of_qemu_nbd() {
    let folder = images();
    for context in ["qemu:dirty-bitmap:marks", "qemu:allocation-depth"] {
        let look = |server: &str, client: &str| {
            let _server = folder.serve(server, "-t -r -e 0 -A -B marks -f qcow2 over");
            let image = format!("driver=nbd,path={},x-dirty-bitmap={context}", folder.socket());
            let map = folder.run(client, &format!("map --output=json --image-opts {image}"));
            // What is "present" of a dirty range is a matter of taste.
            let extents: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
            let members = ["start", "length", "data", "zero"];
            extents.iter().map(|extent| members.map(|name| extent[name].to_string())).collect::<Vec<_>>()
        };
        let expected = look("qemu-nbd", "qemu-img");
        assert_eq!(look("ours/qemu-nbd", "qemu-img"), expected, "{context}");
        assert_eq!(look("qemu-nbd", "ours/qemu-img"), expected, "{context}");
    }
}

#[test]
fn a_temporary_overlay_takes_the_writes() {
    let folder = images();
    let before = std::fs::read(folder.path("disk")).unwrap();
    let server = folder.serve("ours/qemu-nbd", "-t -e 0 -s -f raw disk");
    let uri = folder.uri("");
    qemu_io(&folder, &["-f", "raw", &uri], &["write -P 5 0 1M", "read -P 5 0 1M", "flush"]);
    assert_eq!(server.terminate(), Some(0));
    assert!(std::fs::read(folder.path("disk")).unwrap() == before);
}

#[test]
fn the_server_ends_with_its_last_client_unless_it_is_persistent() {
    let folder = images();
    let server = folder.serve("ours/qemu-nbd", "-f raw disk");
    qemu_io(&folder, &["-f", "raw", &folder.uri("")], &["read 0 64k"]);
    assert_eq!(server.wait(), Some(0));
    assert!(!folder.path("socket").exists());
    let server = folder.serve("ours/qemu-nbd", "-t -f raw disk");
    for _ in 0..3 {
        qemu_io(&folder, &["-f", "raw", &folder.uri("")], &["read 0 64k"]);
    }
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_server_in_the_background_is_running_when_its_parent_ends() {
    let folder = images();
    let line = format!("-k {} --fork --pid-file=pid -t -f raw disk", folder.socket());
    folder.run("ours/qemu-nbd", &line);
    let pid = std::fs::read_to_string(folder.path("pid")).unwrap();
    assert!(UnixStream::connect(folder.path("socket")).is_ok());
    folder.run("kill", pid.trim());
    while folder.path("socket").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let failed = folder.output("ours/qemu-nbd", &format!("-k {} --fork -f raw none", folder.socket()));
    let expected =
        "qemu-nbd: Failed to blk_new_open 'none': Could not open 'none': No such file or directory\n";
    assert_eq!((failed.status.code(), said(&failed).as_str()), (Some(1), expected));
}

#[test]
fn a_port_is_served_as_a_socket_is() {
    let folder = images();
    let (_server, port) = folder.serve_port("-t -e 0 -f raw disk");
    for name in [format!("nbd:127.0.0.1:{port}"), format!("nbd://localhost:{port}/")] {
        folder.run("qemu-img", &format!("compare -f raw -F raw {name} disk -U"));
        folder.run("ours/qemu-img", &format!("compare -f raw -F raw {name} disk -U"));
    }
}

#[test]
fn nbdcopy_copies_from_the_server_and_to_it() {
    let folder = images();
    folder.run("qemu-img", "convert -f qcow2 -O raw over content");
    folder.run("qemu-img", &format!("create -q -f qcow2 target {SIZE}"));
    let server = folder.serve("ours/qemu-nbd", "-t -r -e 0 -f qcow2 over");
    folder.run("nbdcopy", &format!("--requests=64 {} copy", folder.uri("")));
    assert!(std::fs::read(folder.path("copy")).unwrap() == std::fs::read(folder.path("content")).unwrap());
    assert_eq!(server.terminate(), Some(0));
    let server = folder.serve("ours/qemu-nbd", "-t -e 0 -f qcow2 target");
    folder.run("nbdcopy", &format!("--flush --requests=64 content {}", folder.uri("")));
    assert_eq!(server.terminate(), Some(0));
    folder.run("qemu-img", "compare -f qcow2 -F raw target content");
    folder.run("qemu-img", "check -q target");
}

/// Its last sector is zeros behind the end of the file: no page of the host has all of it.
#[test]
fn a_disk_that_ends_inside_of_a_sector_is_read_to_its_end() {
    let folder = Folder::new();
    let mut content = random_file(&folder.path("disk"), (1 << 20) + 100, 9);
    content.resize((1 << 20) + 512, 0);
    let _server = folder.serve("ours/qemu-nbd", "-t -e 0 -f raw disk");
    for requests in [65_536, 262_144, 1 << 20] {
        let line = format!("--request-size={requests} {} copy", folder.uri(""));
        folder.run("nbdcopy", &line);
        assert!(std::fs::read(folder.path("copy")).unwrap() == content, "{requests}");
    }
}

/// A payload names the contexts that a block status is about, and the length of the range.
#[test]
fn a_block_status_is_about_the_contexts_that_it_names() {
    let folder = images();
    let _server = folder.serve("ours/qemu-nbd", "-t -A -f raw disk");
    let mut stream = UnixStream::connect(folder.path("socket")).unwrap();
    let contexts = contexts_data("", &["base:allocation", "qemu:allocation-depth"]);
    let ask = |payload: &[u8]| {
        let request = Request {
            flags: 32,
            command: Command::BlockStatus as u16,
            cookie: 9,
            offset: 0,
            len: payload.len() as u64,
        };
        [&request.to_bytes(Headers::Extended)[..], payload].concat()
    };
    let wanted = [&4096u64.to_be_bytes()[..], &2u32.to_be_bytes()].concat();
    let unknown = [&4096u64.to_be_bytes()[..], &7u32.to_be_bytes()].concat();
    let said = [
        3u32.to_be_bytes().to_vec(),
        option_message(option::EXTENDED_HEADERS, &[]),
        option_message(option::SET_META_CONTEXT, &contexts),
        option_message(option::GO, &go_data("", &[])),
        ask(&wanted),
        ask(&unknown),
        ask(&[0; 5]),
        Request { flags: 0, command: Command::Disconnect as u16, cookie: 0, offset: 0, len: 0 }
            .to_bytes(Headers::Extended),
    ];
    stream.write_all(&said.concat()).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    let begin = heard.windows(4).position(|bytes| bytes == 0x6e8a_278cu32.to_be_bytes()).unwrap();
    let (mut rest, mut extents, mut errors) = (&heard[begin..], Vec::new(), Vec::new());
    while !rest.is_empty() {
        let len = u64::from_be_bytes(rest[24..32].try_into().unwrap()) as usize;
        let kind = u16::from_be_bytes([rest[6], rest[7]]);
        if kind == 6 { &mut extents } else { &mut errors }.push(rest[32..32 + len].to_vec());
        rest = &rest[32 + len..];
    }
    // One extent of the second context, over all that was asked for: the image itself decides what is there.
    let extent = [&2u32.to_be_bytes()[..], &1u32.to_be_bytes(), &4096u64.to_be_bytes(), &1u64.to_be_bytes()];
    assert_eq!(extents, [extent.concat()]);
    assert!(errors.len() == 2 && errors.iter().all(|error| error[..4] == 22u32.to_be_bytes()), "{errors:?}");
}

#[test]
fn nbdinfo_is_told_what_qemu_nbd_tells_it() {
    let folder = images();
    let look = |server: &str| {
        let _server = folder.serve(server, "-t -e 0 -A -B marks -x name -D words -f qcow2 over");
        let uri = folder.uri("name");
        let mut told =
            folder.run("nbdinfo", &uri) + &folder.run("nbdinfo", &format!("--list {}", folder.uri("")));
        for context in ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:marks"] {
            told += &folder.run("nbdinfo", &format!("--map={context} {uri}"));
        }
        told
    };
    assert_eq!(look("ours/qemu-nbd"), look("qemu-nbd"));
}
