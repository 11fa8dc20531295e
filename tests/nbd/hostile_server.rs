//! Our client against servers that send nonsense: it may get errors, and nothing else.

use crate::harness::{BACKENDS, seed};
use crate::script::Script;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use cowvm::block::protocol::Location;
use cowvm::block::protocol::nbd::Target;
use cowvm::util::keyval::Options;
use cowvm::util::nbd::transmission::{ChunkWriter, Headers, simple_reply};
use cowvm::util::nbd::{Command, OptionHeader, Request, error};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

const SIZE: u64 = 1 << 20;

/// A server that does everything right until its time has come.
struct Rogue {
    stream: UnixStream,
    rng: StdRng,
    /// Messages until one is spoilt.
    left: u32,
    /// Requests until one is answered with ESHUTDOWN, which is the end.
    until_shutdown: u32,
    script: Script,
}

/// The end of a conversation.
struct Over;

impl Rogue {
    fn read(&mut self, len: usize) -> Result<Vec<u8>, Over> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).map_err(|_| Over)?;
        Ok(bytes)
    }

    /// Sends a message; the one whose turn it is, spoilt, and then nothing more.
    fn send(&mut self, mut bytes: Vec<u8>) -> Result<(), Over> {
        let spoil = self.left == 0;
        if spoil {
            spoil_bytes(&mut bytes, &mut self.rng);
        }
        self.left = self.left.wrapping_sub(1);
        self.stream.write_all(&bytes).map_err(|_| Over)?;
        if spoil { Err(Over) } else { Ok(()) }
    }

    fn talk(&mut self) -> Result<(), Over> {
        self.send(Script::greeting())?;
        self.read(4)?;
        while !self.option()? {}
        loop {
            self.request()?;
        }
    }

    fn option(&mut self) -> Result<bool, Over> {
        let header = OptionHeader::parse(&self.read(OptionHeader::SIZE)?).ok_or(Over)?;
        self.read(header.len as usize)?;
        let (said, done) = self.script.answer(header.option);
        said.into_iter().try_for_each(|message| self.send(message))?;
        Ok(done)
    }

    fn request(&mut self) -> Result<(), Over> {
        let headers = self.script.headers;
        let header = self.read(headers.request_size())?;
        let request = Request::parse(&header, headers).ok_or(Over)?;
        let Request { cookie, offset, len, .. } = request;
        let chunks = ChunkWriter { headers, cookie, offset };
        let simple = headers == Headers::Simple;
        if self.until_shutdown == 0 {
            let refusal = if simple {
                simple_reply(cookie, error::ESHUTDOWN)
            } else {
                chunks.error(error::ESHUTDOWN, "")
            };
            self.send(refusal)?;
            return Err(Over);
        }
        self.until_shutdown -= 1;
        let answer = match Command::from_number(request.command).ok_or(Over)? {
            Command::Disconnect => return Err(Over),
            Command::Read if simple => [simple_reply(cookie, 0), vec![7; len as usize]].concat(),
            Command::Read => {
                let half = len / 2;
                self.send([chunks.data(offset, half, false), vec![7; half as usize]].concat())?;
                chunks.hole(offset + half, (len - half) as u32, true)
            }
            Command::BlockStatus => chunks.status(1, &[(len, 3)], true),
            Command::Write => {
                self.read(len as usize)?;
                self.script.done(&request)
            }
            _ => self.script.done(&request),
        };
        self.send(answer)
    }
}

/// Changes a message in one of the ways in which messages go wrong.
fn spoil_bytes(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    // Headers are where it hurts.
    let at = rng.random_range(0..bytes.len().min(48));
    match rng.random_range(0..6) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, rng.random()),
        4 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
        _ => *bytes = [&bytes[..], &bytes[..]].concat(),
    }
}

