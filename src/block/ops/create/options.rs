//! The options of a new image, as tables, and their values.
//!
//! A [`Template`] is what a format (and the file that it will be in) lets users choose. Values are read and
//! checked in it.

use crate::block::graph::{ChildRole, Node};
use crate::block::options::size_option;
use crate::block::{Error, Kind, Result};
use crate::util::keyval::{self, Options};
use crate::util::size::parse_wrapping;

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

/// Whether QEMU knows the format, so that it may be named in an image.
pub fn is_known_format(format: &str) -> bool {
    CREATABLE.contains(&format) || FOREIGN.contains(&format)
}

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
    pub(in crate::block::ops) const fn new(
        name: &'static str,
        kind: ValueKind,
        help: &'static str,
    ) -> CreateOption {
        CreateOption { name, kind, help, default: None, support: Support::Full }
    }

    const fn default(self, value: &'static str) -> CreateOption {
        CreateOption { default: Some(value), ..self }
    }

    const fn only(self, value: &'static str) -> CreateOption {
        CreateOption { support: Support::Only(value), ..self }
    }

    /// Brings a value into the form that it is stored and shown in.
    pub(in crate::block::ops) fn canonical(&self, value: &str) -> Result<String> {
        match self.kind {
            ValueKind::Text => Ok(value.to_owned()),
            ValueKind::Size => size_option(self.name, value).map(|size| size.to_string()),
            ValueKind::Number => match parse_wrapping(value) {
                Ok(number) => Ok(number.to_string()),
                Err(_) => Err(Error::invalid_argument(format!("Parameter '{}' expects a number", self.name))),
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
    pub(in crate::block::ops) fn format(&self) -> &'static str {
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

    /// Whether the new image, which `node` is, reads as zeros, where it has no backing file.
    pub fn reads_as_zeros_in(&self, node: &Node) -> bool {
        let is_device = |node: &Node| node.driver().device().is_some();
        // What was on a device before is there still, wherever the new image has it as data.
        let shows_old = is_device(node)
            || self.get("preallocation").is_some_and(|mode| mode != "off")
                && node.child(ChildRole::File).is_some_and(|file| is_device(&file));
        // Nobody encrypts the zeros of a new LUKS volume.
        self.template.format != "luks" && !shows_old
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
    pub(in crate::block::ops) fn format(&self) -> &'static str {
        self.template.format
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.template.options.iter().position(|option| option.name == name)
    }

    /// Whether there is an option of that name.
    pub(in crate::block::ops) fn has(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Whether a switch is on.
    pub(in crate::block::ops) fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| keyval::parse_switch(name, value) == Ok(true))
    }
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
