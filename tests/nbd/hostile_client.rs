//! Our server against clients that send nonsense, or nothing: the others are served.

use crate::harness::{Folder, Server, random_file, seed};
use cowvm::block::aio::Backend;
use cowvm::util::nbd::handshake::{contexts_data, go_data, option_message};
use cowvm::util::nbd::transmission::Headers;
use cowvm::util::nbd::{Command, Request, option};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Tests of servers with either reactor.
macro_rules! tests {
    ($($property:ident),* $(,)?) => {
        mod with_a_ring {
            $(#[test] fn $property() { super::$property(super::Backend::Auto); })*
        }
        mod with_threads {
            $(#[test] fn $property() { super::$property(super::Backend::Threads); })*
        }
    };
}

tests![
    nonsense_at_any_point_of_a_conversation_ends_it_and_nothing_else,
    a_client_may_leave_at_every_byte,
    names_longer_than_the_protocol_has_are_refused,
    a_thousand_clients_that_say_nothing_do_not_keep_out_one_that_does,
    a_client_that_reads_no_replies_holds_up_nobody_else,
    a_handshake_that_takes_too_long_is_ended,
    a_client_too_many_waits_for_a_place,
    who_waits_for_a_place_and_hangs_up_is_forgotten,
    who_waits_for_a_place_is_not_sent_away_for_those_who_say_nothing,
    long_reads_without_chunks_are_all_answered,
    hints_to_read_ahead_hold_no_memory_and_end_with_their_client,
];

/// Most memory that the server may hold after all that, in bytes.
const MEMORY: u64 = 200 << 20;

fn served(backend: Backend) -> (Folder, Server) {
    let folder = Folder::with(backend);
    random_file(&folder.path("disk"), 1 << 20, 5);
    let server = folder.serve("ours/qemu-nbd", "-t -e 4 -f raw disk");
    (folder, server)
}

fn connect(folder: &Folder) -> UnixStream {
    UnixStream::connect(folder.path("socket")).unwrap()
}

/// A client of good manners is served.
fn serves_others(folder: &Folder, server: &Server) {
    folder.run("qemu-img", &format!("compare -U -f raw -F raw {} disk", folder.uri("")));
    let memory = server.memory();
    assert!(memory < MEMORY, "{memory} bytes");
}

/// What a client says in a conversation, message by message.
fn conversation(headers: Headers) -> Vec<Vec<u8>> {
    let mut said = vec![3u32.to_be_bytes().to_vec(), option_message(option::LIST, &[])];
    match headers {
        Headers::Simple => {}
        Headers::Structured => said.push(option_message(option::STRUCTURED_REPLY, &[])),
        Headers::Extended => said.push(option_message(option::EXTENDED_HEADERS, &[])),
    }
    said.push(option_message(option::SET_META_CONTEXT, &contexts_data("", &["base:allocation"])));
    said.push(option_message(option::INFO, &go_data("", &[3])));
    said.push(option_message(option::GO, &go_data("", &[3])));
    let request = |command: Command, flags, offset, len| {
        Request { flags, command: command as u16, cookie: offset, offset, len }.to_bytes(headers)
    };
    said.push(request(Command::Read, 0, 4096, 65536));
    said.push([request(Command::Write, 0, 0, 4096), vec![1; 4096]].concat());
    said.push(request(Command::BlockStatus, 0, 0, 1 << 20));
    said.push(request(Command::WriteZeroes, 1, 0, 4096));
    said.push(request(Command::Trim, 0, 0, 4096));
    said.push(request(Command::Cache, 0, 0, 1 << 20));
    said.push(request(Command::Flush, 0, 0, 0));
    said.push(request(Command::Disconnect, 0, 0, 0));
    said
}

/// Says all of it and listens until the server hangs up.
fn say(folder: &Folder, said: &[u8]) {
    let mut stream = connect(folder);
    let mut ear = stream.try_clone().unwrap();
    let listener = std::thread::spawn(move || std::io::copy(&mut ear, &mut std::io::sink()));
    // The server may have had enough.
    let _ = stream.write_all(said);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = listener.join().unwrap();
}

fn nonsense_at_any_point_of_a_conversation_ends_it_and_nothing_else(backend: Backend) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let (folder, server) = served(backend);
    for round in 0..300 {
        let mut said = conversation([Headers::Simple, Headers::Structured, Headers::Extended][round % 3]);
        let which = rng.random_range(0..said.len());
        let message = &mut said[which];
        let at = rng.random_range(0..message.len().min(64));
        match rng.random_range(0..5) {
            0 => message[at] ^= 1 << rng.random_range(0..8),
            1 => message[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
            2 => message.truncate(at),
            3 => message.insert(at, rng.random()),
            _ => said.truncate(which),
        }
        say(&folder, &said.concat());
    }
    serves_others(&folder, &server);
    assert_eq!(server.terminate(), Some(0));
}

fn a_client_may_leave_at_every_byte(backend: Backend) {
    let (folder, server) = served(backend);
    let said = conversation(Headers::Structured).concat();
    for len in (0..300).chain((300..said.len()).step_by(97)) {
        let mut stream = connect(&folder);
        let _ = stream.write_all(&said[..len]);
    }
    serves_others(&folder, &server);
}

fn names_longer_than_the_protocol_has_are_refused(backend: Backend) {
    let (folder, server) = served(backend);
    for len in [4097, 65_536, 1 << 20, u32::MAX as usize] {
        let name = "a".repeat(len.min(1 << 20));
        for which in [option::EXPORT_NAME, option::GO, option::SET_META_CONTEXT, 77] {
            let mut message = option_message(which, name.as_bytes());
            message[12..16].copy_from_slice(&(len as u32).to_be_bytes());
            say(&folder, &[&3u32.to_be_bytes()[..], &message].concat());
        }
    }
    serves_others(&folder, &server);
}

fn a_thousand_clients_that_say_nothing_do_not_keep_out_one_that_does(backend: Backend) {
    raise_file_limit();
    let (folder, server) = served(backend);
    let silent: Vec<UnixStream> = (0..1000).map(|_| connect(&folder)).collect();
    serves_others(&folder, &server);
    drop(silent);
    serves_others(&folder, &server);
}

fn a_client_that_reads_no_replies_holds_up_nobody_else(backend: Backend) {
    let (folder, server) = served(backend);
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&folder);
        let start = conversation(Headers::Structured)[..6].concat();
        stream.write_all(&start).unwrap();
        let read = Request { flags: 0, command: 0, cookie: 1, offset: 0, len: 1 << 20 }
            .to_bytes(Headers::Structured);
        // As many as the server takes; then it listens no more.
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        for _ in 0..20_000 {
            if stream.write_all(&read).is_err() {
                break;
            }
        }
        greedy.push(stream);
    }
    folder.run("qemu-img", &format!("compare -U -f raw -F raw {} disk", folder.uri("")));
    let memory = server.memory();
    assert!(memory < 3 * (64 << 20) + MEMORY, "{memory} bytes");
}

