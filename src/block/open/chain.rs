//! A qcow2 image and the files that it names: its data file, its backing chain.
//!
//! What it names are files and nothing else, whatever the name looks like ([`Location::from_image`]).

use super::{Opener, finish, lock_alone, passphrase};
use crate::block::filename::{beside, sibling};
use crate::block::format::qcow2;
use crate::block::graph::Node;
use crate::block::options::{Base, OpenOptions};
use crate::block::protocol::{Location, Source};
use crate::block::{Error, Kind, Result};
use crate::util::keyval::Options;
use crate::util::text;
use std::rc::Rc;

/// What the options say of the image itself.
struct Wanted {
    unlock: qcow2::Unlock,
    image: qcow2::ImageOptions,
    /// The header's backing file is left alone.
    alone: bool,
    /// Options of the backing file.
    below: Options,
}

impl Wanted {
    /// Takes all of the driver's options.
    fn take(filename: &str, remedy: &str, options: &OpenOptions) -> Result<Wanted> {
        let mut own = options.driver.clone();
        let has_no_backing = own.get("backing") == Some("") && own.take("backing").is_some();
        let below = match options.backing {
            true => own.take_group("backing."),
            false => Options::default(),
        };
        let key = passphrase(&mut own, "encrypt.key-secret", options);
        let wanted = Wanted {
            unlock: qcow2::Unlock {
                format: own.take("encrypt.format"),
                passphrase: key.map_err(|error| error.path(filename).remedy(remedy))?,
                metadata_only: options.metadata_only,
            },
            image: qcow2::ImageOptions::take(&mut own, options.unmap)
                .map_err(|error| error.path(filename))?,
            alone: has_no_backing || !options.backing,
            below,
        };
        finish("qcow2", &own).map(|()| wanted)
    }
}

impl Opener<'_> {
    pub(super) async fn open_qcow2(
        &mut self,
        file: Source,
        filename: &str,
        options: &OpenOptions,
    ) -> Result<Rc<Node>> {
        lock_alone(&file, options)?;
        let remedy = match options.format {
            Some(_) => "name the format that the image has, or check it with: cowvm imgtool check",
            None => "check the image with: cowvm imgtool check",
        };
        let named = |error: Error| error.path(filename).remedy(remedy);
        let wanted = Wanted::take(filename, remedy, options)?;
        let file = self.file_node(filename, file);
        let image = match options.check {
            true => qcow2::Image::read_for_check(&file).await,
            false => qcow2::Image::read(&file).await,
        };
        let mut image = image.map_err(named)?;
        image.unlock(self.engine, &wanted.unlock).await.map_err(|error| error.path(filename))?;
        if !options.read_only && !options.check {
            image = image.made_right(self.engine).await.map_err(named)?;
        }
        if let Some(lazy) = options.lazy_refcounts {
            image.set_lazy_refcounts(lazy).map_err(named)?;
        }
        image.set_options(wanted.image).map_err(|error| error.path(filename))?;
        if options.backing
            && let Some(data) = self.open_data_file(&image, filename, options).await?
        {
            image.set_data_file(data);
        }
        let backing = match image.backing_file() {
            Some(name) if !wanted.alone => {
                let below = OpenOptions { driver: wanted.below, ..options.clone() };
                Some(Box::pin(self.open_backing(name, image.backing_format(), filename, &below)).await?)
            }
            _ => None,
        };
        let driver = image.into_driver(self.engine, backing, options.read_only).map_err(named)?;
        Ok(Node::new(filename, driver))
    }

    /// The file that the guest's data is in, if not in the image; it is opened as the image is.
    async fn open_data_file(
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
        let location = match given {
            Some(_) => Location::from_name(&name)?,
            None => Location::File(name.clone()),
        };
        let opened = location.open(self.engine, options).await;
        let file = opened.map_err(|error| {
            let remedy = no_data_file(image.data_file().filter(|_| given.is_none()));
            Error::new(error.kind(), error.message()).path(&name).remedy(remedy)
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
        let location = given.map_or_else(
            || Location::from_image(&beside(overlay, name)),
            |name| Ok(Location::of_host(&name)),
        );
        let options = OpenOptions {
            format,
            driver,
            read_only: !is_base,
            base: options.base.clone().filter(|_| !is_base),
            check: false,
            lazy_refcounts: None,
            data_file: None,
            location: None,
            ..options.clone()
        };
        let opened = match location {
            Ok(location) => self.open(&location, &options).await,
            Err(error) => Err(error),
        };
        opened.map_err(|error| error.context("Could not open backing file"))
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

/// What to do about a data file that is not beside its image, whose header names it so.
fn no_data_file(named: Option<String>) -> String {
    match named.filter(|name| text::to_path(name).is_file()) {
        // QEMU looks for it there.
        Some(name) => format!(
            "the name is relative to the image's folder; the file '{name}' of this folder is taken with \
             data-file.filename={name}"
        ),
        None => "put the data file back beside the image, or name it with data-file.filename=".to_owned(),
    }
}
