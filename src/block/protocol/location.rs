//! Where the bytes of an image are, as users say it: by a name, or by the options of a protocol's driver.
//!
//! ```text
//!   a.img   file:a:b                          driver=file,filename=…
//!   /dev/sdb   host_device:…   host_cdrom:…   driver=host_device,filename=…
//!   nbd:…   nbd://…                           driver=nbd,server.type=…,export=…
//!   fat:[12:|16:|32:][floppy:][rw:]DIR        driver=vvfat,dir=…,fat-type=…,floppy=…,rw=…,label=…
//! ```
//! This is the one place that knows which protocols there are before [`Source`] does. Only a user's name is read so: one
//! that stands in an image is that of a file ([`Location::from_image`]), so that no image leads to anything else.

use super::file::{Expected, FileDriver};
use super::nbd::{NbdDriver, Target};
use super::source::Source;
use super::vvfat::{FatOptions, Vvfat};
use crate::block::aio::Engine;
use crate::block::filename::check_protocol;
use crate::block::options::OpenOptions;
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use std::rc::Rc;

/// The protocol of files.
pub(crate) const FILE: &str = "file";
/// Those of devices.
const DEVICE: &str = "host_device";
const CDROM: &str = "host_cdrom";
const NBD: &str = "nbd";
const FAT: &str = "vvfat";

/// How the options of a driver are read.
type Take = fn(&mut Options) -> Result<Location>;

/// The protocols, by the names of their drivers.
const PROTOCOLS: &[(&str, Take)] =
    &[(FILE, take_file), (DEVICE, take_device), (CDROM, take_cdrom), (NBD, take_nbd), (FAT, take_fat)];

/// What an image is to be opened on.
#[derive(Clone, Debug)]
pub enum Location {
    /// A regular file of the host; the name is taken as it is, whatever it looks like.
    File(String),
    /// A file or a device of the host that a user named; the name as before.
    Host(Expected, String),
    /// An export of a server; with what is left to the driver.
    Nbd(Target, Options),
    /// A directory, shown as a disk.
    Fat(FatOptions),
}

impl Location {
    /// Whether `driver` is the name of a protocol's driver.
    pub(crate) fn is_protocol(driver: &str) -> bool {
        PROTOCOLS.iter().any(|(name, _)| *name == driver)
    }

    /// Whether an image can name what the driver of a protocol is on as its backing file.
    pub(crate) fn can_be_named(driver: &str) -> bool {
        ![DEVICE, CDROM, NBD, FAT].contains(&driver)
    }

    /// Whether that protocol is one of files and devices.
    pub(crate) fn is_of_host(driver: &str) -> bool {
        [FILE, DEVICE, CDROM].contains(&driver)
    }

    /// The file or the device that a user's name means, taken as it is.
    pub(crate) fn of_host(name: &str) -> Location {
        Location::Host(Expected::Any, name.to_owned())
    }

    /// What a user's name means.
    ///
    /// # Errors
    /// In qemu-img's words, for a name that begins as those of a protocol and goes on differently, or as those of a
    /// protocol that there is not.
    pub fn from_name(name: &str) -> Result<Location> {
        if let Some(target) = Target::from_name(name)? {
            return Ok(Location::Nbd(target, Options::default()));
        }
        match FatOptions::from_name(name) {
            Some(fat) => Ok(Location::Fat(fat)),
            None => Location::from_path(name),
        }
    }

    /// What a user's name means that is none of an export or a directory.
    fn from_path(name: &str) -> Result<Location> {
        let prefixes = [(DEVICE, Expected::Device), (CDROM, Expected::Cdrom)];
        for (protocol, expected) in prefixes {
            if let Some(path) = name.strip_prefix(protocol).and_then(|rest| rest.strip_prefix(':')) {
                return Ok(Location::Host(expected, path.to_owned()));
            }
        }
        match name.starts_with("file:") {
            true => Location::from_image(name),
            false => check_protocol(name).map(|()| Location::of_host(name)),
        }
    }

    /// What a name that stands in an image means: a file.
    ///
    /// # Errors
    /// [`Kind::Unsupported`], if it begins with a protocol.
    pub fn from_image(name: &str) -> Result<Location> {
        check_protocol(name)?;
        Ok(Location::File(name.strip_prefix("file:").unwrap_or(name).to_owned()))
    }

    /// What the options of the protocol `driver` mean; all of them are its own.
    ///
    /// # Errors
    /// In qemu-img's words, for what is missing, makes no sense, or is not known.
    pub fn from_options(driver: &str, mut own: Options) -> Result<Location> {
        let (_, take) = PROTOCOLS
            .iter()
            .find(|(name, _)| *name == driver)
            .ok_or_else(|| Error::new(Kind::Unsupported, format!("Unknown driver '{driver}'")))?;
        let location = take(&mut own)?;
        refuse_left(driver, &own).map(|()| location)
    }

