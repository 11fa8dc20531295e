//! What is written to the files of a new image: values that were found to make sense.

use super::{Values, is_known_format};
use crate::block::aio::Engine;
use crate::block::crypto::{Key, luks as header};
use crate::block::format::{luks, qcow2};
use crate::block::graph::{Driver, Node};
use crate::block::ops::encrypt_options;
use crate::block::options::{CacheMode, OpenOptions, Preallocation};
use crate::block::protocol::file::{DEFAULT_EXTENT_SIZE_HINT, FileAttributes, FileDriver};
use crate::block::secret::Secrets;
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

/// How to make an image.
pub(super) struct Recipe {
    format: &'static str,
    attributes: FileAttributes,
    image: Image,
}

/// What of it is a matter of the format.
enum Image {
    Raw { size: u64, preallocation: Preallocation },
    Luks { options: header::CreateOptions, passphrase: Key, size: u64, preallocation: Preallocation },
    Qcow2(Box<qcow2::CreateOptions>),
}

impl Recipe {
    /// Checks `values`; passphrases come from `secrets`.
    pub(super) fn new(values: &Values, secrets: &Secrets) -> Result<Recipe> {
        values.refuse_unsupported()?;
        let image = match values.format() {
            "raw" => raw(values),
            "luks" => luks(values, secrets),
            _ => qcow2(values, secrets),
        }?;
        Ok(Recipe { format: values.format(), attributes: file_attributes(values)?, image })
    }

    /// Writes the image to the file `filename`, which is emptied, and so is the file `data` of an image that has one.
    pub(super) async fn make(self, engine: &Rc<Engine>, filename: &str, data: Option<&str>) -> Result<()> {
        let file = self.open(engine, filename)?;
        let data = data.map(|name| Ok::<_, Error>((name, self.open(engine, name)?))).transpose()?;
        if data.as_ref().is_some_and(|(_, data)| data.identity() == file.identity()) {
            let message = "The data file must be another file than the image";
            return Err(Error::invalid_argument(message).path(filename));
        }
        // Nothing is lost before both can be had.
        file.empty()?;
        file.set_attributes(self.attributes);
        let data = match data {
            Some((name, data)) => {
                data.empty()?;
                data.set_attributes(self.attributes);
                Some(Node::new(name, Box::new(data)))
            }
            None => None,
        };
        let format = self.format;
        let done = self.image.write(engine, filename, file, data.as_ref()).await;
        done.map_err(|error| if error.errno() == libc::EFBIG { too_large(format) } else { error })
    }

    /// The bytes of a new image matter only when it is complete.
    fn open(&self, engine: &Rc<Engine>, filename: &str) -> Result<FileDriver> {
        let options = OpenOptions { cache: CacheMode::WRITEBACK, read_only: false, ..OpenOptions::default() };
        FileDriver::open_to_replace(engine, filename, &options)
    }
}

impl Image {
    async fn write(
        self,
        engine: &Rc<Engine>,
        filename: &str,
        file: FileDriver,
        data: Option<&Rc<Node>>,
    ) -> Result<()> {
        let node = |file| Node::new(filename, Box::new(file));
        match self {
            Image::Raw { size, preallocation } => {
                file.truncate(size, preallocation).await?;
                // The disk must not look like an image of another format that was in the file.
                let first = usize::try_from(size.min(512)).unwrap_or(0);
                node(file).write_bytes(0, &vec![0; first]).await
            }
            Image::Luks { options, passphrase, size, preallocation } => {
                let file = node(file);
                let done = luks::create(engine, &file, &options, &passphrase, size, preallocation).await;
                done.and(file.close().await)
            }
            Image::Qcow2(options) => {
                let file = node(file);
                let done = qcow2::create(engine, &file, data, &options).await;
                done.and(file.close().await)
            }
        }
    }
}

fn raw(values: &Values) -> Result<Image> {
    let preallocation = file_preallocation(values)?;
    let size = values.size().unwrap_or(0).checked_next_multiple_of(512);
    Ok(Image::Raw { size: size.ok_or_else(|| too_large(values.format()))?, preallocation })
}

