//! Changing options of an image that exists: which there are for a format, as a table, and who carries them out.
//!
//! Options of the image itself go to the format's [`Amend`], those of its key slots to [`KeySlotChanges`]: all values
//! are read and make sense before anything changes.
//!
//! [`Amend`]: crate::block::graph::amend::Amend
//! [`KeySlotChanges`]: crate::block::graph::driver::KeySlotChanges

use super::create::ValueKind::{Number, Size, Switch, Text};
use super::create::{CreateOption, Template};
use super::encrypt_options::slot_change;
use crate::block::encryption::SlotChange;
use crate::block::graph::Node;
use crate::block::graph::amend::AmendOptions;
use crate::block::secret::Secrets;
use crate::block::{Error, Kind, Result};
use crate::util::keyval::{Options, parse_switch};

/// What stands before the names of options for key slots, in a format that has others.
const SLOT_PREFIX: &str = "encrypt.";

const QCOW2: &[CreateOption] = &[
    CreateOption::new("backing_file", Text, "the name that the backing file has"),
    CreateOption::new("backing_fmt", Text, "the format that it has"),
    CreateOption::new("compat", Text, "version of the format: 1.1 (or v3), 0.10 (or v2)"),
    CreateOption::new("data_file", Text, "file that holds the data"),
    CreateOption::new("data_file_raw", Switch, "keep that file a valid raw image"),
    CreateOption::new("encrypt.iter-time", Number, "milliseconds that the key derivation takes"),
    CreateOption::new("encrypt.keyslot", Number, "the key slot to change"),
    CreateOption::new("encrypt.new-secret", Text, "secret that holds the new passphrase"),
    CreateOption::new("encrypt.old-secret", Text, "secret that holds the passphrase of the slots to erase"),
    CreateOption::new("encrypt.state", Text, "active to fill key slots, inactive to erase them"),
    CreateOption::new("lazy_refcounts", Switch, "write refcounts late"),
    CreateOption::new("refcount_bits", Number, "width of a refcount"),
    CreateOption::new("size", Size, "size of the disk"),
];
const LUKS: &[CreateOption] = &[
    CreateOption::new("iter-time", Number, "milliseconds that the key derivation takes"),
    CreateOption::new("keyslot", Number, "the key slot to change"),
    CreateOption::new("new-secret", Text, "secret that holds the new passphrase"),
    CreateOption::new("old-secret", Text, "secret that holds the passphrase of the slots to erase"),
    CreateOption::new("state", Text, "active to fill key slots, inactive to erase them"),
];

/// The options that images of `format` can change.
///
/// # Errors
/// [`Kind::InvalidArgument`] for a format that does not exist, [`Kind::Unsupported`] for one without such options.
pub fn amendable(format: &str) -> Result<&'static [CreateOption]> {
    match Template::new(format, false)?.format() {
        "qcow2" => Ok(QCOW2),
        "luks" => Ok(LUKS),
        _ => {
            let message = format!("Format driver '{format}' does not support option amendment");
            Err(Error::new(Kind::Unsupported, message))
        }
    }
}

/// Changes of one image, as they were asked for.
#[derive(Clone, Debug)]
pub struct Changes {
    options: AmendOptions,
    /// Options of key slots, without prefix; their format is LUKS.
    slots: Options,
}

impl Changes {
    /// Reads `given` for an image of `format`.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] in QEMU's words for options that cannot be changed and values that they cannot have.
    pub fn read(format: &str, given: &Options) -> Result<Changes> {
        let table = amendable(format)?;
        let template = Template::new(format, true)?;
        let (mut canonical, mut slots) = (Options::default(), Options::default());
        for (name, value) in given.pairs() {
            let unknown = || not_amendable(name, template.options());
            let option = table.iter().find(|option| option.name == name).ok_or_else(unknown)?;
            let value = option.canonical(value)?;
            match name.strip_prefix(SLOT_PREFIX).or((format == "luks").then_some(name)) {
                Some(name) => slots.set(name, &value),
                None => canonical.set(name, &value),
            }
        }
        Ok(Changes { options: amend_options(&canonical)?, slots })
    }

    /// Carries them out on an image that nobody uses: key slots first. `force` also overwrites and erases slots that
    /// the data cannot be read without.
    ///
    /// # Errors
    /// In QEMU's words. What makes no sense is refused before anything changes.
    pub async fn apply(&self, image: &Node, secrets: &Secrets, force: bool) -> Result<()> {
        if !self.slots.pairs().is_empty() {
            self.change_slots(image, secrets, force).await?;
        }
        match image.driver().amender() {
            Some(amender) => amender.amend(&self.options).await,
            None => Ok(()),
        }
    }

    async fn change_slots(&self, image: &Node, secrets: &Secrets, force: bool) -> Result<()> {
        let Some(slots) = image.driver().key_slots() else { return Ok(()) };
        slots.check_key_slots()?;
        let change: SlotChange = slot_change(&self.slots, secrets)?;
        slots.change_key_slots(&change, force).await
    }
}

/// Why an option cannot be changed; `creatable` are those of a new image.
fn not_amendable(name: &str, creatable: &[CreateOption]) -> Error {
    let only_new = creatable.iter().any(|option| option.name == name);
    let hint = if only_new { "\nThis option is only supported for image creation" } else { "" };
    Error::new(Kind::InvalidArgument, format!("Invalid parameter '{name}'{hint}"))
}

/// `values`: in their canonical form.
fn amend_options(values: &Options) -> Result<AmendOptions> {
    let text = |name| values.get(name).map(str::to_owned);
    let switch = |name| {
        let read = |value| parse_switch(name, value);
        let value = values.get(name).map(read).transpose();
        value.map_err(|error| Error::new(Kind::InvalidArgument, error.to_string()))
    };
    Ok(AmendOptions {
        compat: text("compat"),
        lazy_refcounts: switch("lazy_refcounts")?,
        // Of a number below zero the driver finds that it is none of a width.
        refcount_bits: text("refcount_bits").map(|bits| bits.parse().unwrap_or(u64::MAX)),
        size: text("size").and_then(|size| size.parse().ok()),
        data_file: text("data_file"),
        data_file_raw: switch("data_file_raw")?,
        backing_file: text("backing_file"),
        backing_format: text("backing_fmt"),
    })
}
