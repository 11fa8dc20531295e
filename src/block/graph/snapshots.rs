//! What a format with internal snapshots can do, and how users name a snapshot.
//!
//! A snapshot is the disk at one moment, and the VM state that was stored behind the disk before it was made.
//! Operations that change snapshots leave the old or the new list whenever they fail or the process dies, and
//! run while no request is in flight on the node. After an error the node has the old list, unless the error is
//! [`Kind::Undecided`]: then it has the new one, and the file has either.

use super::driver::SnapshotInfo;
use super::node::Node;
use crate::block::{Error, Iov, Kind, Result};
use crate::util::keyval::Options;
use async_trait::async_trait;
use std::rc::Rc;

/// What a new snapshot is to be called and what it records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Name; others may have it too.
    pub name: String,
    /// Wall-clock time: seconds and nanoseconds since the epoch.
    pub date: (u32, u32),
    /// Guest run time, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instruction count; `None` where the guest runs without one.
    pub icount: Option<u64>,
    /// Bytes of VM state that were stored for it; 0 for a snapshot of the disk alone.
    pub vm_state_size: u64,
}

/// How a snapshot is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// By its ID.
    Id(String),
    /// By its name: the first that has it.
    Name(String),
    /// By both.
    IdAndName(String, String),
    /// By its ID or, where no snapshot has that ID, by its name: `snapshot -a`, `convert -l`.
    IdOrName(String),
}

impl Selector {
    /// Reads the value of `-l`: `snapshot.id=ID,snapshot.name=NAME` (one of them will do), or a name or ID.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for any other option.
    pub fn parse(text: &str) -> Result<Selector> {
        if !text.starts_with("snapshot.") {
            return Ok(Selector::IdOrName(text.to_owned()));
        }
        let mut options = Options::parse(text, None);
        let (id, name) = (options.take("snapshot.id"), options.take("snapshot.name"));
        options.finish().map_err(|error| Error::new(Kind::InvalidArgument, error.to_string()))?;
        Ok(match (id, name) {
            (Some(id), Some(name)) => Selector::IdAndName(id, name),
            (Some(id), None) => Selector::Id(id),
            (None, name) => Selector::Name(name.unwrap_or_default()),
        })
    }

    /// The place of the snapshot in a list.
    pub fn find(&self, list: &[SnapshotInfo]) -> Option<usize> {
        let by_id = |id: &str| list.iter().position(|snapshot| snapshot.id == id);
        let by_name = |name: &str| list.iter().position(|snapshot| snapshot.name == name);
        match self {
            Selector::Id(id) => by_id(id),
            Selector::Name(name) => by_name(name),
            Selector::IdAndName(id, name) => {
                list.iter().position(|snapshot| snapshot.id == *id && snapshot.name == *name)
            }
            Selector::IdOrName(word) => by_id(word).or_else(|| by_name(word)),
        }
    }

    /// As [`Selector::find`], or the error that there is none.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub fn require(&self, list: &[SnapshotInfo]) -> Result<usize> {
        self.find(list).ok_or_else(|| Error::new(Kind::NotFound, "snapshot not found"))
    }
}

/// A format with internal snapshots.
#[async_trait(?Send)]
pub trait Snapshots {
    /// All snapshots, in the order of the image.
    fn list(&self) -> Vec<SnapshotInfo>;

    /// Makes a snapshot of the disk as it is, with the VM state that was stored; the live disk gives that up.
    /// Its ID is the highest decimal one and one more.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the format or the image cannot hold one more; what the host says.
    async fn create(&self, new: &NewSnapshot) -> Result<SnapshotInfo>;

    /// Makes a snapshot in place of all that have its name, in one step.
    ///
    /// # Errors
    /// As [`Snapshots::create`].
    async fn replace(&self, new: &NewSnapshot) -> Result<SnapshotInfo>;

    /// Makes the disk what it was, its size too. VM state that was stored for no snapshot is given up.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; what the host says.
    async fn apply(&self, which: &Selector) -> Result<()>;

    /// Removes a snapshot.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Locked`] while a view of it is about.
    async fn delete(&self, which: &Selector) -> Result<()>;

    /// The disk as the snapshot has it, to read, over the same backing file. It may be read while the live disk
    /// is in use, and has the snapshot's VM state.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; what the host says.
    async fn view(&self, which: &Selector) -> Result<Rc<Node>>;
}

/// A format that stores VM state next to the disk: bytes from 0 on that no guest sees. What was not written
/// reads as zeros.
#[async_trait(?Send)]
pub trait VmState {
    /// How many bytes can be stored at most.
    fn capacity(&self) -> u64;

    /// Reads `into.len()` bytes.
    ///
    /// # Errors
    /// What the host says.
    async fn read(&self, offset: u64, into: &Iov) -> Result<()>;

    /// Makes room in the tables for bytes up to `end`, so that no write has to wait for that. The guest may use the disk
    /// meanwhile.
    ///
    /// # Errors
    /// As [`VmState::write`].
    async fn reserve(&self, end: u64) -> Result<()>;

    /// Writes `from.len()` bytes. The guest may use the disk meanwhile. Not durable until the node is flushed.
    ///
    /// # Errors
    /// [`Kind::ReadOnly`] of a snapshot; [`Kind::NoSpace`] behind the capacity; what the host says.
    async fn write(&self, offset: u64, from: &Iov) -> Result<()>;

    /// Gives up all that was written since the last snapshot. No request is in flight.
    ///
    /// # Errors
    /// [`Kind::ReadOnly`] of a snapshot; what the host says.
    async fn discard(&self) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_an_id_before_it_names_a_name() {
        let snapshot = |id: &str, name: &str| SnapshotInfo {
            id: id.into(),
            name: name.into(),
            vm_state_size: 0,
            date: (0, 0),
            vm_clock_nsec: 0,
            icount: None,
        };
        let list = [snapshot("1", "2"), snapshot("2", "x"), snapshot("3", "x")];
        assert_eq!(Selector::IdOrName("2".into()).find(&list), Some(1));
        assert_eq!(Selector::IdOrName("x".into()).find(&list), Some(1));
        assert_eq!(Selector::Name("2".into()).find(&list), Some(0));
        assert_eq!(Selector::Id("x".into()).find(&list), None);
        assert_eq!(Selector::IdAndName("3".into(), "x".into()).find(&list), Some(2));
        assert_eq!(Selector::IdAndName("3".into(), "2".into()).find(&list), None);
    }
}
