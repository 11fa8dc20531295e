//! Disks on the command line: `-hda FILE` and `-drive key=value,…`, in QEMU's words.

use crate::block::describe;
use crate::block::drive::Drive;
use crate::block::options::{CacheMode, DetectZeroes, ErrorPolicy, OpenOptions, Removable};
use crate::block::secret::Secrets;
use crate::devices::virtio::blk::BlkOptions;
use crate::util::keyval::{Options, escape};
use crate::vm::builder::DiskConfig;
use crate::vm::{Error, Result};

/// What an export of a server is described by, beside `server.…`.
const NBD_OPTIONS: &[&str] = &[
    "driver",
    "host",
    "port",
    "path",
    "export",
    "tls-creds",
    "tls-hostname",
    "reconnect-delay",
    "open-timeout",
    "x-dirty-bitmap",
];

/// A disk as the user described it.
#[derive(Clone, Debug)]
pub(super) struct DriveSpec {
    /// The disk's name; `None` gets one by its place.
    id: Option<String>,
    /// Empty: no medium.
    file: String,
    /// What the image is, where no name says it: options as `--image-opts` takes them.
    description: Option<String>,
    /// The medium can be exchanged.
    removable: Option<Removable>,
    format: Option<String>,
    read_only: Option<bool>,
    cache: CacheMode,
    unmap: bool,
    detect_zeroes: DetectZeroes,
    lazy_refcounts: Option<bool>,
    data_file: Option<String>,
    serial: String,
    /// Writes go to a temporary overlay.
    snapshot: bool,
    errors: ErrorPolicy,
    /// All others: of the format, and of the images below.
    driver: Options,
}

impl DriveSpec {
    /// `-hda FILE` and its like: all defaults.
    pub(super) fn plain(id: &str, file: &str) -> DriveSpec {
        DriveSpec {
            id: Some(id.to_owned()),
            file: file.to_owned(),
            description: None,
            removable: None,
            format: None,
            read_only: None,
            cache: CacheMode::WRITEBACK,
            unmap: false,
            detect_zeroes: DetectZeroes::Off,
            lazy_refcounts: None,
            data_file: None,
            serial: String::new(),
            snapshot: false,
            errors: ErrorPolicy::default(),
            driver: Options::default(),
        }
    }

    /// `-cdrom FILE` and its like. A name that is empty is no medium.
    pub(super) fn removable(id: &str, file: &str, kind: Removable) -> DriveSpec {
        let read_only = (kind == Removable::Cdrom).then_some(true);
        DriveSpec { removable: Some(kind), read_only, ..DriveSpec::plain(id, file) }
    }

    /// `-drive`'s argument.
    ///
    /// # Errors
    /// Names the key that is missing, unknown, or has a value that makes no sense.
    pub(super) fn parse(text: &str) -> Result<DriveSpec> {
        let bad = |error: &dyn std::fmt::Display| Error::new(format!("-drive {text}: {error}"));
        let mut options = Options::parse(text, None);
        if options.get("driver").and(options.get("format")).is_some() {
            return Err(bad(&"Cannot specify both 'driver' and 'format'"));
        }
        let removable = take_media(&mut options).map_err(|error| bad(&error))?;
        let description = take_description(&mut options);
        let file = match options.take("file") {
            None if description.is_some() || removable.is_some() => String::new(),
            Some(_) if description.is_some() => {
                return Err(bad(&"file= and file.… exclude each other: write file.filename="));
            }
            file => file.ok_or_else(|| bad(&"file= is missing"))?,
        };
        let read_only = options.take_switch("readonly").map_err(|error| bad(&error))?;
        let read_only = protection(removable, read_only).map_err(|error| bad(&error))?;
        let cache = match options.take("cache") {
            Some(word) => CacheMode::parse(&word)
                .map_err(|error| Error::from(error).context(&format!("-drive {text}")))?,
            None => CacheMode::WRITEBACK,
        };
        let (unmap, detect_zeroes) = take_zeroing(&mut options).map_err(|error| bad(&error))?;
        match options.take("if").as_deref() {
            None | Some("virtio") => {}
            Some(other) => {
                return Err(bad(&format!("this machine has disks of if=virtio only, not '{other}'")));
            }
        }
        let (rerror, werror) = (options.take("rerror"), options.take("werror"));
        let errors = ErrorPolicy::parse(rerror.as_deref(), werror.as_deref()).map_err(|error| bad(&error))?;
        Ok(DriveSpec {
            errors,
            snapshot: options.take_switch("snapshot").map_err(|error| bad(&error))?.unwrap_or(false),
            id: options.take("id"),
            file,
            description,
            removable,
            format: options.take("format"),
            read_only,
            cache,
            unmap,
            detect_zeroes,
            lazy_refcounts: options.take_switch("lazy-refcounts").map_err(|error| bad(&error))?,
            data_file: options.take("data-file.filename"),
            serial: options.take("serial").unwrap_or_default(),
            // Whoever opens the image refuses what no driver takes.
            driver: options,
        })
    }

