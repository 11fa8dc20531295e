//! Servers as processes, clients in this one, folders that go away.

use crate::seed::seed_or;
use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use cowvm::block::{Buffer, Result};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::Duration;

/// Both reactors.
pub(crate) const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Threads];

/// A folder with ours under the names of QEMU's tools in `bin`.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    /// The reactor of our programs.
    backend: Backend,
}

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder::with(Backend::Auto)
    }

    /// As [`Folder::new`]; our programs use this reactor there.
    pub(crate) fn with(backend: Backend) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        for name in ["qemu-img", "qemu-nbd"] {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cowvm"), folder.path().join("bin").join(name))
                .unwrap();
        }
        Folder { folder, backend }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program that a test means: `ours/X` is ours under the name X, else it is the host's.
    fn program(&self, name: &str) -> PathBuf {
        name.strip_prefix("ours/").map_or(name.into(), |name| self.path("bin").join(name))
    }

    /// Runs a program in the folder, however it ends; `line` is split at spaces.
    pub(crate) fn output(&self, program: &str, line: &str) -> Output {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        self.output_of(program, &words)
    }

    pub(crate) fn output_of(&self, program: &str, words: &[&str]) -> Output {
        self.command(program).args(words).output().unwrap()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.program(program));
        if self.backend == Backend::Threads {
            command.env("COWVM_AIO", "threads");
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs a program, which must succeed; what it said.
    pub(crate) fn run(&self, program: &str, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        self.run_of(program, &words)
    }

    pub(crate) fn run_of(&self, program: &str, words: &[&str]) -> String {
        let output = self.output_of(program, words);
        let said = said(&output);
        assert!(output.status.success(), "{program} {words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The socket of this folder's server.
    pub(crate) fn socket(&self) -> String {
        self.path("socket").to_str().unwrap().to_owned()
    }

    /// The name of an export of it.
    pub(crate) fn uri(&self, export: &str) -> String {
        let slash = if export.is_empty() { "" } else { "/" };
        format!("nbd+unix://{slash}{export}?socket={}", self.socket())
    }

    /// Starts a server on the folder's socket and waits until it listens.
    pub(crate) fn serve(&self, program: &str, line: &str) -> Server {
        let mut words: Vec<String> =
            line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        if program.ends_with("qemu-nbd") {
            words.splice(0..0, ["-k".to_owned(), self.socket()]);
        } else {
            words.splice(0..0, ["-f".to_owned(), "-U".to_owned(), self.socket()]);
        }
        // The kernel takes its time to let go of the image's locks when a server with a ring was killed.
        let started = (0..200).find_map(|_| self.try_serve(program, &words));
        started.unwrap_or_else(|| panic!("{program} {line}"))
    }

    /// Starts our server on a port of this host that nobody has; the server says which.
    pub(crate) fn serve_port(&self, line: &str) -> (Server, u16) {
        let mut child = self
            .command(env!("CARGO_BIN_EXE_cowvm"))
            .args(["nbd", "-b", "127.0.0.1", "-p", "0"])
            .args(line.split(' '))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        let port = said.trim().rsplit_once(':').unwrap().1.parse().unwrap();
        (Server(child), port)
    }

    fn is_greeted(&self) -> bool {
        let stream = UnixStream::connect(self.path("socket"));
        stream.is_ok_and(|mut stream| stream.read_exact(&mut [0; 8]).is_ok())
    }

    fn try_serve(&self, program: &str, words: &[String]) -> Option<Server> {
        // A socket of a server before answers nobody.
        let _ = std::fs::remove_file(self.path("socket"));
        let mut child = self.command(program).args(words).stderr(Stdio::null()).spawn().unwrap();
        // It listens before it has opened the image; only then it greets.
        while !self.is_greeted() {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Server(child))
    }
}

/// Standard output and standard error.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A server's process; it is killed with the handle.
pub(crate) struct Server(Child);

impl Server {
    /// Ends it as a power cut would.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Ends it as its user would; its exit status.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        self.0.wait().unwrap().code()
    }

    /// Waits until it ends by itself; its exit status.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }

    /// How much memory it holds, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An open export or image with the engine that runs it.
pub(crate) struct Image {
    pub(crate) engine: Rc<Engine>,
    pub(crate) node: Rc<Node>,
}

impl Image {
    pub(crate) fn try_open(backend: Backend, name: &str, options: &OpenOptions) -> Result<Image> {
        let engine = Engine::new(backend).unwrap();
        let node = engine.block_on(open(&engine, name, options)).unwrap()?;
        Ok(Image { engine, node })
    }

    pub(crate) fn open(backend: Backend, name: &str) -> Image {
        let options = OpenOptions {
            format: Some("raw".into()),
            read_only: false,
            unmap: true,
            ..OpenOptions::default()
        };
        Image::try_open(backend, name, &options).unwrap()
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.engine.block_on(self.node.read_bytes(offset, len)).unwrap().unwrap()
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let iov = Buffer::from_bytes(bytes).iov(bytes.len());
        self.engine.block_on(self.node.write(offset, &iov)).unwrap().unwrap();
    }

    pub(crate) fn flush(&self) {
        self.engine.block_on(self.node.flush()).unwrap().unwrap();
    }

    pub(crate) fn close(self) {
        self.flush();
        self.engine.block_on(self.node.close()).unwrap().unwrap();
    }
}

/// The seed of a random test: that of `COWVM_SEED`, or a new one.
pub(crate) fn seed() -> u64 {
    seed_or(rand::random())
}

/// Random bytes in a file.
pub(crate) fn random_file(path: &Path, len: usize, seed: u64) -> Vec<u8> {
    use rand::{Rng, SeedableRng};
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes[len / 4..len / 2].fill(0);
    std::fs::write(path, &bytes).unwrap();
    bytes
}
