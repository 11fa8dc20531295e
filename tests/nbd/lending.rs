//! Replies that wait in a socket as pages of a writable qcow2 image, while others give up its clusters and fill them.

use crate::harness::{Folder, Server};
use cowvm::util::nbd::handshake::{go_data, option_message};
use cowvm::util::nbd::transmission::Headers;
use cowvm::util::nbd::{Command, Request, option};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

const CLUSTER: usize = 64 << 10;
/// Of a read, in bytes.
const LEN: usize = 2 * CLUSTER;
/// What is read and discarded, in bytes; as much behind it is written then.
const HALF: usize = 2 << 20;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A disk whose first half is full of ones.
fn images() -> Folder {
    let folder = Folder::new();
    folder.run("qemu-img", &format!("create -q -f qcow2 disk {}", 2 * HALF));
    folder.run_of("qemu-io", &["-c", &format!("write -P 1 0 {HALF}"), "-f", "qcow2", "disk"]);
    folder
}

/// A server at a Unix socket or a port, the name of its export, and a connection to it that has entered the export.
fn serve(folder: &Folder, port: bool) -> (Server, String, Box<dyn Stream>) {
    let line = "-t -e 0 --discard=unmap -f qcow2 disk";
    let (server, uri, mut stream): (_, _, Box<dyn Stream>) = if port {
        let (server, port) = folder.serve_port(line);
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        (server, format!("nbd://127.0.0.1:{port}"), Box::new(stream))
    } else {
        let server = folder.serve("ours/qemu-nbd", line);
        let stream = UnixStream::connect(folder.path("socket")).unwrap();
        (server, folder.uri(""), Box::new(stream))
    };
    let wish = option_message(option::GO, &go_data("", &[3]));
    stream.write_all(&[&3u32.to_be_bytes()[..], &wish].concat()).unwrap();
    // Greeting, block sizes, size and flags, ACK.
    stream.read_exact(&mut [0; 18 + 34 + 32 + 20]).unwrap();
    (server, uri, stream)
}

/// Asks for the first half, and waits until the first reply has begun.
fn ask(stream: &mut dyn Stream) {
    let request = |offset: usize| Request {
        flags: 0,
        command: Command::Read as u16,
        cookie: offset as u64,
        offset: offset as u64,
        len: LEN as u64,
    };
    let requests: Vec<u8> =
        (0..HALF).step_by(LEN).flat_map(|offset| request(offset).to_bytes(Headers::Simple)).collect();
    stream.write_all(&requests).unwrap();
    head(stream);
}

/// The offset that a reply is about.
fn head(stream: &mut dyn Stream) -> usize {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    u64::from_be_bytes(head[8..].try_into().unwrap()) as usize
}

/// Takes all replies. Each cluster is what it was, or what it became when it was discarded.
fn take(stream: &mut dyn Stream) {
    let replies = HALF / LEN;
    for reply in 0..replies {
        let mut body = vec![7; LEN];
        stream.read_exact(&mut body).unwrap();
        for cluster in body.chunks(CLUSTER) {
            assert!(matches!(cluster[0], 0 | 1) && cluster.iter().all(|&byte| byte == cluster[0]));
        }
        if reply + 1 < replies {
            head(stream);
        }
    }
}

/// Another client gives up the first half and fills the second with twos; then the other way round, with ones.
fn change(folder: &Folder, uri: &str, back: bool) {
    let (gone, filled, byte) = if back { (HALF, 0, 1) } else { (0, HALF, 2) };
    let discard = format!("discard {gone} {HALF}");
    let write = format!("write -P {byte} {filled} {HALF}");
    let words = ["-c", &discard, "-c", "flush", "-c", &write, "-c", "flush", "-f", "raw", uri];
    folder.run_of("qemu-io", &words);
}

#[test]
fn a_reply_that_waits_never_has_the_bytes_of_another_place() {
    for port in [false, true] {
        let folder = images();
        let (server, uri, mut stream) = serve(&folder, port);
        for _ in 0..8 {
            ask(&mut *stream);
            change(&folder, &uri, false);
            take(&mut *stream);
            change(&folder, &uri, true);
        }
        // Whoever goes away without taking anything leaves nothing behind.
        ask(&mut *stream);
        change(&folder, &uri, false);
        drop(stream);
        change(&folder, &uri, true);
        assert_eq!(server.terminate(), Some(0));
        folder.run("qemu-img", "check disk");
        let len = std::fs::metadata(folder.path("disk")).unwrap().len();
        assert!(len < 6 * HALF as u64, "{len} bytes: clusters did not come back");
    }
}
