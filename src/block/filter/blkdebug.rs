//! `blkdebug`: a node that makes requests to the file below fail, wait, or come to nothing, as rules say.
//!
//! ```text
//!   format ──event──▶ ┌──────────┐  what happens   ┌────────────────────────┐
//!   format ─request─▶ │ BlkDebug │ ◀────────────── │ Faults: rules, counters│ ◀── the test, or a configuration
//!                     └────┬─────┘                 └────────────────────────┘
//!                          ▼ what passed
//!                         file
//! ```
//! A request that fails here never reaches the file. After [`Effect::Stop`] nothing does: for the file, that is the
//! death of the process. The rules are QEMU's (events, states, kinds of requests, sectors, errors, once), plus
//! byte ranges, counts, truncation as a kind of request, and requests that are held; see module `rules`. Module
//! `config` reads QEMU's configuration files, for file names of the form `blkdebug:CONFIG:FILE`.

mod config;
mod rules;

pub(crate) use config::from_name;
pub use config::parse;
pub use rules::{Action, Effect, Fault, Faults, RequestKind, Rule};

use crate::block::graph::driver::Specifics;
use crate::block::graph::{BlockStatus, ChildRole, Driver, Event, Limits, Node};
use crate::block::options::Preallocation;
use crate::block::{Iov, Result};
use async_trait::async_trait;
use std::ops::Range;
use std::rc::Rc;

/// The filter over one file.
pub struct BlkDebug {
    file: Rc<Node>,
    faults: Rc<Faults>,
}

impl BlkDebug {
    /// A filter over `file`, ruled by `faults`.
    pub fn new(file: Rc<Node>, faults: Rc<Faults>) -> BlkDebug {
        BlkDebug { file, faults }
    }

    async fn pass(&self, kind: RequestKind, range: Range<u64>) -> Result<()> {
        let done = self.faults.pass(kind, range).await;
        done.map_err(|error| error.path(self.file.filename()))
    }
}

#[async_trait(?Send)]
impl Driver for BlkDebug {
    fn format_name(&self) -> &'static str {
        "blkdebug"
    }

    fn size(&self) -> u64 {
        self.file.size()
    }

    fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
        vec![(ChildRole::File, self.file.clone())]
    }

    fn limits(&self) -> Limits {
        self.file.driver().limits()
    }

    fn read_only(&self) -> bool {
        self.file.driver().read_only()
    }

    async fn read(&self, offset: u64, into: &Iov) -> Result<()> {
        self.pass(RequestKind::Read, offset..offset + into.len() as u64).await?;
        self.file.read(offset, into).await
    }

    async fn write(&self, offset: u64, from: &Iov) -> Result<()> {
        self.pass(RequestKind::Write, offset..offset + from.len() as u64).await?;
        self.file.write(offset, from).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.pass(RequestKind::WriteZeroes, offset..offset + len).await?;
        self.file.write_zeroes(offset, len, may_unmap).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.pass(RequestKind::Discard, offset..offset + len).await?;
        self.file.discard(offset, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.pass(RequestKind::Flush, 0..0).await?;
        self.file.flush().await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        self.pass(RequestKind::BlockStatus, offset..offset + len).await?;
        Ok(BlockStatus::of_file(&self.file, offset, len))
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.pass(RequestKind::Truncate, 0..0).await?;
        self.file.truncate(size, preallocation).await
    }

    fn debug_event(&self, event: Event) {
        self.faults.event(event);
    }

    fn allocated_size(&self) -> Option<u64> {
        self.file.driver().allocated_size()
    }

    fn specifics(&self) -> Option<Specifics> {
        self.file.driver().specifics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::aio::{Backend, Engine};
    use crate::block::open::open;
    use crate::block::ops::create::{Template, create};
    use crate::block::options::{CacheMode, OpenOptions};
    use crate::block::secret::Secrets;
    use crate::util::keyval::Options;

    /// An image of qcow2 in a folder, opened by a name with a configuration in it.
    fn open_failing(config: &str) -> (tempfile::TempDir, Rc<Engine>, Result<Rc<Node>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let engine = Engine::new(Backend::Auto).unwrap();
        let given = Options::parse("size=1M", None);
        let values = Template::new("qcow2", true).unwrap().values(&given).unwrap();
        engine.block_on(create(&engine, &path("disk"), &values, &Secrets::default())).unwrap().unwrap();
        std::fs::write(path("config"), config).unwrap();
        let name = format!("blkdebug:{}:{}", path("config"), path("disk"));
        let options = OpenOptions { read_only: false, cache: CacheMode::WRITEBACK, ..OpenOptions::default() };
        let node = engine.block_on(open(&engine, &name, &options)).unwrap();
        (folder, engine, node)
    }

    #[test]
    fn an_image_fails_as_the_configuration_in_its_name_says() {
        let config =
            "[inject-error]\nevent = \"l2_update\"\nerrno = \"28\"\niotype = \"write\"\nonce = \"on\"\n";
        let (_folder, engine, node) = open_failing(config);
        let node = node.unwrap();
        engine.block_on(node.write_bytes(0, &[7; 512])).unwrap().unwrap();
        let error = engine.block_on(node.flush()).unwrap().unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        engine.block_on(node.flush()).unwrap().unwrap();
        assert_eq!(engine.block_on(node.read_bytes(0, 512)).unwrap().unwrap(), [7; 512]);
    }

    #[test]
    fn a_configuration_that_makes_no_sense_is_named() {
        let error = open_failing("[inject-error]\n").2.unwrap_err();
        assert_eq!(error.message(), "Missing event name for rule");
        assert!(error.file().unwrap().ends_with("config"));
    }
}
