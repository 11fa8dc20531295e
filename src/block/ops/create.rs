//! Making a new image of any format: its options as tables, their values, and the drivers that take them.
//!
//! A [`Template`] is what a format (and the file that it will be in) lets users choose. Values are read and
//! checked in it; nothing on the host is touched before all of them make sense.

use super::encrypt_options;
use crate::block::aio::Engine;
use crate::block::filename::{check_protocol, sibling};
use crate::block::format::{luks, qcow2};
use crate::block::graph::{Driver, Node};
use crate::block::options::{CacheMode, OpenOptions, Preallocation, size_option};
use crate::block::protocol::file::{DEFAULT_EXTENT_SIZE_HINT, FileAttributes, FileDriver};
use crate::block::secret::Secrets;
use crate::block::{Error, Kind, Result};
use crate::util::keyval::{self, Options};
use std::rc::Rc;
use tracing::trace;

/// Formats that images can be made in.
pub const CREATABLE: &[&str] = &["luks", "qcow2", "raw"];
/// What QEMU has besides, and what may stand in an image as its backing file's format.
const FOREIGN: &[&str] = &[
    "blkdebug",
    "bochs",
    "cloop",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "nbd",
    "nfs",
    "parallels",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "ssh",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// The type of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Any text.
    Text,
    /// A size in bytes, with a suffix if the user likes.
    Size,
    /// A number.
    Number,
    /// `on` or `off`.
    Switch,
}

/// What of an option's values works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Support {
    Full,
    /// Only this value: the others need a feature that is still to come.
    Only(&'static str),
}

/// An option that a new image can have.
#[derive(Clone, Copy, Debug)]
pub struct CreateOption {
    /// Its name.
    pub name: &'static str,
    /// The type of its value.
    pub kind: ValueKind,
    /// What it means.
    pub help: &'static str,
    default: Option<&'static str>,
    support: Support,
}

impl CreateOption {
    pub(super) const fn new(name: &'static str, kind: ValueKind, help: &'static str) -> CreateOption {
        CreateOption { name, kind, help, default: None, support: Support::Full }
    }

    const fn default(self, value: &'static str) -> CreateOption {
        CreateOption { default: Some(value), ..self }
    }

    const fn only(self, value: &'static str) -> CreateOption {
        CreateOption { support: Support::Only(value), ..self }
    }

    /// Brings a value into the form that it is stored and shown in.
    pub(super) fn canonical(&self, value: &str) -> Result<String> {
        match self.kind {
            ValueKind::Text => Ok(value.to_owned()),
            ValueKind::Size => size_option(self.name, value).map(|size| size.to_string()),
            ValueKind::Number => match parse_number(value) {
                Some(number) => Ok(number.to_string()),
                None => Err(Error::invalid_argument(format!("Parameter '{}' expects a number", self.name))),
            },
            ValueKind::Switch => match keyval::parse_switch(self.name, value) {
                Ok(_) => Ok(value.to_owned()),
                Err(error) => Err(Error::invalid_argument(error.to_string())),
            },
        }
    }

    fn refuse_unsupported(&self, value: &str) -> Result<()> {
        let fine = match (self.support, self.kind) {
            (Support::Full, _) => true,
            (Support::Only(only), ValueKind::Switch) => {
                keyval::parse_switch(self.name, value) == keyval::parse_switch(self.name, only)
            }
            (Support::Only(only), _) => value == only,
        };
        let message = || format!("the option '{}={value}' is not supported yet", self.name);
        if fine { Ok(()) } else { Err(Error::new(Kind::Unsupported, message())) }
    }
}

use ValueKind::{Number, Size, Switch, Text};

const SIZE: CreateOption = CreateOption::new("size", Size, "size of the disk");