fn a_handshake_that_takes_too_long_is_ended(backend: Backend) {
    let folder = Folder::with(backend);
    random_file(&folder.path("disk"), 1 << 20, 5);
    let _server = folder.serve("ours/qemu-nbd", "-t --handshake-limit=1 -f raw disk");
    let mut stream = connect(&folder);
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert_eq!(&heard[..8], b"NBDMAGIC");
}

fn a_client_too_many_waits_for_a_place(backend: Backend) {
    let folder = Folder::with(backend);
    random_file(&folder.path("disk"), 1 << 20, 5);
    let _server = folder.serve("ours/qemu-nbd", "-t -e 1 -f raw disk");
    let first = entered(&folder);
    let mut second = waits(&folder);
    drop(first);
    second.read_exact(&mut [0; 34 + 32 + 20]).unwrap();
}

/// A client that is in the export, where only one may be.
fn entered(folder: &Folder) -> UnixStream {
    let mut stream = connect(folder);
    let said = conversation(Headers::Simple);
    stream.write_all(&[&said[0][..], &said[4]].concat()).unwrap();
    // Greeting, block sizes, size and flags, ACK.
    stream.read_exact(&mut [0; 18 + 34 + 32 + 20]).unwrap();
    stream
}

/// A client that has asked to be let in, and waits. The server has its wish when it answers the question before.
fn waits(folder: &Folder) -> UnixStream {
    let mut stream = connect(folder);
    let said = conversation(Headers::Simple);
    stream.write_all(&[&said[0][..], &said[3], &said[4]].concat()).unwrap();
    stream.read_exact(&mut [0; 18 + 34 + 32 + 20]).unwrap();
    stream
}

