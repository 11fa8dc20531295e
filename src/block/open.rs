//! Opening a graph: the image, what it is on, its backing chain.
//!
//! ```text
//!   user's name ─▶ describe (json:…) ─┬─▶ Location ──open──▶ Source ──probe──▶ format driver ─▶ Node
//!                  blkdebug:CONFIG:…  ┘   file, device,        ▲                   │
//!                                         nbd, fat             └───── chain ◀──────┘ data file, backing file
//! ```
//! Names that an image carries (of its backing file, of its data file) are names of files and nothing else: no
//! protocol, no JSON, no device is ever opened on an image's word. `blkdebug:CONFIG:` in front of a user's name makes
//! the image's file fail as the configuration says.

mod chain;

use crate::block::aio::Engine;
use crate::block::crypto::Key;
use crate::block::describe;
use crate::block::encryption;
use crate::block::filter::BlkDebug;
use crate::block::filter::blkdebug::{self, Faults};
use crate::block::format::luks::Luks;
use crate::block::format::qcow2;
use crate::block::format::raw::{Raw, Window};
use crate::block::graph::Node;
use crate::block::options::OpenOptions;
use crate::block::probe::{self, PROBE_LEN};
use crate::block::protocol::file::Access;
use crate::block::protocol::{Location, Source};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use crate::util::text;
use std::rc::Rc;
use tracing::trace;

/// The formats that there are drivers for.
pub(super) const FORMATS: &[&str] = &["luks", "qcow2", "raw"];
/// Most images in a backing chain.
const MAX_CHAIN: usize = 256;

/// Opens `filename` and, unless the options say otherwise, its backing chain.
///
/// # Errors
/// In qemu-img's words, with the file that failed and a remedy.
pub async fn open(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<Rc<Node>> {
    let described = describe::from_name(filename, options)?;
    let options = described.as_ref().map_or(options, |(_, options)| options);
    let (location, faults) = match &options.location {
        Some(location) => (location.clone(), None),
        None => {
            let (filename, faults) = blkdebug::from_name(filename)?;
            (Location::from_name(filename)?, faults)
        }
    };
    Opener { engine, chain: Vec::new(), faults }.open(&location, options).await
}

/// The qcow2 image in `file` over `backing`, whatever its header names, to be written.
///
/// # Errors
/// As [`open`].
pub(super) async fn open_over(
    engine: &Rc<Engine>,
    file: Rc<Node>,
    backing: &Rc<Node>,
    filename: &str,
    unmap: bool,
) -> Result<Rc<Node>> {
    let named = |error: Error| error.path(filename);
    let image = qcow2::Image::read(&file).await.map_err(named)?;
    let mut image = image.made_right(engine).await.map_err(named)?;
    image.set_options(qcow2::ImageOptions::take(&mut Options::default(), unmap)?)?;
    let driver = image.into_driver(engine, Some(backing.clone()), false).map_err(named)?;
    Ok(Node::new(filename, driver))
}

/// What is known while a chain is being opened.
struct Opener<'a> {
    engine: &'a Rc<Engine>,
    /// The files so far, from the top.
    chain: Vec<(u64, u64)>,
    /// What the file of the first image is to suffer.
    faults: Option<Rc<Faults>>,
}