    /// Keeps the image as it is, as `snapshot=on` does.
    pub(super) fn in_snapshot_mode(self) -> DriveSpec {
        DriveSpec { snapshot: true, ..self }
    }

    /// Opens the image, with a passphrase from `secrets`. `force_share` reads it although others use it.
    ///
    /// # Errors
    /// What the block layer says, with file, cause and remedy.
    fn open(&self, id: &str, force_share: bool, secrets: &Secrets) -> Result<DiskConfig> {
        if force_share && self.read_only == Some(false) && !self.snapshot {
            return Err(Error::new(format!("{}: --force-share only reads", self.file))
                .remedy("leave out readonly=off"));
        }
        let options = OpenOptions {
            format: self.format.clone(),
            read_only: self.read_only.unwrap_or(force_share && !self.snapshot),
            base: None,
            cache: self.cache,
            unmap: self.unmap,
            detect_zeroes: self.detect_zeroes,
            force_share,
            backing: true,
            data_file: self.data_file.clone(),
            exclusive: true,
            driver: self.driver.clone(),
            secrets: secrets.clone(),
            metadata_only: false,
            lazy_refcounts: self.lazy_refcounts,
            location: None,
            check: false,
            snapshot: self.snapshot,
            removable: self.removable,
            errors: self.errors,
        };
        let described =
            self.description.as_ref().map(|text| describe::from_options(text, &options)).transpose()?;
        let (file, options) = described.unwrap_or_else(|| (self.file.clone(), options));
        let drive = Drive::open(id, &file, &options)?;
        let mut options = BlkOptions { serial: self.serial.clone(), ..BlkOptions::default() };
        // What may be exchanged for something else shows the blocks that anything can bear.
        if let Some(device) = drive.device()?.filter(|_| self.removable.is_none()) {
            options = options.with_blocks(device.logical_block_size, device.physical_block_size);
        }
        Ok(DiskConfig { drive, options })
    }
}

/// Takes the kind of drive, where its medium can be exchanged.
fn take_media(options: &mut Options) -> std::result::Result<Option<Removable>, String> {
    match options.take("media").as_deref() {
        None | Some("disk") => Ok(None),
        Some("cdrom") => Ok(Some(Removable::Cdrom)),
        Some("floppy") => Ok(Some(Removable::Floppy)),
        Some(other) => Err(format!("'{other}' invalid media")),
    }
}

/// Whether a drive's media are only read, where that was said or follows from its kind.
fn protection(
    kind: Option<Removable>,
    read_only: Option<bool>,
) -> std::result::Result<Option<bool>, &'static str> {
    match (kind, read_only) {
        (Some(Removable::Cdrom), Some(false)) => Err("media in a CD-ROM drive are read-only"),
        (Some(Removable::Cdrom), None) => Ok(Some(true)),
        _ => Ok(read_only),
    }
}

/// Takes what becomes of discards (whether they unmap) and of zeros that are written.
fn take_zeroing(options: &mut Options) -> std::result::Result<(bool, DetectZeroes), String> {
    let unmap = match options.take("discard").as_deref() {
        None | Some("ignore" | "off") => false,
        Some("unmap" | "on") => true,
        Some(other) => return Err(format!("discard= is ignore or unmap, not '{other}'")),
    };
    let detect_zeroes = match options.take("detect-zeroes").as_deref() {
        None | Some("off") => DetectZeroes::Off,
        Some("on") => DetectZeroes::On,
        Some("unmap") if unmap => DetectZeroes::Unmap,
        Some("unmap") => {
            return Err(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
                    .to_owned(),
            );
        }
        Some(other) => return Err(format!("detect-zeroes= is off, on or unmap, not '{other}'")),
    };
    Ok((unmap, detect_zeroes))
}

/// Takes the options of the node that the image's bytes come from: `file.…`, or those of `driver=nbd`.
fn take_description(options: &mut Options) -> Option<String> {
    let mut own = Options::default();
    for (key, value) in options.take_group("file.").pairs() {
        own.set(&format!("file.{key}"), value);
    }
    if options.get("driver") == Some("nbd") {
        for (key, value) in options.take_group("server.").pairs() {
            own.set(&format!("server.{key}"), value);
        }
        for key in NBD_OPTIONS {
            if let Some(value) = options.take(key) {
                own.set(key, &value);
            }
        }
    }
    let words: Vec<String> =
        own.pairs().iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
    (!words.is_empty()).then(|| words.join(","))
}