    /// The name of the protocol's driver.
    pub(crate) fn protocol(&self) -> &'static str {
        match self {
            Location::File(_) | Location::Host(Expected::Regular | Expected::Any, _) => FILE,
            Location::Host(Expected::Device, _) => DEVICE,
            Location::Host(Expected::Cdrom, _) => CDROM,
            Location::Nbd(..) => NBD,
            Location::Fat(_) => FAT,
        }
    }

    /// Whether it may turn out to be of this protocol.
    pub(crate) fn may_be(&self, driver: &str) -> bool {
        match self {
            Location::Host(Expected::Any, _) => Location::is_of_host(driver),
            _ => driver == self.protocol(),
        }
    }

    /// What the node is called: the file's name, or a name that means the same location but for what only options say.
    pub fn name(&self) -> String {
        match self {
            Location::File(name) | Location::Host(_, name) => name.clone(),
            Location::Nbd(target, _) => target.to_string(),
            Location::Fat(fat) => fat.name(),
        }
    }

    /// Opens it. No lock is taken: [`Source::lock`] does, once the format is known.
    ///
    /// # Errors
    /// In qemu-img's words.
    pub(crate) async fn open(&self, engine: &Rc<Engine>, options: &OpenOptions) -> Result<Source> {
        Ok(match self {
            Location::File(name) => Source::File(FileDriver::open(engine, Expected::Regular, name, options)?),
            Location::Host(expected, name) => {
                Source::File(FileDriver::open(engine, *expected, name, options)?)
            }
            Location::Nbd(target, own) => {
                let mut own = own.clone();
                let export = NbdDriver::open(engine, target, options, &mut own).await?;
                refuse_left(NBD, &own)?;
                Source::Nbd(export)
            }
            Location::Fat(fat) => Source::Fat(Vvfat::open(engine, fat, options).await?),
        })
    }
}

fn take_file(own: &mut Options) -> Result<Location> {
    take_filename(FILE, own).map(Location::File)
}

fn take_device(own: &mut Options) -> Result<Location> {
    take_filename(DEVICE, own).map(|name| Location::Host(Expected::Device, name))
}

fn take_cdrom(own: &mut Options) -> Result<Location> {
    take_filename(CDROM, own).map(|name| Location::Host(Expected::Cdrom, name))
}

fn take_filename(driver: &str, own: &mut Options) -> Result<String> {
    let name = own.take("filename").filter(|name| !name.is_empty());
    name.ok_or_else(|| Error::invalid_argument(format!("The '{driver}' block driver requires a file name")))
}

fn take_nbd(own: &mut Options) -> Result<Location> {
    let target = Target::take(own)?;
    Ok(Location::Nbd(target, std::mem::take(own)))
}

fn take_fat(own: &mut Options) -> Result<Location> {
    FatOptions::take(own).map(Location::Fat)
}

fn refuse_left(protocol: &str, left: &Options) -> Result<()> {
    let Some((name, _)) = left.pairs().first() else { return Ok(()) };
    Err(Error::invalid_argument(format!("Block protocol '{protocol}' doesn't support the option '{name}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(driver: &str, options: &str) -> Result<Location> {
        Location::from_options(driver, Options::parse(options, None))
    }

    #[test]
    fn names_and_options_mean_the_same_location() {
        for (name, driver, options) in [
            ("a.img", "file", "filename=a.img"),
            ("file:a:b", "file", "filename=a:b"),
            ("host_device:/dev/a:b", "host_device", "filename=/dev/a:b"),
            ("host_cdrom:/dev/sr0", "host_cdrom", "filename=/dev/sr0"),
            ("nbd:h:1:exportname=e", "nbd", "host=h,port=1,export=e"),
            ("fat:rw:32:/d", "vvfat", "dir=/d,rw=on,fat-type=32"),
        ] {
            let (named, described) =
                (Location::from_name(name).unwrap(), described(driver, options).unwrap());
            assert_eq!(named.name(), described.name(), "{name}");
            assert_eq!((named.protocol(), described.protocol()), (driver, driver), "{name}");
        }
    }

    #[test]
    fn options_that_a_protocol_does_not_know_are_refused_by_name() {
        for (driver, options, message) in [
            ("file", "filename=a,dir=b", "Block protocol 'file' doesn't support the option 'dir'"),
            ("vvfat", "dir=a,filename=b", "Block protocol 'vvfat' doesn't support the option 'filename'"),
            ("file", "filename=", "The 'file' block driver requires a file name"),
            ("ftp", "host=a", "Unknown driver 'ftp'"),
        ] {
            assert_eq!(described(driver, options).unwrap_err().message(), message);
        }
    }

    #[test]
    fn a_name_in_an_image_is_a_files_and_nothing_else() {
        for name in [
            "host_device:/dev/sda",
            "host_cdrom:/dev/sr0",
            "nbd://h",
            "nbd:h:1",
            "fat:/etc",
            "fat:rw:/etc",
            "json:{}",
            "blkdebug::a",
        ] {
            assert!(Location::from_image(name).is_err(), "{name}");
        }
        assert_eq!(Location::from_image("file:nbd://h").unwrap().protocol(), FILE);
        assert_eq!(Location::from_image("./fat:a").unwrap().name(), "./fat:a");
        // It is never one of a device, wherever the path leads.
        assert!(matches!(Location::from_image("/dev/sda").unwrap(), Location::File(_)));
        assert!(Location::from_name("/dev/sda").unwrap().may_be("host_device"));
    }
}