fn who_waits_for_a_place_and_hangs_up_is_forgotten(backend: Backend) {
    let folder = Folder::with(backend);
    random_file(&folder.path("disk"), 1 << 20, 5);
    let server = folder.serve("ours/qemu-nbd", "-t -e 1 -f raw disk");
    let first = entered(&folder);
    let before = server.descriptors();
    for _ in 0..600 {
        drop(waits(&folder));
    }
    while server.descriptors() > before + 20 {
        std::thread::yield_now();
    }
    drop(first);
    entered(&folder);
}

fn who_waits_for_a_place_is_not_sent_away_for_those_who_say_nothing(backend: Backend) {
    raise_file_limit();
    let folder = Folder::with(backend);
    random_file(&folder.path("disk"), 1 << 20, 5);
    let _server = folder.serve("ours/qemu-nbd", "-t -e 1 -f raw disk");
    let first = entered(&folder);
    let mut patient = waits(&folder);
    let silent: Vec<UnixStream> = (0..600).map(|_| connect(&folder)).collect();
    drop(first);
    patient.read_exact(&mut [0; 34 + 32 + 20]).unwrap();
    drop(silent);
}

/// Replies that are longer than what the server holds of one client are sent as they are read.
fn long_reads_without_chunks_are_all_answered(backend: Backend) {
    let folder = Folder::with(backend);
    let bytes = random_file(&folder.path("disk"), 24 << 20, 6);
    let _server = folder.serve("ours/qemu-nbd", "-t -e 1 -f raw disk");
    let mut stream = entered(&folder);
    let mut requests = Vec::new();
    for cookie in 0..6u64 {
        let len = if cookie % 2 == 0 { 24 << 20 } else { 4096 };
        let read = Request { flags: 0, command: Command::Read as u16, cookie, offset: 0, len };
        requests.extend(read.to_bytes(Headers::Simple));
    }
    stream.write_all(&requests).unwrap();
    for _ in 0..6 {
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[4..8], [0; 4]);
        let len = if head[15] % 2 == 0 { 24 << 20 } else { 4096 };
        let mut data = vec![0; len];
        stream.read_exact(&mut data).unwrap();
        assert!(data == bytes[..len]);
    }
}

fn hints_to_read_ahead_hold_no_memory_and_end_with_their_client(backend: Backend) {
    let folder = Folder::with(backend);
    std::fs::File::create(folder.path("disk")).unwrap().set_len(1 << 32).unwrap();
    let server = folder.serve("ours/qemu-nbd", "-t -e 2 -f raw disk");
    let mut stream = entered(&folder);
    let cache =
        Request { flags: 0, command: Command::Cache as u16, cookie: 0, offset: 0, len: u64::from(u32::MAX) };
    stream.write_all(&cache.to_bytes(Headers::Simple).repeat(2000)).unwrap();
    drop(stream);
    entered(&folder);
    assert!(server.memory() < MEMORY, "{} bytes", server.memory());
}

/// As many descriptors as the host allows.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}