/// Opens all disks, in the order of their slots.
///
/// # Errors
/// The first that cannot be opened, or a name that two disks have.
pub(super) fn open_all(specs: &[DriveSpec], force_share: bool, secrets: &Secrets) -> Result<Vec<DiskConfig>> {
    let ids = ids(specs)?;
    specs.iter().zip(&ids).map(|(spec, id)| spec.open(id, force_share, secrets)).collect()
}

/// The names of the disks; those without one are named as QEMU does, "virtio0" and so on.
fn ids(specs: &[DriveSpec]) -> Result<Vec<String>> {
    let mut ids: Vec<String> = Vec::with_capacity(specs.len());
    let mut unnamed = 0;
    for spec in specs {
        let id = spec.id.clone().unwrap_or_else(|| {
            unnamed += 1;
            format!("virtio{}", unnamed - 1)
        });
        if ids.contains(&id) {
            return Err(Error::new(format!("two disks are named '{id}'")).remedy("give one another id="));
        }
        ids.push(id);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        DriveSpec::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn all_keys_are_understood() {
        let spec = DriveSpec::parse(
            "file=/a,,b.img,format=qcow2,id=d,readonly=on,cache=none,discard=unmap,serial=S1,if=virtio,\
             detect-zeroes=unmap,data-file.filename=d,snapshot=on,werror=stop,rerror=ignore,offset=512",
        )
        .unwrap();
        assert!(spec.snapshot);
        assert_eq!(
            spec.driver.pairs(),
            [("offset".to_owned(), "512".to_owned())],
            "left to the format's driver"
        );
        assert_eq!(spec.errors, ErrorPolicy::parse(Some("ignore"), Some("stop")).unwrap());
        assert_eq!(spec.detect_zeroes, DetectZeroes::Unmap);
        assert_eq!(spec.data_file.as_deref(), Some("d"));
        assert_eq!((spec.file.as_str(), spec.format.as_deref()), ("/a,b.img", Some("qcow2")));
        assert_eq!((spec.id.as_deref(), spec.serial.as_str()), (Some("d"), "S1"));
        assert_eq!((spec.read_only, spec.unmap, spec.cache.direct), (Some(true), true, true));
    }

    #[test]
    fn an_image_may_be_described_instead_of_named() {
        for (text, description) in [
            ("file.driver=nbd,file.path=/a,,b,format=raw,id=x", "file.driver=nbd,file.path=/a,,b"),
            (
                "driver=nbd,server.type=unix,server.path=/s,export=e,cache=none",
                "server.type=unix,server.path=/s,driver=nbd,export=e",
            ),
        ] {
            let spec = DriveSpec::parse(text).unwrap();
            assert_eq!((spec.file.as_str(), spec.description.as_deref()), ("", Some(description)));
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(refusal("format=raw").contains("file= is missing"));
        assert!(refusal("file=a,file.filename=b").contains("exclude each other"));
        assert!(refusal("driver=nbd,path=a,format=raw").contains("both 'driver' and 'format'"));
        assert!(refusal("file=a,cache=fast").contains("fast"));
        assert!(refusal("file=a,discard=maybe").contains("'maybe'"));
        assert!(refusal("file=a,detect-zeroes=yes").contains("'yes'"));
        assert!(refusal("file=a,detect-zeroes=unmap").contains("without setting discard"));
        assert!(refusal("file=a,readonly=perhaps").contains("'readonly'"));
        assert!(refusal("file=a,werror=maybe").contains("'maybe' invalid write error action"));
        assert!(refusal("file=a,if=ide").contains("'ide'"));
    }

    #[test]
    fn removable_drives_may_be_empty_and_discs_are_read_only() {
        let drive = |text| DriveSpec::parse(text).unwrap();
        let (cdrom, floppy) = (drive("media=cdrom"), drive("media=floppy,readonly=on,file=a"));
        assert_eq!((cdrom.removable, cdrom.read_only), (Some(Removable::Cdrom), Some(true)));
        assert_eq!((floppy.removable, floppy.read_only), (Some(Removable::Floppy), Some(true)));
        assert_eq!((cdrom.file.as_str(), floppy.file.as_str()), ("", "a"));
        assert_eq!(drive("media=floppy").read_only, None);
        assert!(drive("media=disk,file=a").removable.is_none());
        assert!(refusal("media=tape,file=a").contains("'tape' invalid media"));
        assert!(refusal("media=cdrom,readonly=off").contains("read-only"));
        assert!(refusal("media=disk").contains("file= is missing"));
    }

    #[test]
    fn disks_without_a_name_get_one_and_names_are_unique() {
        let named = DriveSpec::plain("hda", "a");
        let unnamed = DriveSpec::parse("file=b").unwrap();
        let all = [named.clone(), unnamed.clone(), unnamed];
        assert_eq!(ids(&all).unwrap(), ["hda", "virtio0", "virtio1"]);
        assert!(ids(&[named.clone(), named]).unwrap_err().to_string().contains("'hda'"));
    }
}