/// In the order in which qemu-img shows them.
const QCOW2: &[CreateOption] = &[
    CreateOption::new("encryption", Switch, "encrypt with AES; weak, do not use"),
    CreateOption::new("encrypt.format", Text, "kind of encryption"),
    CreateOption::new("encrypt.key-secret", Text, "secret that holds the passphrase"),
    CreateOption::new("encrypt.cipher-alg", Text, "cipher"),
    CreateOption::new("encrypt.cipher-mode", Text, "mode of the cipher"),
    CreateOption::new("encrypt.ivgen-alg", Text, "generator of initialisation vectors"),
    CreateOption::new("encrypt.ivgen-hash-alg", Text, "hash of that generator"),
    CreateOption::new("encrypt.hash-alg", Text, "hash of the key derivation"),
    CreateOption::new("encrypt.iter-time", Number, "milliseconds that the key derivation takes"),
    CreateOption::new("cluster_size", Size, "bytes of a cluster, the unit of allocation").default("65536"),
    CreateOption::new("extended_l2", Switch, "allocate in subclusters").default("off"),
    CreateOption::new("preallocation", Text, "what is allocated at once: off, metadata, falloc, full"),
    CreateOption::new("compression_type", Text, "how clusters are compressed").default("zlib"),
    SIZE,
    CreateOption::new("compat", Text, "version of the format: 1.1 (or v3), 0.10 (or v2)"),
    CreateOption::new("backing_file", Text, "file that holds what is not in this image"),
    CreateOption::new("backing_fmt", Text, "format of that file"),
    CreateOption::new("data_file", Text, "file that holds the data"),
    CreateOption::new("data_file_raw", Switch, "keep that file a valid raw image"),
    CreateOption::new("lazy_refcounts", Switch, "write refcounts late").default("off"),
    CreateOption::new("refcount_bits", Number, "width of a refcount").default("16"),
];
const LUKS: &[CreateOption] = &[
    SIZE,
    CreateOption::new("key-secret", Text, "secret that holds the passphrase"),
    CreateOption::new("cipher-alg", Text, "cipher"),
    CreateOption::new("cipher-mode", Text, "mode of the cipher"),
    CreateOption::new("ivgen-alg", Text, "generator of initialisation vectors"),
    CreateOption::new("ivgen-hash-alg", Text, "hash of that generator"),
    CreateOption::new("hash-alg", Text, "hash of the key derivation"),
    CreateOption::new("iter-time", Number, "milliseconds that the key derivation takes"),
    CreateOption::new("detached-header", Switch, "put the header into a file of its own").only("off"),
];
const RAW: &[CreateOption] = &[SIZE];
/// What the host file adds.
const FILE: &[CreateOption] = &[
    CreateOption::new("nocow", Switch, "no copy-on-write on btrfs"),
    CreateOption::new("preallocation", Text, "what is allocated at once: off, falloc, full"),
    CreateOption::new("extent_size_hint", Size, "smallest extent on XFS"),
];

/// The options that a new image of some format can have.
#[derive(Clone, Debug)]
pub struct Template {
    format: &'static str,
    options: Vec<CreateOption>,
}

impl Template {
    /// The options of `format`, and those of the host file too if `with_file`.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a format that does not exist, [`Kind::Unsupported`] for one to come.
    pub fn new(format: &str, with_file: bool) -> Result<Template> {
        let (format, own) = match format {
            "qcow2" => ("qcow2", QCOW2),
            "raw" => ("raw", RAW),
            "luks" => ("luks", LUKS),
            _ if FOREIGN.contains(&format) => {
                let message = format!("the format '{format}' is not supported yet");
                return Err(Error::new(Kind::Unsupported, message).remedy("use qcow2, raw or luks"));
            }
            _ => return Err(Error::invalid_argument(format!("Unknown file format '{format}'"))),
        };
        let mut options = own.to_vec();
        if with_file {
            options.extend(FILE.iter().filter(|file| own.iter().all(|option| option.name != file.name)));
        }
        Ok(Template { format, options })
    }

    /// The format's name.
    pub(super) fn format(&self) -> &'static str {
        self.format
    }

    /// All options, in the order in which they are shown.
    pub fn options(&self) -> &[CreateOption] {
        &self.options
    }

    /// Whether images of the format can have a backing file.
    pub fn has_backing(&self) -> bool {
        self.options.iter().any(|option| option.name == "backing_file")
    }

    /// Whether images of the format can have compressed clusters.
    pub fn has_compression(&self) -> bool {
        self.options.iter().any(|option| option.name == "compression_type")
    }

    /// Reads `given`; what it does not name has its default.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for options that the format does not have and values that they cannot have.
    pub fn values(&self, given: &Options) -> Result<Values> {
        let values = self.options.iter().map(|option| option.default.map(str::to_owned)).collect();
        let mut values = Values { template: self.clone(), values };
        for (name, value) in given.pairs() {
            values.set(name, value)?;
        }
        Ok(values)
    }
}

/// The options of one image to be made.
#[derive(Clone, Debug)]
pub struct Values {
    template: Template,
    /// In the template's order.
    values: Vec<Option<String>>,
}

impl Values {
    /// The value of an option, in its canonical form.
    pub fn get(&self, name: &str) -> Option<&str> {
        let index = self.index(name)?;
        self.values[index].as_deref()
    }