/// Asks a few things of the server; whatever the answer, there is one.
async fn ask(engine: &std::rc::Rc<Engine>, name: &str) {
    let mut options = OpenOptions { format: Some("raw".into()), read_only: false, ..OpenOptions::default() };
    let target = Target::from_name(name).unwrap().unwrap();
    options.location = Some(Location::Nbd(target, Options::parse("reconnect-delay=0", None)));
    let Ok(node) = open(engine, name, &options).await else { return };
    for round in 0..3 {
        let _ = node.read_bytes(round * 8192, 8192).await;
        let _ = node.block_status(0, node.size()).await;
        let _ = node.write_bytes(round * 4096, &[1; 4096]).await;
        let _ = node.write_zeroes(0, 4096, true).await;
        let _ = node.discard(0, 4096).await;
        let _ = node.flush().await;
    }
    let _ = node.close().await;
}

#[test]
fn nonsense_at_any_point_of_a_conversation_is_survived() {
    let seed = seed();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..240 {
        let listener = UnixListener::bind(&path).unwrap();
        let headers = [Headers::Simple, Headers::Structured, Headers::Extended][round % 3];
        let (rng_of_server, left) = (StdRng::seed_from_u64(rng.random()), rng.random_range(0..30));
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let rogue = honest(stream, headers, u32::MAX);
            let _ = Rogue { rng: rng_of_server, left, ..rogue }.talk();
        });
        let backend: Backend = BACKENDS[round / 3 % 2];
        let engine = Engine::new(backend).unwrap();
        let name = format!("nbd:unix:{}", path.display());
        let inner = engine.clone();
        engine.block_on(async move { ask(&inner, &name).await }).unwrap();
        engine.drop_tasks().unwrap();
        server.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}

/// A server that spoils nothing.
fn honest(stream: UnixStream, headers: Headers, until_shutdown: u32) -> Rogue {
    let script = Script { headers, flags: Script::FLAGS, size: SIZE };
    Rogue { stream, rng: StdRng::seed_from_u64(0), left: u32::MAX, until_shutdown, script }
}

/// A server that goes down in good order refuses what it has not done: that is asked of the next one.
#[test]
fn what_a_server_refuses_because_it_goes_down_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let path = folder.path().join(format!("{headers:?}"));
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            // The third answers all; those before go down in the middle, one of them while changes are made again.
            for until in [3, 1, u32::MAX] {
                let (stream, _) = listener.accept().unwrap();
                let _ = honest(stream, headers, until).talk();
            }
        });
        let engine = Engine::new(Backend::Auto).unwrap();
        let options = OpenOptions { format: Some("raw".into()), read_only: false, ..OpenOptions::default() };
        let name = format!("nbd:unix:{}", path.display());
        let node = engine.block_on(open(&engine, &name, &options)).unwrap().unwrap();
        for at in 0..6 {
            engine.block_on(node.write_bytes(at * 4096, &[1; 4096])).unwrap().unwrap();
        }
        engine.block_on(node.flush()).unwrap().unwrap();
        engine.block_on(node.close()).unwrap().unwrap();
        drop(node);
        server.join().unwrap();
    }
}

#[test]
fn an_honest_conversation_of_every_kind_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let path = folder.path().join(format!("{headers:?}"));
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let _ = honest(stream, headers, u32::MAX).talk();
        });
        let engine = Engine::new(Backend::Auto).unwrap();
        let options = OpenOptions { format: Some("raw".into()), ..OpenOptions::default() };
        let node = engine.block_on(open(&engine, &format!("nbd:unix:{}", path.display()), &options));
        let node = node.unwrap().unwrap();
        let read = engine.block_on(node.read_bytes(512, 1024)).unwrap().unwrap();
        let rest = if headers == Headers::Simple { 7 } else { 0 };
        assert_eq!(read, [vec![7; 512], vec![rest; 512]].concat());
        let status = engine.block_on(node.block_status(0, SIZE)).unwrap().unwrap();
        assert_eq!((status.len, status.zero), (SIZE, headers != Headers::Simple));
        engine.block_on(node.close()).unwrap().unwrap();
        drop(node);
        server.join().unwrap();
    }
}
