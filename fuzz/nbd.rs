//! What the targets do with the bytes of one side of a conversation: the other side is cowvm's.

use cowvm::block::aio::{Backend, Engine, Socket};
use cowvm::block::drive::Drive;
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use cowvm::block::protocol::Location;
use cowvm::block::protocol::nbd::Target;
use cowvm::nbd_server::{Export, Offer, Server, Settings};
use cowvm::util::keyval::Options;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

/// Size of the export, in bytes.
const SIZE: u64 = 1 << 20;

fn raw(read_only: bool) -> OpenOptions {
    OpenOptions { format: Some("raw".into()), read_only, force_share: true, ..OpenOptions::default() }
}

/// A server sends `bytes`, whatever it is asked; the client asks everything.
pub fn answer_client(bytes: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (said, name) = (bytes.to_vec(), format!("nbd:unix:{}", path.display()));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the client");
        let _ = stream.write_all(&said);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let engine = Engine::new(Backend::Threads).expect("an engine");
    let mut options = raw(true);
    let target = Target::from_name(&name).expect("a name of an export").expect("of an export");
    options.location = Some(Location::Nbd(target, Options::parse("reconnect-delay=0", None)));
    let conversation = async {
        let Ok(node) = open(&engine, &name, &options).await else { return };
        let _ = node.read_bytes(0, 4096).await;
        let _ = node.block_status(0, node.size()).await;
        let _ = node.read_bytes(node.size() / 2, 4096).await;
        let _ = node.close().await;
    };
    engine.block_on(conversation).expect("the engine runs");
    engine.drop_tasks().expect("the engine ends");
    drop(engine);
    server.join().expect("the server ends");
}

/// A client sends `bytes`, whatever it is answered.
pub fn ask_server(bytes: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = folder.path().join("s");
    let disk = File::create_new(folder.path().join("disk")).expect("a file in memory");
    disk.set_len(SIZE).expect("room for it");
    let drive =
        Drive::open("fuzz", &format!("/proc/self/fd/{}", disk.as_raw_fd()), &raw(true)).expect("a drive");
    let engine = Engine::new(Backend::Threads).expect("an engine");
    let listener = UnixListener::bind(&path).expect("a socket");
    let listener = Socket::new(&engine, listener.into()).expect("a socket");
    let server = Server::new(&engine, Settings { handshake_limit: None, persistent: true, tls: None });
    server.add(Export::new(&drive, Offer { shared: 1, ..Offer::default() }));
    let (over, end) = async_channel::bounded::<()>(1);
    let said = bytes.to_vec();
    let client = thread::spawn(move || {
        let mut stream = UnixStream::connect(path).expect("the server");
        let mut ear = stream.try_clone().expect("a descriptor");
        let listening = thread::spawn(move || ear.read_to_end(&mut Vec::new()));
        let _ = stream.write_all(&said);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = listening.join();
        drop(over);
    });
    let served = engine.block_on(server.run(listener, async move {
        // Closed, never sent to.
        let _ = end.recv().await;
    }));
    served.expect("the engine runs").expect("the server runs");
    engine.drop_tasks().expect("the engine ends");
    client.join().expect("the client ends");
    drive.close().expect("the drive closes");
}
