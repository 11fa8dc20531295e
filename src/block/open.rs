//! Opening a graph: the image, the file below it, its backing chain.
//!
//! Names that an image carries (of its backing file, of its data file) are names of files and nothing else: no
//! protocol, no JSON, no device is ever opened on an image's word.
//!
//! A user's name may be that of an export (`nbd:…`, `nbd://…`). It may be a description ([`describe`]), or begin with `blkdebug:CONFIG:`; then the image's file fails
//! as the configuration says.

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
use crate::block::options::{Base, OpenOptions};
use crate::block::probe::{self, PROBE_LEN};
use crate::block::protocol::Source;
use crate::block::protocol::file::{Access, FileDriver};
use crate::block::protocol::nbd::{NbdDriver, Target};
use crate::block::protocol::vvfat::{FatOptions, Vvfat};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use crate::util::text;
use std::rc::Rc;
use tracing::trace;

/// The formats that there are drivers for, and the protocols.
pub(super) const FORMATS: &[&str] = &["file", "luks", "nbd", "qcow2", "raw"];
/// Most images in a backing chain.
const MAX_CHAIN: usize = 256;

/// Opens `filename` and, unless the options say otherwise, its backing chain.
///
/// # Errors
/// In qemu-img's words, with the file that failed and a remedy.
pub async fn open(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<Rc<Node>> {
    let described = describe::from_name(filename, options)?;
    let (filename, options) =
        described.as_ref().map_or((filename, options), |(name, options)| (name, options));
    if let Some(fat) = options.fat.clone().or_else(|| FatOptions::from_name(filename)) {
        return open_fat(engine, filename, &fat, options).await;
    }
    let (filename, faults) = take_blkdebug(filename)?;
    Opener { engine, chain: Vec::new(), faults }.open(filename, options).await
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

/// Opens a directory as a FAT disk, which is a raw one. Only a user's name leads here, never an image's.
async fn open_fat(
    engine: &Rc<Engine>,
    filename: &str,
    fat: &FatOptions,
    options: &OpenOptions,
) -> Result<Rc<Node>> {
    let format = options.format.as_deref().unwrap_or("raw");
    if !["raw", "vvfat"].contains(&format) {
        return Err(unknown_format(format, filename, false).remedy("a FAT disk is raw: leave out the format"));
    }
    let disk = Node::new(filename, Box::new(Vvfat::open(engine, fat, options).await?));
    if format == "vvfat" {
        return Ok(disk);
    }
    let mut own = options.driver.clone();
    let window = Window::take(&mut own, disk.size())?;
    finish("raw", &own)?;
    Ok(Node::new(filename, Box::new(Raw::new(disk, false, window, options.unmap))))
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
    async fn open(&mut self, filename: &str, options: &OpenOptions) -> Result<Rc<Node>> {
        if let Some(format) = options.format.as_deref().filter(|format| !FORMATS.contains(format)) {
            check_protocol(filename)?;
            return Err(unknown_format(format, filename, false));
        }
        let export = match self.chain.is_empty() {
            true => self.open_export(filename, options).await?,
            false => None,
        };
        let named;
        let (file, filename) = match export {
            Some(export) => {
                named = export.filename().to_owned();
                (Source::Nbd(export), named.as_str())
            }
            None => {
                check_protocol(filename)?;
                let filename = filename.strip_prefix("file:").unwrap_or(filename);
                (Source::File(FileDriver::open(self.engine, filename, options)?), filename)
            }
        };
        self.enter(&file, filename)?;
        let guess = match &options.format {
            Some(_) => None,
            None => Some(probe::looks_like(&file.head(PROBE_LEN).await?).unwrap_or("raw")),
        };
        let format = options.format.as_deref().or(guess).unwrap_or("raw");
        let opened = match format {
            "file" | "nbd" => self.open_file(file, filename, options),
            "raw" => self.open_raw(file, filename, options, guess.is_some()),
            "qcow2" => self.open_qcow2(file, filename, options).await,
            "luks" => self.open_luks(file, filename, options).await,
            other => Err(unknown_format(other, filename, guess.is_some())),
        }?;
        trace!(name: "image_open", file = ?filename, format, read_only = options.read_only);
        Ok(opened)
    }

    /// Opens an export of a server, if `filename` names one.
    async fn open_export(&self, filename: &str, options: &OpenOptions) -> Result<Option<NbdDriver>> {
        let Some(target) = Target::from_name(filename)? else { return Ok(None) };
        let mut own = options.protocol.clone();
        let export = NbdDriver::open(self.engine, &target, options, &mut own).await?;
        match own.pairs().first() {
            None => Ok(Some(export)),
            Some((name, _)) => {
                let message = format!("Block protocol 'nbd' doesn't support the option '{name}'");
                Err(Error::new(Kind::InvalidArgument, message))
            }
        }
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

    async fn open_qcow2(&mut self, file: Source, filename: &str, options: &OpenOptions) -> Result<Rc<Node>> {
        lock_alone(&file, options)?;
        let remedy = match options.format {
            Some(_) => "name the format that the image has, or check it with: cowvm imgtool check",
            None => "check the image with: cowvm imgtool check",
        };
        let named = |error: Error| error.path(filename).remedy(remedy);
        let mut own = options.driver.clone();
        let has_no_backing = own.get("backing") == Some("") && own.take("backing").is_some();
        let below = match options.backing {
            true => own.take_group("backing."),
            false => Options::default(),
        };
        let below = OpenOptions { driver: below, ..options.clone() };
        let unlock = qcow2::Unlock {
            format: own.take("encrypt.format"),
            passphrase: passphrase(&mut own, "encrypt.key-secret", options).map_err(named)?,
            metadata_only: options.metadata_only,
        };
        let own_options = qcow2::ImageOptions::take(&mut own, options.unmap);
        let own_options = own_options.map_err(|error| error.path(filename))?;
        finish("qcow2", &own)?;
        let file = self.file_node(filename, file);
        let image = match options.check {
            true => qcow2::Image::read_for_check(&file).await,
            false => qcow2::Image::read(&file).await,
        };
        let mut image = image.map_err(named)?;
        image.unlock(self.engine, &unlock).await.map_err(|error| error.path(filename))?;
        if !options.read_only && !options.check {
            image = image.made_right(self.engine).await.map_err(named)?;
        }
        if let Some(lazy) = options.lazy_refcounts {
            image.set_lazy_refcounts(lazy).map_err(named)?;
        }
        image.set_options(own_options).map_err(|error| error.path(filename))?;
        if options.backing
            && let Some(data) = self.open_data_file(&image, filename, options)?
        {
            image.set_data_file(data);
        }
        let backing = match image.backing_file() {
            Some(name) if options.backing && !has_no_backing => {
                Some(Box::pin(self.open_backing(name, image.backing_format(), filename, &below)).await?)
            }
            _ => None,
        };
        let driver = image.into_driver(self.engine, backing, options.read_only).map_err(named)?;
        Ok(Node::new(filename, driver))
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

    /// The file that the guest's data is in, if not in the image; it is opened as the image is.
    fn open_data_file(
        &mut self,
        image: &qcow2::Image,
        filename: &str,
        options: &OpenOptions,
    ) -> Result<Option<Rc<Node>>> {
        let given = options.data_file.as_ref();
        if !image.needs_data_file() {
            let what = "'data-file' can only be set for images with an external data file";
            let refusal = Error::new(Kind::InvalidArgument, what).path(filename);
            return if given.is_some() {
                Err(refusal.remedy("leave out data-file.filename="))
            } else {
                Ok(None)
            };
        }
        let named = given.cloned().or_else(|| image.data_file().map(|name| sibling(filename, &name)));
        let name = named.ok_or_else(|| {
            Error::new(Kind::InvalidFormat, "'data-file' is required for this image")
                .path(filename)
                .remedy("name the file with data-file.filename=")
        })?;
        let file = FileDriver::open(self.engine, &name, options).map_err(|error| {
            Error::new(error.kind(), error.message())
                .path(&name)
                .remedy("put the data file back beside the image, or name it with data-file.filename=")
        })?;
        if self.chain.contains(&file.identity()) {
            return Err(Error::new(
                Kind::InvalidFormat,
                format!("the data file '{name}' is in use as an image"),
            )
            .path(filename)
            .remedy("name the file that has the data with data-file.filename="));
        }
        self.chain.push(file.identity());
        let file = Source::File(file);
        lock_alone(&file, options)?;
        Ok(Some(Node::new(name, file.into_driver())))
    }

    async fn open_backing(
        &mut self,
        name: &str,
        format: Option<String>,
        overlay: &str,
        options: &OpenOptions,
    ) -> Result<Rc<Node>> {
        let mut driver = options.driver.clone();
        let format = driver.take("driver").or(format);
        let is_base = options.base.as_ref().is_some_and(|base| is_base(base, overlay, name));
        let given = driver.take("file.filename");
        let name = given.unwrap_or_else(|| beside(overlay, name));
        let options = OpenOptions {
            format,
            driver,
            read_only: !is_base,
            base: options.base.clone().filter(|_| !is_base),
            check: false,
            lazy_refcounts: None,
            data_file: None,
            protocol: Options::default(),
            fat: None,
            ..options.clone()
        };
        let opened = self.open(&name, &options).await;
        opened.map_err(|error| error.context("Could not open backing file"))
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

/// Whether the backing file `name` of `overlay` is the one that is meant.
fn is_base(base: &Base, overlay: &str, name: &str) -> bool {
    let file = |name| std::fs::canonicalize(text::to_path(&beside(overlay, name))).ok();
    match base {
        Base::Nearest => true,
        Base::Named(wanted) => file(wanted).is_some_and(|wanted| Some(wanted) == file(name)),
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

/// Reads the configuration that `blkdebug:CONFIG:FILE` names (none if CONFIG is empty). Returns FILE.
fn take_blkdebug(filename: &str) -> Result<(&str, Option<Rc<Faults>>)> {
    let Some(rest) = filename.strip_prefix("blkdebug:") else { return Ok((filename, None)) };
    let Some((config, file)) = rest.split_once(':') else {
        let message = "blkdebug requires both config file and image path";
        return Err(Error::new(Kind::InvalidArgument, message).remedy("name it as blkdebug:CONFIG:FILE"));
    };
    let text = match config {
        "" => String::new(),
        path => std::fs::read_to_string(text::to_path(path)).map_err(|error| {
            Error::from_io(error).context("Could not read blkdebug config file").path(path)
        })?,
    };
    let rules = blkdebug::parse(&text).map_err(|error| error.path(config))?;
    Ok((file, Some(Faults::new(rules))))
}

/// A backing file's name is relative to the folder of the overlay that names it, unless it names a protocol.
pub fn beside(overlay: &str, name: &str) -> String {
    if name.starts_with('/') || name.starts_with("file:") || check_protocol(name).is_err() {
        return name.to_owned();
    }
    sibling(overlay, name)
}

/// The file `name`, whatever it looks like, relative to the folder of `image`.
pub fn sibling(image: &str, name: &str) -> String {
    match image.rfind('/') {
        Some(slash) if !name.starts_with('/') => format!("{}{name}", &image[..=slash]),
        _ => name.to_owned(),
    }
}

/// A name with a protocol in front ("nbd:…") is not a file's.
///
/// # Errors
/// [`Kind::Unsupported`] in qemu-img's words.
pub fn check_protocol(filename: &str) -> Result<()> {
    let Some((protocol, _)) = filename.split_once(':') else { return Ok(()) };
    if protocol == "file" || protocol.contains('/') {
        return Ok(());
    }
    Err(Error::new(Kind::Unsupported, format!("Unknown protocol '{protocol}'"))
        .path(filename)
        .remedy("write ./ in front of the name of a file with a colon in it"))
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
