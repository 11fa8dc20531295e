//! A server that dies when its time has come, and with it what was not flushed: all of it, or some.
//!
//! ```text
//!   WRITE, ZEROES, TRIM ─▶ cache ── FLUSH ─▶ platter      death: each change that is not on the platter
//!             └──────────── FUA ────────────────▶         gets there or not, as chance has it
//! ```
//!
//! Requests that are there at the same time are done and answered in any order.

use crate::script::Script;
use cowvm::util::nbd::transmission::{ChunkWriter, Headers, simple_reply};
use cowvm::util::nbd::{Command, OptionHeader, Request, command};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

/// What outlives the server.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) platter: Vec<u8>,
    cache: Vec<u8>,
    unflushed: Vec<Change>,
    /// Most bytes that were ever unflushed.
    pub(crate) most_unflushed: usize,
    /// Deaths so far.
    pub(crate) deaths: usize,
    /// Looks at the bytes of every write before it is done.
    pub(crate) inspect: Option<Inspector>,
}

type Inspector = Box<dyn Fn(&[u8]) + Send>;

struct Change {
    at: usize,
    bytes: Vec<u8>,
    durable: bool,
}

impl Disk {
    fn change(&mut self, at: usize, bytes: Vec<u8>, durable: bool) {
        let range = at..at + bytes.len();
        self.cache[range.clone()].copy_from_slice(&bytes);
        if durable {
            self.platter[range].copy_from_slice(&bytes);
        }
        self.unflushed.push(Change { at, bytes, durable });
        let unflushed = self.unflushed.iter().map(|change| change.bytes.len()).sum();
        self.most_unflushed = self.most_unflushed.max(unflushed);
    }

    fn flush(&mut self) {
        self.platter.copy_from_slice(&self.cache);
        self.unflushed.clear();
    }

    /// Each change has `odds` to be on the platter nevertheless.
    fn die(&mut self, rng: &mut StdRng, odds: f64) {
        for change in std::mem::take(&mut self.unflushed) {
            if change.durable || rng.random_bool(odds) {
                self.platter[change.at..change.at + change.bytes.len()].copy_from_slice(&change.bytes);
            }
        }
        self.cache.copy_from_slice(&self.platter);
        self.deaths += 1;
    }
}

/// How such a server is.
pub(crate) struct Forgetful {
    pub(crate) script: Script,
    /// After how many requests it dies, each time; then it lives on.
    pub(crate) lives: Vec<usize>,
    /// Of a change that was not flushed, to survive.
    pub(crate) odds: f64,
    pub(crate) seed: u64,
}

impl Forgetful {
    /// Starts it on a socket. It ends with the client of its last life.
    pub(crate) fn start(self, socket: PathBuf) -> Arc<Mutex<Disk>> {
        let zeros = vec![0; self.script.size as usize];
        let disk = Disk { platter: zeros.clone(), cache: zeros, ..Disk::default() };
        let disk = Arc::new(Mutex::new(disk));
        let (listener, shared) = (UnixListener::bind(socket).unwrap(), disk.clone());
        std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(self.seed);
            for requests in self.lives.iter().copied().chain([usize::MAX]) {
                let (stream, _) = listener.accept().unwrap();
                // A connection that ends has ended: the next client is waited for.
                let _ = Life { stream: &stream, script: self.script, disk: &shared }.live(requests, &mut rng);
                let _ = stream.shutdown(Shutdown::Both);
                shared.lock().unwrap().die(&mut rng, self.odds);
            }
        });
        disk
    }
}

/// From a start to the next death.
struct Life<'a> {
    stream: &'a UnixStream,
    script: Script,
    disk: &'a Mutex<Disk>,
}

/// A request with what it brings.
type Job = (Request, Vec<u8>);

impl Life<'_> {
    fn live(&self, requests: usize, rng: &mut StdRng) -> Result<()> {
        self.shake_hands()?;
        let (sender, receiver) = mpsc::channel();
        let (headers, stream) = (self.script.headers, self.stream.try_clone()?);
        std::thread::spawn(move || while listen(&stream, headers, &sender).is_ok() {});
        let mut waiting: Vec<Job> = Vec::new();
        for _ in 0..requests {
            if waiting.is_empty() {
                let Ok(job) = receiver.recv() else { return Ok(()) };
                waiting.push(job);
            }
            waiting.extend(receiver.try_iter());
            let job = waiting.swap_remove(rng.random_range(0..waiting.len()));
            let reply = self.act(job);
            write(self.stream, &reply)?;
        }
        // The last that it does it may do in part: the client hears nothing of it, or not all.
        if let Some(job) = waiting.pop() {
            let reply = self.act(job);
            write(self.stream, &reply[..rng.random_range(0..reply.len())])?;
        }
        Ok(())
    }

    fn shake_hands(&self) -> Result<()> {
        write(self.stream, &Script::greeting())?;
        read(self.stream, 4)?;
        loop {
            let header = OptionHeader::parse(&read(self.stream, OptionHeader::SIZE)?).unwrap();
            read(self.stream, header.len as usize)?;
            let (said, done) = self.script.answer(header.option);
            write(self.stream, &said.concat())?;
            if done {
                return Ok(());
            }
        }
    }

    /// Does what is asked for; the reply.
    fn act(&self, (request, bytes): Job) -> Vec<u8> {
        let (at, len) = (request.offset as usize, request.len as usize);
        let durable = request.flags & command::FUA != 0;
        let mut disk = self.disk.lock().unwrap();
        match Command::from_number(request.command).unwrap() {
            Command::Read => return self.data(&request, &disk.cache[at..at + len]),
            Command::Write => {
                if let Some(inspect) = &disk.inspect {
                    inspect(&bytes);
                }
                disk.change(at, bytes, durable);
            }
            Command::WriteZeroes | Command::Trim => disk.change(at, vec![0; len], durable),
            Command::Flush => disk.flush(),
            other => panic!("{other:?} was not offered"),
        }
        self.script.done(&request)
    }

    fn data(&self, request: &Request, bytes: &[u8]) -> Vec<u8> {
        let head = match self.script.headers {
            Headers::Simple => simple_reply(request.cookie, 0),
            headers => ChunkWriter { headers, cookie: request.cookie, offset: request.offset }.data(
                request.offset,
                request.len,
                true,
            ),
        };
        [&head, bytes].concat()
    }
}

/// Hears one request; an error at the end.
fn listen(stream: &UnixStream, headers: Headers, jobs: &mpsc::Sender<Job>) -> Result<()> {
    let request = Request::parse(&read(stream, headers.request_size())?, headers).unwrap();
    let over = std::io::ErrorKind::UnexpectedEof;
    let bytes = match Command::from_number(request.command) {
        Some(Command::Disconnect) => return Err(over.into()),
        Some(Command::Write) => read(stream, request.len as usize)?,
        _ => Vec::new(),
    };
    jobs.send((request, bytes)).map_err(|_| over.into())
}

fn read(mut stream: &UnixStream, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write(mut stream: &UnixStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)
}