    /// Sets an option.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if there is no such option or it cannot have the value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let index =
            self.index(name).ok_or_else(|| Error::invalid_argument(format!("Invalid parameter '{name}'")))?;
        self.values[index] = Some(self.template.options[index].canonical(value)?);
        Ok(())
    }

    /// The disk's size, where it was set.
    pub fn size(&self) -> Option<u64> {
        // A size's canonical form is a number.
        self.get("size").and_then(|size| size.parse().ok())
    }

    /// Whether the new image reads as zeros, where it has no backing file.
    pub fn reads_as_zeros(&self) -> bool {
        // Nobody encrypts the zeros of a new LUKS volume.
        self.template.format != "luks"
    }

    /// All values that are set, by the names of their options.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = self.template.options.iter().zip(&self.values);
        all.filter_map(|(option, value)| value.as_deref().map(|value| (option.name, value)))
    }

    /// All values that are set, as `name=value name=value`.
    pub fn describe(&self) -> String {
        let set = self.pairs().map(|(name, value)| format!("{name}={}", keyval::escape(value)));
        set.collect::<Vec<_>>().join(" ")
    }

    /// Refuses what needs a feature that this build does not have.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] that names option and value.
    pub fn refuse_unsupported(&self) -> Result<()> {
        for (option, value) in self.template.options.iter().zip(&self.values) {
            if let Some(value) = value {
                option.refuse_unsupported(value)?;
            }
        }
        Ok(())
    }

    /// The name of the format.
    pub(super) fn format(&self) -> &'static str {
        self.template.format
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.template.options.iter().position(|option| option.name == name)
    }

    /// Whether there is an option of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| keyval::parse_switch(name, value) == Ok(true))
    }
}

/// Makes an image; an existing file of that name is replaced. Passphrases come from `secrets`.
///
/// # Errors
/// In qemu-img's words. Values that make no sense are refused before anything is written.
pub async fn create(engine: &Rc<Engine>, filename: &str, values: &Values, secrets: &Secrets) -> Result<()> {
    values.refuse_unsupported()?;
    trace!(name: "image_create", file = ?filename, format = values.template.format);
    match values.template.format {
        "raw" => create_raw(engine, filename, values).await,
        "luks" => create_luks(engine, filename, values, secrets).await,
        _ => create_qcow2(engine, filename, values, secrets).await,
    }
}

/// The bytes of a new image matter only when it is complete.
fn new_file(engine: &Rc<Engine>, filename: &str, values: &Values) -> Result<FileDriver> {
    let attributes = file_attributes(values)?;
    let options = OpenOptions { cache: CacheMode::WRITEBACK, read_only: false, ..OpenOptions::default() };
    let file = FileDriver::create(engine, filename, &options)?;
    file.set_attributes(attributes);
    Ok(file)
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
        Preallocation::Metadata if values.template.format == "luks" => Ok(Preallocation::Off),
        mode => mode.refuse_metadata().map(|()| mode),
    }
}

fn preallocation(values: &Values, refuse: impl Fn(&str) -> Error) -> Result<Preallocation> {
    let Some(word) = values.get("preallocation") else { return Ok(Preallocation::Off) };
    Preallocation::parse(word).ok_or_else(|| refuse(word))
}

async fn create_luks(engine: &Rc<Engine>, filename: &str, values: &Values, secrets: &Secrets) -> Result<()> {
    let preallocation = file_preallocation(values)?;
    let (options, size) = (encrypt_options::luks(values, "")?, values.size().unwrap_or(0));
    let passphrase = encrypt_options::passphrase(values, secrets)?;
    let file = Node::new(filename, Box::new(new_file(engine, filename, values)?));
    let done = luks::create(engine, &file, &options, &passphrase, size, preallocation).await;
    done.and(file.close().await).map_err(|error| explain_too_large(error, values))
}

async fn create_raw(engine: &Rc<Engine>, filename: &str, values: &Values) -> Result<()> {
    let preallocation = file_preallocation(values)?;
    let size = values.size().unwrap_or(0);
    let size = size.checked_next_multiple_of(512).ok_or_else(|| too_large(values))?;
    let file = new_file(engine, filename, values)?;
    file.truncate(size, preallocation).await.map_err(|error| explain_too_large(error, values))?;
    // The disk must not look like an image of another format that was in the file.
    let first = usize::try_from(size.min(512)).unwrap_or(0);
    Node::new(filename, Box::new(file)).write_bytes(0, &vec![0; first]).await
}

