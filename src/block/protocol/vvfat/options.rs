//! What the user says of a FAT disk: `fat:[12:|16:|32:][floppy:][rw:]DIR`, the words in any order, or
//! `driver=vvfat,dir=DIR` with `fat-type=`, `floppy=`, `label=` and `rw=`.

use super::geometry::FatType;
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;

/// What names of FAT disks begin with.
const PREFIX: &str = "fat:";
/// Bytes of a label.
const LABEL_LEN: usize = 11;
/// The label of a disk that is given none, as QEMU has it.
const DEFAULT_LABEL: &str = "QEMU VVFAT";

/// A FAT disk that a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatOptions {
    /// The directory.
    pub directory: String,
    /// `None` leaves it to the content.
    pub fat_type: Option<FatType>,
    /// A floppy, not a hard disk.
    pub floppy: bool,
    /// What the guest writes becomes the host's.
    pub writable: bool,
    /// The volume's label, at most 11 bytes.
    pub label: String,
}

impl FatOptions {
    fn of(directory: &str) -> FatOptions {
        FatOptions {
            directory: directory.to_owned(),
            fat_type: None,
            floppy: false,
            writable: false,
            label: DEFAULT_LABEL.to_owned(),
        }
    }

    /// What a name asks for; `None` if it is no FAT disk's. The first word that is none of ours begins the directory.
    pub fn from_name(name: &str) -> Option<FatOptions> {
        let mut rest = name.strip_prefix(PREFIX)?;
        let mut options = FatOptions::of("");
        while let Some((word, behind)) = rest.split_once(':') {
            match word {
                "12" => options.fat_type = Some(FatType::Fat12),
                "16" => options.fat_type = Some(FatType::Fat16),
                "32" => options.fat_type = Some(FatType::Fat32),
                "floppy" => options.floppy = true,
                "rw" => options.writable = true,
                _ => break,
            }
            rest = behind;
        }
        rest.clone_into(&mut options.directory);
        Some(options)
    }

    /// Takes the options of a `vvfat` node.
    ///
    /// # Errors
    /// In qemu-img's words, for what is missing or makes no sense.
    pub fn take(options: &mut Options) -> Result<FatOptions> {
        let invalid = |message: String| Error::new(Kind::InvalidArgument, message);
        let switch = |options: &mut Options, name| {
            options
                .take_switch(name)
                .map(Option::unwrap_or_default)
                .map_err(|error| invalid(error.to_string()))
        };
        let directory = options.take("dir");
        let directory =
            directory.ok_or_else(|| invalid("vvfat block driver requires a 'dir' option".to_owned()))?;
        let fat_type = match options.take("fat-type").as_deref() {
            None | Some("0") => None,
            Some("12") => Some(FatType::Fat12),
            Some("16") => Some(FatType::Fat16),
            Some("32") => Some(FatType::Fat32),
            Some(_) => return Err(invalid("Valid FAT types are only 12, 16 and 32".to_owned())),
        };
        let label = options.take("label").unwrap_or_else(|| DEFAULT_LABEL.to_owned());
        if label.len() > LABEL_LEN {
            return Err(invalid(format!("vvfat label cannot be longer than {LABEL_LEN} bytes")));
        }
        Ok(FatOptions {
            fat_type,
            floppy: switch(options, "floppy")?,
            writable: switch(options, "rw")?,
            label,
            ..FatOptions::of(&directory)
        })
    }

    /// The name that asks for this disk, but for its label.
    pub fn name(&self) -> String {
        let fat_type = match self.fat_type {
            None => "",
            Some(FatType::Fat12) => "12:",
            Some(FatType::Fat16) => "16:",
            Some(FatType::Fat32) => "32:",
        };
        let (floppy, writable) =
            (if self.floppy { "floppy:" } else { "" }, if self.writable { "rw:" } else { "" });
        format!("{PREFIX}{fat_type}{floppy}{writable}{}", self.directory)
    }

    /// The label as the disk has it: capitals, filled up with spaces.
    pub(super) fn label_bytes(&self) -> [u8; LABEL_LEN] {
        let mut bytes = [b' '; LABEL_LEN];
        bytes.iter_mut().zip(self.label.bytes()).for_each(|(slot, byte)| *slot = byte.to_ascii_uppercase());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_option_strings_ask_for_the_same() {
        for (name, options) in [
            ("fat:/a", "dir=/a"),
            ("fat:rw:/a", "dir=/a,rw=on"),
            ("fat:32:rw:floppy:a:b", "dir=a:b,rw=on,floppy=on,fat-type=32"),
            ("fat:floppy:12:rw", "dir=rw,floppy=on,fat-type=12"),
            ("fat:13:/a", "dir=13:/a"),
        ] {
            let named = FatOptions::from_name(name).unwrap();
            assert_eq!(named, FatOptions::take(&mut Options::parse(options, None)).unwrap(), "{name}");
            assert_eq!(FatOptions::from_name(&named.name()), Some(named));
        }
        assert_eq!(FatOptions::from_name("fatal"), None);
    }

    #[test]
    fn options_that_make_no_sense_are_refused_in_qemus_words() {
        for (options, message) in [
            ("floppy=on", "vvfat block driver requires a 'dir' option"),
            ("dir=a,fat-type=13", "Valid FAT types are only 12, 16 and 32"),
            ("dir=a,label=twelve bytes", "vvfat label cannot be longer than 11 bytes"),
        ] {
            let refused = FatOptions::take(&mut Options::parse(options, None)).unwrap_err();
            assert_eq!(refused.message(), message);
        }
    }
}
