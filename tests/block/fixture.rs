//! Images made by the real qemu-img, and graphs opened on them.

use cowvm::block::aio::{Backend, Engine};
use cowvm::block::graph::Node;
use cowvm::block::open::open;
use cowvm::block::options::OpenOptions;
use cowvm::block::{Buffer, Kind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::Duration;

/// Both reactors.
pub(crate) const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Threads];

/// A folder that goes away with the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs qemu-img in this folder; `line` is split at spaces.
    pub(crate) fn qemu_img(&self, line: &str) -> String {
        self.run("qemu-img", &line.split(' ').collect::<Vec<_>>())
    }

    /// Runs qemu-io commands on an image of this folder.
    pub(crate) fn qemu_io(&self, format: &str, image: &str, commands: &[&str]) {
        self.qemu_io_on(&["-f", format, image], commands);
    }

    /// Runs qemu-io commands on what `image` describes: the words of its command line.
    pub(crate) fn qemu_io_on(&self, image: &[&str], commands: &[&str]) {
        self.run("qemu-io", &[commands_of(commands), image.to_vec()].concat());
    }

    /// Runs qemu-io commands and kills qemu-io then: what it had not written is lost.
    pub(crate) fn qemu_io_dies(&self, image: &str, commands: &[&str]) {
        let words = [&commands_of(commands)[..], &["-c", "abort", "-f", "qcow2", image]].concat();
        assert!(!self.output("qemu-io", &words).status.success(), "qemu-io survived");
    }

    /// Runs qemu-img, which must refuse.
    pub(crate) fn qemu_img_refuses(&self, line: &str) {
        let output = self.output("qemu-img", &line.split(' ').collect::<Vec<_>>());
        assert!(!output.status.success(), "qemu-img {line}: done");
    }

    /// Opens what `image` describes in qemu-io, which must refuse. Returns what it says.
    pub(crate) fn qemu_io_refuses(&self, image: &str) -> String {
        let output = self.output("qemu-io", &["--image-opts", "-c", "read 0 512", image]);
        assert!(!output.status.success(), "{image}: opened");
        String::from_utf8(output.stderr).unwrap()
    }

    /// How many bytes of disk a file takes.
    pub(crate) fn space(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name)).unwrap().blocks() * 512
    }

    fn output(&self, program: &str, words: &[&str]) -> Output {
        Command::new(program).args(words).current_dir(self.0.path()).output().unwrap()
    }

    fn run(&self, program: &str, words: &[&str]) -> String {
        let output = self.output(program, words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{program} {words:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// The guest-visible content, as the real qemu-img sees it.
    pub(crate) fn content(&self, format: &str, image: &str) -> Vec<u8> {
        self.qemu_img(&format!("convert -f {format} -O raw {image} {image}.content"));
        std::fs::read(self.path(&format!("{image}.content"))).unwrap()
    }
}

/// Commands for qemu-io as words of its command line.
fn commands_of<'a>(commands: &[&'a str]) -> Vec<&'a str> {
    commands.iter().flat_map(|command| ["-c", command]).collect()
}

/// An open image with the engine that runs it.
pub(crate) struct Image {
    pub(crate) engine: Rc<Engine>,
    pub(crate) node: Rc<Node>,
}

impl Image {
    pub(crate) fn try_open(backend: Backend, path: &Path, options: &OpenOptions) -> Result<Image> {
        let engine = Engine::new(backend).unwrap();
        let node = engine.block_on(open(&engine, path.to_str().unwrap(), options)).unwrap()?;
        Ok(Image { engine, node })
    }

    pub(crate) fn open(backend: Backend, path: &Path, format: &str, read_only: bool) -> Image {
        let options =
            OpenOptions { format: Some(format.into()), read_only, unmap: true, ..OpenOptions::default() };
        Image::open_with(backend, path, &options)
    }

    pub(crate) fn open_with(backend: Backend, path: &Path, options: &OpenOptions) -> Image {
        // A child that another test of this process is starting holds all our locks from its fork to its exec.
        for _ in 0..500 {
            match Image::try_open(backend, path, options) {
                Err(error) if error.kind() == Kind::Locked => std::thread::sleep(Duration::from_millis(10)),
                other => return other.unwrap(),
            }
        }
        panic!("{} stays locked", path.display());
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.engine.block_on(self.node.read_bytes(offset, len)).unwrap().unwrap()
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let iov = Buffer::from_bytes(bytes).iov(bytes.len());
        self.engine.block_on(self.node.write(offset, &iov)).unwrap().unwrap();
    }

    pub(crate) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) {
        self.engine.block_on(self.node.write_zeroes(offset, len, may_unmap)).unwrap().unwrap();
    }

    pub(crate) fn discard(&self, offset: u64, len: u64) {
        self.engine.block_on(self.node.discard(offset, len)).unwrap().unwrap();
    }

    pub(crate) fn flush(&self) {
        self.engine.block_on(self.node.flush()).unwrap().unwrap();
    }

    pub(crate) fn close(self) {
        self.flush();
        self.engine.block_on(self.node.close()).unwrap().unwrap();
    }
}