async fn create_qcow2(engine: &Rc<Engine>, filename: &str, values: &Values, secrets: &Secrets) -> Result<()> {
    let mut options = qcow2_options(values)?;
    options.encryption = encrypt_options::qcow2(values, secrets)?;
    options.validate()?;
    let file = new_file(engine, filename, values)?;
    let data = match &options.data_file {
        Some(name) => Some(new_data_file(engine, &file, filename, name, values)?),
        None => None,
    };
    let file = Node::new(filename, Box::new(file));
    let done = qcow2::create(engine, &file, data.as_ref(), &options).await;
    done.and(file.close().await).map_err(|error| explain_too_large(error, values))
}

/// The data file of a new image, where the image will look for it: in its own folder.
fn new_data_file(
    engine: &Rc<Engine>,
    image: &FileDriver,
    filename: &str,
    name: &str,
    values: &Values,
) -> Result<Rc<Node>> {
    check_protocol(name)?;
    let name = sibling(filename, name);
    let file = new_file(engine, &name, values)?;
    if file.identity() == image.identity() {
        return Err(
            Error::invalid_argument("The data file must be another file than the image").path(filename)
        );
    }
    Ok(Node::new(name, Box::new(file)))
}

/// What an image that is written to a pipe is made with; `None` for raw, which has nothing but its bytes.
pub(super) fn stream_options(values: &Values) -> Result<Option<qcow2::CreateOptions>> {
    let is_preallocated = values.get("preallocation").is_some_and(|mode| mode != "off");
    let is_encrypted = values.get("encryption").is_some() || values.get("encrypt.format").is_some();
    let has_backing = values.get("backing_file").is_some();
    if values.template.format == "luks" || is_preallocated || is_encrypted || has_backing {
        return Err(Error::new(Kind::Unsupported, "such an image cannot be written to a pipe")
            .remedy("write it to a file"));
    }
    match values.template.format {
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

/// Whether QEMU knows the format, so that it may be named in an image.
pub fn is_known_format(format: &str) -> bool {
    CREATABLE.contains(&format) || FOREIGN.contains(&format)
}

fn explain_too_large(error: Error, values: &Values) -> Error {
    if error.errno() == libc::EFBIG { too_large(values) } else { error }
}

fn too_large(values: &Values) -> Error {
    let format = values.template.format;
    let hint = if format == "qcow2" { " (try using a larger cluster size)" } else { "" };
    Error::invalid_argument(format!("The image size is too large for file format '{format}'{hint}"))
}

/// A number as C reads it: decimal, `0x` hexadecimal, octal after a zero; negative ones count down from 2^64.
fn parse_number(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    let number = u64::from_str_radix(digits, radix).ok()?;
    // Shown as a signed number, as qemu-img does.
    Some(if negative { number.wrapping_neg() } else { number } as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(format: &str, given: &str) -> Result<Values> {
        Template::new(format, true)?.values(&Options::parse(given, None))
    }

    // Expectations were read off `qemu-img create`.
    #[test]
    fn options_are_shown_in_qemu_imgs_order_with_their_defaults() {
        let shown = values("qcow2", "refcount_bits=0x10,compat=v3,cluster_size=4k,size=1M,backing_file=a,,b");
        let expect = "cluster_size=4096 extended_l2=off compression_type=zlib size=1048576 compat=v3 \
                      backing_file=a,,b lazy_refcounts=off refcount_bits=16";
        assert_eq!(shown.unwrap().describe(), expect);
        let shown = values("raw", "extent_size_hint=2M,preallocation=full,nocow=yes,size=1").unwrap();
        assert_eq!(shown.describe(), "size=1 nocow=yes preallocation=full extent_size_hint=2097152");
    }

    #[test]
    fn wrong_values_are_named_in_qemu_imgs_words() {
        let cases = [
            ("bogus", "Invalid parameter 'bogus'"),
            ("size=-5", "Value '-5' is out of range for parameter 'size'"),
            ("refcount_bits=16k", "Parameter 'refcount_bits' expects a number"),
            ("extended_l2=foo", "Parameter 'extended_l2' expects 'on' or 'off'"),
        ];
        for (given, message) in cases {
            assert_eq!(values("qcow2", given).unwrap_err().message(), message);
        }
        assert_eq!(values("qcow2", "refcount_bits=-1").unwrap().get("refcount_bits"), Some("-1"));
    }

    #[test]
    fn features_to_come_are_refused_by_name_and_their_absence_is_fine() {
        let given = "detached-header=on";
        let error = values("luks", given).unwrap().refuse_unsupported().unwrap_err();
        assert!(error.message().contains(given), "{}", error.message());
        assert!(values("luks", "detached-header=no").unwrap().refuse_unsupported().is_ok());
        assert_eq!(values("vdi", "").unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(values("bogus", "").unwrap_err().message(), "Unknown file format 'bogus'");
    }
}
