//! Sections: the state of one device each, as JSON of a structure that never changes once it has been released. A
//! device that must store something else gets a structure of the next number, and goes on reading the old ones.

use super::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the longest name.
pub(super) const MAX_NAME: usize = 40;
/// Bytes of the largest body.
pub(super) const MAX_BODY: usize = 4 << 20;

/// The state of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Which device: "uart", "vcpu.1".
    pub name: String,
    /// Which structure the body is of; counted from 1, for each kind of device.
    pub version: u32,
    /// JSON.
    pub body: Vec<u8>,
}

impl Section {
    /// The section of a device in `state`.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn new<T: Serialize>(name: impl Into<String>, version: u32, state: &T) -> Result<Section> {
        let (name, body) = (name.into(), serde_json::to_vec(state));
        let body = body.map_err(|error| Error::damaged(format!("{name}: {error}")))?;
        if name.len() > MAX_NAME || body.len() > MAX_BODY {
            return Err(Error::TooLarge(format!("the section '{name}'")));
        }
        Ok(Section { name, version, body })
    }

    /// The state, where version 1 is the only one that there is. All of the body is consumed.
    ///
    /// # Errors
    /// [`Error::Newer`]; [`Error::Damaged`] for a body that is not of that structure.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        self.check_version(1)?;
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::damaged(format!("section '{}': {error}", self.name)))
    }

    fn check_version(&self, known: u32) -> Result<()> {
        match self.version {
            0 => Err(Error::damaged(format!("section '{}' has no version", self.name))),
            version if version > known => {
                Err(Error::Newer { what: format!("the state of '{}'", self.name), version, known })
            }
            _ => Ok(()),
        }
    }
}

/// The sections of a state, to be taken one by one until none is left.
#[derive(Clone, Debug)]
pub struct Sections(Vec<Section>);

impl Sections {
    /// The sections of a state.
    ///
    /// # Errors
    /// When two have one name.
    pub fn new(sections: Vec<Section>) -> Result<Sections> {
        let mut names: Vec<&str> = sections.iter().map(|section| section.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::damaged(format!("there are two sections '{}'", pair[0]))),
            None => Ok(Sections(sections)),
        }
    }

    /// The section of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&mut self, name: &str) -> Result<Section> {
        let at = self.0.iter().position(|section| section.name == name);
        at.map(|at| self.0.swap_remove(at))
            .ok_or_else(|| Error::mismatch(format!("the snapshot has no state of the device '{name}'")))
    }

    /// The state of a device, where version 1 is the only one.
    ///
    /// # Errors
    /// When it is not there, or not of that structure.
    pub fn read<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        self.take(name)?.read()
    }

    /// Checks that nothing is left: what this machine does not have would be lost.
    ///
    /// # Errors
    /// When something is.
    pub fn finish(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(section) => {
                let name = &section.name;
                Err(Error::mismatch(format!(
                    "the snapshot has a device '{name}', and this machine has none such"
                )))
            }
        }
    }
}