impl Opener<'_> {
    async fn open(&mut self, location: &Location, options: &OpenOptions) -> Result<Rc<Node>> {
        let filename = &location.name();
        check_format(location, options)?;
        let file = location.open(self.engine, options).await?;
        self.enter(&file, filename)?;
        let known = options.format.as_deref().or(file.format());
        let guess = match known {
            Some(_) => None,
            None => Some(probe::looks_like(&file.head(PROBE_LEN).await?).unwrap_or("raw")),
        };
        let format = known.or(guess).unwrap_or("raw");
        let opened = match format {
            "raw" => self.open_raw(file, filename, options, guess.is_some()),
            "qcow2" => self.open_qcow2(file, filename, options).await,
            "luks" => self.open_luks(file, filename, options).await,
            other if other == file.protocol() => self.open_file(file, filename, options),
            other => Err(unknown_format(other, filename, guess.is_some())),
        }?;
        trace!(name: "image_open", file = ?filename, format, read_only = options.read_only);
        Ok(opened)
    }

    /// Notes a file of the chain; a chain that loops or never ends is refused.
    fn enter(&mut self, file: &Source, filename: &str) -> Result<()> {
        if self.chain.contains(&file.identity()) {
            return Err(Error::new(Kind::InvalidFormat, format!("the backing chain of '{filename}' loops"))
                .path(filename)
                .remedy("name another backing file: qemu-img rebase -u -b FILE -F FORMAT"));
        }
        if self.chain.len() == MAX_CHAIN {
            let message = format!("the backing chain is longer than {MAX_CHAIN} images");
            return Err(Error::new(Kind::InvalidFormat, message)
                .path(filename)
                .remedy("commit some of them"));
        }
        self.chain.push(file.identity());
        Ok(())
    }

    /// The node of an image's file, with the faults that are meant for it above.
    fn file_node(&mut self, filename: &str, file: Source) -> Rc<Node> {
        let file = Node::new(filename, file.into_driver());
        match self.faults.take() {
            Some(faults) => Node::new(filename, Box::new(BlkDebug::new(file, faults))),
            None => file,
        }
    }

    /// The file itself, without any format.
    fn open_file(&mut self, file: Source, filename: &str, options: &OpenOptions) -> Result<Rc<Node>> {
        lock_plain(&file, options)?;
        Ok(self.file_node(filename, file))
    }

    fn open_raw(
        &mut self,
        file: Source,
        filename: &str,
        options: &OpenOptions,
        guessed: bool,
    ) -> Result<Rc<Node>> {
        let mut own = options.driver.clone();
        let window = Window::take(&mut own, file.size())?;
        finish("raw", &own)?;
        if guessed && !options.read_only {
            warn_guessed_raw(filename);
        }
        lock_plain(&file, options)?;
        if !options.read_only && !file.size().is_multiple_of(u64::from(file.limits().request_alignment)) {
            let message = "the size of the image is not a multiple of what direct I/O needs";
            return Err(Error::new(Kind::InvalidArgument, message)
                .path(filename)
                .remedy("use cache=writeback, or make the image larger with qemu-img resize"));
        }
        let file = self.file_node(filename, file);
        Ok(Node::new(filename, Box::new(Raw::new(file, guessed, window, options.unmap))))
    }

    async fn open_luks(&mut self, file: Source, filename: &str, options: &OpenOptions) -> Result<Rc<Node>> {
        lock_alone(&file, options)?;
        let mut own = options.driver.clone();
        let named = |error: Error| error.path(filename);
        let key = passphrase(&mut own, "key-secret", options).map_err(named)?;
        finish("luks", &own)?;
        if key.is_none() && !options.metadata_only {
            return Err(named(encryption::no_key("key-secret")));
        }
        let file = self.file_node(filename, file);
        let opened =
            Luks::open(self.engine, file, key.as_ref(), options.metadata_only, options.read_only).await;
        Ok(Node::new(filename, Box::new(opened.map_err(named)?)))
    }
}

/// Takes the locks of a file that is the disk itself.
fn lock_plain(file: &Source, options: &OpenOptions) -> Result<()> {
    let write = !options.read_only;
    match options.force_share {
        true => Ok(()),
        false => file.lock(Access { write, resize: false, share_writes: !(write || options.exclusive) }),
    }
}

/// Takes the locks of a format: nobody else writes, or changes the size of what we write.
fn lock_alone(file: &Source, options: &OpenOptions) -> Result<()> {
    let write = !options.read_only;
    match options.force_share {
        true => Ok(()),
        false => file.lock(Access { write, resize: write, share_writes: false }),
    }
}

/// The passphrase that the secret named by `option` holds; none is looked for where only metadata is read.
fn passphrase(own: &mut Options, option: &str, options: &OpenOptions) -> Result<Option<Key>> {
    match own.take(option) {
        Some(id) if !options.metadata_only => options.secrets.passphrase(&id).map(Some),
        _ => Ok(None),
    }
}

/// Refuses options that a driver has left over.
fn finish(format: &str, left: &Options) -> Result<()> {
    let Some((name, _)) = left.pairs().first() else { return Ok(()) };
    let message = format!("Block format '{format}' does not support the option '{name}'");
    Err(Error::new(Kind::InvalidArgument, message))
}

/// Refuses a format before what it is on is opened.
fn check_format(location: &Location, options: &OpenOptions) -> Result<()> {
    match options.format.as_deref() {
        Some(format) if !location.may_be(format) && !FORMATS.contains(&format) => {
            Err(unknown_format(format, &location.name(), false))
        }
        _ => Ok(()),
    }
}

fn unknown_format(format: &str, filename: &str, guessed: bool) -> Error {
    let remedy = if guessed { "convert it to qcow2 or raw first" } else { "use raw, qcow2 or luks" };
    Error::new(Kind::Unsupported, format!("Unknown driver '{format}'")).path(filename).remedy(remedy)
}

fn warn_guessed_raw(filename: &str) {
    text::say(&format!(
        "WARNING: Image format was not specified for '{filename}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         Specify the 'raw' format explicitly to remove the restrictions."
    ));
}