fn luks(values: &Values, secrets: &Secrets) -> Result<Image> {
    let preallocation = file_preallocation(values)?;
    let (options, size) = (encrypt_options::luks(values, "")?, values.size().unwrap_or(0));
    let passphrase = encrypt_options::passphrase(values, secrets)?;
    Ok(Image::Luks { options, passphrase, size, preallocation })
}

fn qcow2(values: &Values, secrets: &Secrets) -> Result<Image> {
    let mut options = qcow2_options(values)?;
    options.encryption = encrypt_options::qcow2(values, secrets)?;
    options.validate()?;
    Ok(Image::Qcow2(Box::new(options)))
}

fn file_attributes(values: &Values) -> Result<FileAttributes> {
    let hint = values.get("extent_size_hint").and_then(|hint| hint.parse::<u64>().ok());
    let hint = hint.map_or(Ok(DEFAULT_EXTENT_SIZE_HINT), u32::try_from);
    let extent_size_hint = hint.map_err(|_| Error::invalid_argument("Extent size hint is too large"))?;
    Ok(FileAttributes { nocow: values.is_on("nocow"), extent_size_hint })
}

/// What is allocated at once of formats that are as long as their disk; a file has no `metadata`.
fn file_preallocation(values: &Values) -> Result<Preallocation> {
    match preallocation(values, |word| Error::invalid_argument(format!("invalid parameter value: {word}")))? {
        Preallocation::Metadata if values.format() == "luks" => Ok(Preallocation::Off),
        mode => mode.refuse_metadata().map(|()| mode),
    }
}

fn preallocation(values: &Values, refuse: impl Fn(&str) -> Error) -> Result<Preallocation> {
    let Some(word) = values.get("preallocation") else { return Ok(Preallocation::Off) };
    Preallocation::parse(word).ok_or_else(|| refuse(word))
}

/// What an image that is written to a pipe is made with; `None` for raw, which has nothing but its bytes.
pub(in crate::block::ops) fn stream_options(values: &Values) -> Result<Option<qcow2::CreateOptions>> {
    let is_preallocated = values.get("preallocation").is_some_and(|mode| mode != "off");
    let is_encrypted = values.get("encryption").is_some() || values.get("encrypt.format").is_some();
    let has_backing = values.get("backing_file").is_some();
    if values.format() == "luks" || is_preallocated || is_encrypted || has_backing {
        return Err(Error::new(Kind::Unsupported, "such an image cannot be written to a pipe")
            .remedy("write it to a file"));
    }
    match values.format() {
        "qcow2" => qcow2_options(values).map(Some),
        _ => Ok(None),
    }
}

fn qcow2_options(values: &Values) -> Result<qcow2::CreateOptions> {
    let preallocation = preallocation(values, |word| Error::not_accepted("preallocation", word))?;
    let version = match values.get("compat") {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => return Err(Error::not_accepted("version", other)),
    };
    let compression_type = match values.get("compression_type") {
        None | Some("zlib") => qcow2::Codec::Deflate,
        Some("zstd") => qcow2::Codec::Zstd,
        Some(other) => return Err(Error::not_accepted("compression-type", other)),
    };
    let backing_format = values.get("backing_fmt");
    if let Some(format) = backing_format.filter(|format| !is_known_format(format)) {
        return Err(Error::not_accepted("backing-fmt", format));
    }
    if backing_format.is_some() && values.get("backing_file").is_none() {
        return Err(Error::invalid_argument("Backing format cannot be used without backing file"));
    }
    let number = |name| values.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
    Ok(qcow2::CreateOptions {
        size: values.size().unwrap_or(0),
        version,
        cluster_size: number("cluster_size"),
        refcount_bits: number("refcount_bits"),
        extended_l2: values.is_on("extended_l2"),
        lazy_refcounts: values.is_on("lazy_refcounts"),
        compression_type,
        backing_file: values.get("backing_file").map(str::to_owned),
        backing_format: backing_format.map(str::to_owned),
        data_file: values.get("data_file").map(str::to_owned),
        data_file_raw: values.is_on("data_file_raw"),
        preallocation,
        encryption: None,
    })
}

fn too_large(format: &str) -> Error {
    let hint = if format == "qcow2" { " (try using a larger cluster size)" } else { "" };
    Error::invalid_argument(format!("The image size is too large for file format '{format}'{hint}"))
}
