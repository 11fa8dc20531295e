//! A new image on its way to its name: it is made, filled if there is something to fill it with, and published.
//!
//! Invariant: until [`NewImage::publish`] ends, the names of the image and of its data file lead to what they led to
//! before. Who drops it earlier removes what was made. Files that must be written in place ([`Draft`] has the list) are
//! opened, checked and locked before any of them is emptied.

use super::Values;
use super::recipe::Recipe;
use crate::block::aio::Engine;
use crate::block::filename::{beside, check_protocol, sibling};
use crate::block::graph::Node;
use crate::block::open::open;
use crate::block::ops::draft::{Draft, lead_to_one_place};
use crate::block::ops::encrypt_options::key_option;
use crate::block::options::OpenOptions;
use crate::block::secret::Secrets;
use crate::block::{Error, Result};
use std::rc::Rc;
use tracing::trace;

/// A file that is being made.
struct NewFile {
    /// What users call it.
    filename: String,
    /// Where it stands until it is complete, if not under its own name.
    draft: Option<Draft>,
}

impl NewFile {
    fn new(engine: &Rc<Engine>, filename: &str) -> Result<NewFile> {
        Ok(NewFile { filename: filename.to_owned(), draft: Draft::new(engine, filename)? })
    }

    /// Its name for now.
    fn name(&self) -> &str {
        self.draft.as_ref().map_or(&self.filename, Draft::name)
    }

    fn told(&self, error: Error) -> Error {
        match &self.draft {
            Some(draft) => draft.told(error),
            None => error,
        }
    }

    async fn publish(self, engine: &Rc<Engine>) -> Result<()> {
        match self.draft {
            Some(draft) => draft.publish(engine).await,
            None => Ok(()),
        }
    }
}

/// An image that was made and does not have its name yet.
#[must_use]
pub struct NewImage {
    values: Values,
    image: NewFile,
    /// Its external data file.
    data: Option<NewFile>,
}

impl NewImage {
    /// Makes the image `filename` of `values`, with nothing in it. Passphrases come from `secrets`.
    ///
    /// # Errors
    /// In qemu-img's words. Values that make no sense are refused before the host is asked for anything.
    pub async fn make(
        engine: &Rc<Engine>,
        filename: &str,
        values: &Values,
        secrets: &Secrets,
    ) -> Result<NewImage> {
        let recipe = Recipe::new(values, secrets)?;
        trace!(name: "image_create", file = ?filename, format = values.format());
        let data = values.get("data_file").map(|name| data_file(filename, name)).transpose()?;
        let image = NewFile::new(engine, filename)?;
        let data = data.map(|name| NewFile::new(engine, &name)).transpose()?;
        let new = NewImage { values: values.clone(), image, data };
        let made = recipe.make(engine, new.image.name(), new.data.as_ref().map(NewFile::name)).await;
        made.map_err(|error| new.told(error))?;
        Ok(new)
    }

    /// Opens it, to be filled; what `options` say of its format and its files does not count.
    ///
    /// # Errors
    /// As [`open`].
    pub async fn open(&self, engine: &Rc<Engine>, options: OpenOptions) -> Result<Rc<Node>> {
        let mut options = OpenOptions {
            format: Some(self.values.format().to_owned()),
            read_only: false,
            data_file: self.data.as_ref().map(|data| data.name().to_owned()),
            ..options
        };
        if let Some((option, id)) = key_option(&self.values) {
            options.driver.set(option, id);
        }
        let backing = self.values.get("backing_file");
        if let Some(backing) = backing.filter(|name| check_protocol(name).is_ok()) {
            // A link may lead the draft into another folder than that of its name.
            options.driver.set("backing.file.filename", &beside(&self.image.filename, backing));
        }
        open(engine, self.image.name(), &options).await.map_err(|error| self.told(error))
    }

    /// What it was made with.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// An error that names the files as users do.
    #[must_use]
    pub fn told(&self, error: Error) -> Error {
        let error = self.image.told(error);
        match &self.data {
            Some(data) => data.told(error),
            None => error,
        }
    }

    /// Gives the image, which was opened as `node` and is complete, its name.
    ///
    /// # Errors
    /// What the host says; the old file is there then.
    pub async fn finish(self, engine: &Rc<Engine>, node: &Node) -> Result<()> {
        let flushed = node.flush().await;
        flushed.and(node.close().await).map_err(|error| self.told(error))?;
        self.publish(engine).await
    }

    /// Gives the files, which are complete and closed, their names.
    ///
    /// # Errors
    /// What the host says.
    pub async fn publish(self, engine: &Rc<Engine>) -> Result<()> {
        // An image without its data is worse than data without an image.
        if let Some(data) = self.data {
            data.publish(engine).await?;
        }
        self.image.publish(engine).await
    }
}

/// The data file `name` of the image `filename`, where the image will look for it: in its own folder.
fn data_file(filename: &str, name: &str) -> Result<String> {
    check_protocol(name)?;
    let file = sibling(filename, name);
    match lead_to_one_place(filename, &file) {
        true => {
            Err(Error::invalid_argument("The data file must be another file than the image").path(filename))
        }
        false => Ok(file),
    }
}
